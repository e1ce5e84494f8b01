"""The only tile geometry: a photo cut into tiles for training, or cut with a halo and stitched to restore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

JPEG_BLOCK_PIXELS = 8


def grid(height: int, width: int, tile_pixels: int) -> tuple[int, int]:
    """How many whole tiles fit: (rows, columns). The bottom and right remainders are left out."""
    return height // tile_pixels, width // tile_pixels


def cut(pixels: np.ndarray, tile_pixels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (rows * columns, tile, tile[, 3]), row by row from the top left corner.

    Tiles start at multiples of their size, so with a size that is a multiple of 8 they lie on the JPEG block
    grid.
    """
    height, width = pixels.shape[:2]
    rows, columns = grid(height, width, tile_pixels)
    whole = pixels[: rows * tile_pixels, : columns * tile_pixels]
    blocks = whole.reshape(rows, tile_pixels, columns, tile_pixels, *pixels.shape[2:]).swapaxes(1, 2)
    return blocks.reshape(rows * columns, tile_pixels, tile_pixels, *pixels.shape[2:])


def starts_to_cover(length: int, tile_pixels: int) -> list[int]:
    """Where tiles start that cover a side of `length` pixels: as few as can be, evenly overlapping; none where the side
    is shorter than a tile.
    """
    if length < tile_pixels:
        return []
    num_tiles = -(-length // tile_pixels)
    return [(length - tile_pixels) * number // max(1, num_tiles - 1) for number in range(num_tiles)]


def cut_to_cover(pixels: np.ndarray, tile_pixels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (n, tile, tile[, 3]), row by row, with nothing left out: `starts_to_cover` each side."""
    rows, columns = (starts_to_cover(side, tile_pixels) for side in pixels.shape[:2])
    tiles = [pixels[top : top + tile_pixels, left : left + tile_pixels] for top in rows for left in columns]
    return np.stack(tiles) if tiles else np.empty((0, tile_pixels, tile_pixels, *pixels.shape[2:]), pixels.dtype)


class Window(NamedTuple):
    """One tile of a photo to be restored; slices are (rows, columns).

    Attributes:
        source: what is read, the tile and its halo, cut at the photo's edges.
        inner: where the tile lies inside what was read.
        target: where the tile lies in the photo.
    """

    source: tuple[slice, slice]
    inner: tuple[slice, slice]
    target: tuple[slice, slice]


def windows(height: int, width: int, tile_pixels: int, halo: int) -> Iterator[Window]:
    """Windows whose targets cover the photo once. At the photo's own edges there is no halo.

    With a halo of at least the network's receptive radius, stitched targets equal the whole photo's result:
    every output pixel sees the same input pixels, and the same padding where the photo ends.
    """
    for top, bottom in spans(height, tile_pixels):
        for left, right in spans(width, tile_pixels):
            from_top, from_left = max(0, top - halo), max(0, left - halo)
            yield Window(
                (slice(from_top, min(height, bottom + halo)), slice(from_left, min(width, right + halo))),
                (slice(top - from_top, bottom - from_top), slice(left - from_left, right - from_left)),
                (slice(top, bottom), slice(left, right)),
            )


def spans(length: int, tile_pixels: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each tile along one side of `length` pixels; the last may be shorter."""
    for start in range(0, length, tile_pixels):
        yield start, min(length, start + tile_pixels)


def join(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The reverse of `cut`: (rows * columns, tile, tile[, 3]) -> one array."""
    tile_pixels = tiles.shape[1]
    blocks = tiles.reshape(rows, columns, tile_pixels, tile_pixels, *tiles.shape[3:]).swapaxes(1, 2)
    return blocks.reshape(rows * tile_pixels, columns * tile_pixels, *tiles.shape[3:])
