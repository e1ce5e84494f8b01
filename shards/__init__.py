"""Preprocessing: a folder of photographs -> tar shards of tile pairs. `python -m shards --help`."""
