"""The networks, their layers, their weights in files, in the package and on the hub."""
