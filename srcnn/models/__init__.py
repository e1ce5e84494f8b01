"""The networks, their layers, their weights in files, in the package and on the hub."""

DEFAULT_MODEL = "unet-jpeg"  # of the shipped weights, those that restore photos where no others are named
