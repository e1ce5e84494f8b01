"""A photograph as file and as pixels: read, damaged, tiled, measured, and written with metadata. Imports no torch."""
