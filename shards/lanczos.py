"""Pillow's Lanczos resizing, bit for bit, in two thirds of its time: the sums are done as matrix products.

Pillow adds up 8-bit levels times 22-bit weights in integers, along the rows first, then along the columns. A matrix
product in single precision errs by less than a thousandth of a level; a sum that lies so near to half a level that
this could decide its rounding is done again in integers. So the order in which BLAS adds changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

LOBES = 3
WEIGHT_BITS = 22  # PRECISION_BITS of Pillow's Resample.c
STRIP_ROWS = 64  # few enough that a strip of a 12-megapixel photo stays in the cache
BLOCK = 32  # results of one matrix product; their windows overlap, so most of its weights are not 0
MAX_CLOSE_SHARE = 0.05  # stripes and checkerboards, all of whose sums are halves: Pillow is faster there
_sin = np.frompyfunc(math.sin, 1, 1)  # as Pillow takes it; NumPy's own differs in the last bit


class Block(NamedTuple):
    """Sums `target` of the levels `source`: float32 weights (source, target)."""

    source: slice
    target: slice
    weights: np.ndarray


class Axis(NamedTuple):
    """How one side is resized.

    Attributes:
        first: (new,) the first level in the window of each sum.
        weights: (new, taps) int64, in units of 2^-22.
        blocks: the same for matrix products.
        error: bound of what single precision errs, in levels.
    """

    first: np.ndarray
    weights: np.ndarray
    blocks: tuple[Block, ...]
    error: float


def resize(picture: Image.Image, size: tuple[int, int], extent: tuple[float, float] | None = None) -> np.ndarray:
    """A picture of mode L or RGB as uint8 (H, W) or (H, W, 3) of this (width, height).

    Equal to `picture.resize(size, LANCZOS, box=(0, 0, *extent))`; without `extent` all of the picture is taken.
    """
    width, height = (float(np.float32(side)) for side in extent or picture.size)  # as Pillow takes its box
    if picture.size == size == (width, height):
        return np.asarray(picture)
    pixels = None
    # Otherwise some versions of Pillow begin with the columns, which rounds differently.
    if picture.height - size[1] <= 2 * (picture.width - size[0]):
        rows = _resize_rows(picture, _axis(picture.width, width, size[0]))
        pixels = None if rows is None else _resize_columns(rows, _axis(picture.height, height, size[1]))
    if pixels is None:
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, (0, 0, width, height)))
    return _interleaved(pixels)


def _interleaved(pixels: np.ndarray) -> np.ndarray:
    """(H, bands, W) -> (H, W) or (H, W, bands), band by band: six times as fast as a copy of the transposed array."""
    height, bands, width = pixels.shape
    if bands == 1:
        return pixels[:, 0]
    result = np.empty((height, width, bands), np.uint8)
    for band in range(bands):
        result[..., band] = pixels[:, band]
    return result


@lru_cache(maxsize=16)
def _axis(old: int, extent: float, new: int) -> Axis:
    """From `old` levels, of which the first `extent` are taken, to `new`."""
    scale = extent / new
    stretch = max(scale, 1.0)
    support = LOBES * stretch
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centers - support + 0.5).astype(np.int64))
    last = np.minimum(old, (centers + support + 0.5).astype(np.int64))
    places = first[:, None] + np.arange(int((last - first).max()))
    window = _lanczos((places - centers[:, None] + 0.5) * (1.0 / stretch)) * (places < last[:, None])
    total = np.zeros(new)
    for column in window.T:  # one after the other, as Pillow adds them
        total += column
    scaled = window / total[:, None] * 2**WEIGHT_BITS
    weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)
    error = (weights.shape[1] + 2) * 2.0**-24 * 255 * float(np.abs(weights).sum(1).max()) / 2**WEIGHT_BITS
    return Axis(first, weights, tuple(_blocks(old, first, weights)), error)


def _lanczos(x: np.ndarray) -> np.ndarray:
    def sinc(x: np.ndarray) -> np.ndarray:
        angle = x * math.pi
        sines = np.asarray(_sin(angle), np.float64)
        return np.where(angle == 0, 1.0, sines / np.where(angle == 0, 1.0, angle))

    return np.where((-LOBES <= x) & (x < LOBES), sinc(x) * sinc(x / LOBES), 0.0)


def _blocks(old: int, first: np.ndarray, weights: np.ndarray) -> list[Block]:
    blocks = []
    taps = np.arange(weights.shape[1])
    for start in range(0, len(first), BLOCK):
        target = slice(start, min(start + BLOCK, len(first)))
        begin = int(first[target].min())
        places = first[target, None] - begin + taps
        dense = np.zeros((int(places.max()) + 1, target.stop - start), np.float32)
        dense[places, np.arange(target.stop - start)[:, None]] = weights[target] / 2**WEIGHT_BITS
        source = slice(begin, min(old, begin + len(dense)))
        blocks.append(Block(source, target, dense[: source.stop - begin]))
    return blocks


def _resize_rows(picture: Image.Image, axis: Axis) -> np.ndarray | None:
    """uint8 (H, bands, new); None where Pillow is to do it."""
    bands, new = len(picture.getbands()), len(axis.first)
    result = np.empty((picture.height, bands, new), np.uint8)
    strip = np.empty((STRIP_ROWS, bands, picture.width), np.float32)
    sums = np.empty((STRIP_ROWS, bands, new), np.float32)
    for top in range(0, picture.height, STRIP_ROWS):
        part = picture.crop((0, top, picture.width, min(picture.height, top + STRIP_ROWS)))
        for band, levels in enumerate(part.split()):
            strip[: part.height, band] = np.asarray(levels)
        for block in axis.blocks:
            lines = strip[: part.height].reshape(-1, picture.width)
            np.matmul(lines[:, block.source], block.weights, out=sums.reshape(-1, new)[: len(lines), block.target])

        def exactly(row: np.ndarray, band: np.ndarray, column: np.ndarray) -> np.ndarray:
            places = _window(axis, column, picture.width)
            return _sum(strip[row[:, None], band[:, None], places], axis.weights[column])

        if not _round(sums[: part.height], result[top : top + part.height], axis.error, exactly):
            return None
    return result


def _resize_columns(rows: np.ndarray, axis: Axis) -> np.ndarray | None:
    """uint8 (H, bands, W) -> (new, bands, W); None where Pillow is to do it."""
    height, bands, width = rows.shape
    result = np.empty((len(axis.first), bands, width), np.uint8)
    for source, target, weights in axis.blocks:
        levels = rows.reshape(height, -1)[source].astype(np.float32)
        sums = (weights.T @ levels).reshape(-1, bands, width)

        def exactly(row: np.ndarray, band: np.ndarray, column: np.ndarray, start: int = target.start) -> np.ndarray:
            places = _window(axis, row + start, height)
            return _sum(rows[places, band[:, None], column[:, None]], axis.weights[row + start])

        if not _round(sums, result[target], axis.error, exactly):
            return None
    return result


def _window(axis: Axis, sums: np.ndarray, old: int) -> np.ndarray:
    """(n, taps): the places of the levels that go into these sums; behind the end, where weights are 0, the last."""
    return np.minimum(axis.first[sums][:, None] + np.arange(axis.weights.shape[1]), old - 1)


def _sum(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, taps) twice -> (n,) as Pillow rounds them."""
    sums = (levels.astype(np.int64) * weights).sum(1)
    return ((sums + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS).clip(0, 255)


def _round(sums: np.ndarray, result: np.ndarray, error: float, exactly: Callable[..., np.ndarray]) -> bool:
    """Rounds sums (n, bands, width) into `result`, those near a half by `exactly`; False where these are too many.

    `sums` is used up.
    """
    levels = np.rint(sums)
    np.subtract(sums, levels, out=sums)
    close = np.abs(sums, out=sums) > np.float32(0.5 - error - 1e-6)
    np.clip(levels, 0, 255, out=levels)
    result[...] = levels
    found = np.flatnonzero(close)
    if len(found) > max(BLOCK, MAX_CLOSE_SHARE * close.size):
        return False
    if len(found):
        places = np.unravel_index(found, close.shape)
        result[places] = exactly(*places)
    return True
