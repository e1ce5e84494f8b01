"""What every process needs: settings, whole files, stores, bounds on foreign input, signals, other ranks."""
