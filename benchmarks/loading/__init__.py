"""Data loaders side by side: see `__main__`."""
