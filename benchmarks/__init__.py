"""What is measured against others, and how to run it again."""
