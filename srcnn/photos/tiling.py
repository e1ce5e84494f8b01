"""Tile geometry: a photo cut into tiles for training, and into windows with a halo for restoring."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from srcnn.photos.degradation import crop_to_multiple

JPEG_BLOCK_PIXELS = 8
Region = tuple[slice, slice]  # (rows, columns)


def grid(height: int, width: int, tile_pixels: int) -> tuple[int, int]:
    """(rows, columns) of whole tiles; the remainders at the bottom and the right are dropped."""
    return height // tile_pixels, width // tile_pixels


def cut(pixels: np.ndarray, tile_pixels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (rows * columns, tile, tile[, 3]), row by row from the top left corner.

    Tiles whose size is a multiple of 8 are aligned to the JPEG block grid.
    """
    return cut_to_cover(crop_to_multiple(pixels, tile_pixels), tile_pixels)


def starts_to_cover(length: int, tile_pixels: int) -> list[int]:
    """Start pixels of the fewest tiles that cover a side of `length` pixels, evenly overlapping; none if the side is
    shorter than a tile.
    """
    if length < tile_pixels:
        return []
    num_tiles = -(-length // tile_pixels)
    return [(length - tile_pixels) * number // max(1, num_tiles - 1) for number in range(num_tiles)]


def cut_to_cover(pixels: np.ndarray, tile_pixels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (n, tile, tile[, 3]), row by row: the fewest tiles that cover all pixels, overlapping."""
    rows, columns = (starts_to_cover(side, tile_pixels) for side in pixels.shape[:2])
    tiles = [pixels[top : top + tile_pixels, left : left + tile_pixels] for top in rows for left in columns]
    return np.stack(tiles) if tiles else np.empty((0, tile_pixels, tile_pixels, *pixels.shape[2:]), pixels.dtype)


class Window(NamedTuple):
    """One tile of a photo to be restored.

    Attributes:
        source: the tile and its halo, clipped at the photo's edges, in the photo.
        inner: the tile in `source`.
        target: the tile in the photo.
    """

    source: Region
    inner: Region
    target: Region


def windows(
    height: int, width: int, tile_pixels: int | tuple[int, int], halo: int, region: Region | None = None
) -> Iterator[Window]:
    """Windows whose targets cover a photo once, row by row. There is no halo beyond the photo's edges.

    With a halo of at least the network's receptive radius, the stitched tiles equal the result of the whole photo:
    every output pixel depends on the same input pixels, and on the same padding at the photo's edges.

    Args:
        tile_pixels: the side of a tile, or its height and width.
        region: what is covered instead of the whole photo; targets are counted from its upper left corner.
    """
    sides = (tile_pixels, tile_pixels) if isinstance(tile_pixels, int) else tile_pixels
    covered = region or (slice(0, height), slice(0, width))
    spans = (_spans(*each, halo) for each in zip(covered, (height, width), sides, strict=True))
    for rows, columns in product(*spans):
        yield Window(*zip(rows, columns, strict=True))


def _spans(covered: slice, length: int, tile_pixels: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """`Window` along one side of `length` pixels: source, inner and target of each tile; the last may be shorter."""
    for start in range(covered.start, covered.stop, tile_pixels):
        stop, first = min(covered.stop, start + tile_pixels), max(0, start - halo)
        yield (slice(first, min(length, stop + halo)), slice(start - first, stop - first),
               slice(start - covered.start, stop - covered.start))


def join(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The inverse of `cut`: (rows * columns, tile, tile[, 3]) -> (H, W) or (H, W, 3)."""
    tile_pixels = tiles.shape[1]
    blocks = tiles.reshape(rows, columns, tile_pixels, tile_pixels, *tiles.shape[3:]).swapaxes(1, 2)
    return blocks.reshape(rows * tile_pixels, columns * tile_pixels, *tiles.shape[3:])
