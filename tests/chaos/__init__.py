"""Random faults against a real training: see `__main__`."""
