"""What `srcnn ...` does on a command line."""
