"""The photos and tiles of a validation split, restored and measured one by one, for the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from srcnn.data.dataset import ShardDataset
from srcnn.data.photo_list import read_photo_records
from srcnn.models.base import Network
from srcnn.photos.metrics import psnr
from srcnn.photos.tiling import cut, grid, join
from srcnn.restoration.restore import restore

MOST_CONSIDERED = 1000  # photos at the beginning of the list of a split
MAX_PHOTOS, MAX_TILES = 100, 1000  # that are measured, spread evenly: seconds on a processor
MAX_SIDE = 1600  # pixels of a photo; of larger ones the top left part is taken

ItemT = TypeVar("ItemT")


class Pair(NamedTuple):
    """A photo or a tile: uint8 arrays of one size, (H, W) or (H, W, 3)."""

    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray


@dataclass(frozen=True)
class ScoredPhoto:
    """A photo with its PSNR in dB, or tiles of which no photo is known.

    Attributes:
        name: of the photo; "" where none is known.
        samples: numbers of its tiles in the split, row by row.
        rows, columns: of tiles.
        quality: of the JPEG that degraded it, None if it is not known.
        psnr_in, psnr_out: of the degraded and the restored photo.
        tiles: float64 (N, 2), the same of each of its tiles.
    """

    name: str
    samples: np.ndarray = field(repr=False)
    rows: int
    columns: int
    quality: int | None
    psnr_in: float = 0.0
    psnr_out: float = 0.0
    tiles: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)

    @property
    def gain(self) -> float:
        return self.psnr_out - self.psnr_in


@dataclass(frozen=True)
class SplitScores:
    """What was measured.

    Attributes:
        photos: best gain first; none where nothing is known of the photos.
        tiles: (photo, number of the tile in it), best gain first.
        num_photos: photos of the whole split.
    """

    photos: list[ScoredPhoto]
    tiles: list[tuple[ScoredPhoto, int]]
    num_photos: int


def score_split(dataset: ShardDataset, model: Network) -> SplitScores:
    """Restores and measures photos of a split with `model`, which is not centred, in reach of MAX_PHOTOS, MAX_TILES.

    Raises:
        ShardError: the shards or their list of photos are damaged.
    """
    found = list_photos(dataset)
    chosen = spread(found, MAX_PHOTOS)
    while len(chosen) > 1 and sum(len(photo.samples) for photo in chosen) > MAX_TILES:
        chosen = spread(chosen, len(chosen) - 1 - len(chosen) // 8)
    if not found:
        chosen = [ScoredPhoto("", np.array([one]), 1, 1, None) for one in spread(range(dataset.num_samples), MAX_TILES)]
    photos = [_measured(photo, restored_pair(dataset, model, photo)) for photo in chosen]
    tiles = [(photo, number) for photo in photos for number in range(len(photo.tiles))]
    tiles.sort(key=_gain_of_tile, reverse=True)
    if dataset.manifest.photos is None or not found:
        return SplitScores([], tiles, 0)
    return SplitScores(sorted(photos, key=lambda photo: -photo.gain), tiles, dataset.manifest.photos.num_photos)


def list_photos(dataset: ShardDataset) -> list[ScoredPhoto]:
    """The first photos of a split, not measured; only those whose tiles the dataset has."""
    starts = dict(zip((shard.name for shard in dataset.manifest.shards), dataset.manifest.first_samples.tolist()))
    photos = []
    for record in islice(read_photo_records(dataset.storage, dataset.manifest), MOST_CONSIDERED):
        first = starts[record.shard] + record.first_sample
        rows, columns = grid(record.height, record.width, dataset.tile_shape[0])
        if rows * columns != record.num_samples:  # an imported pair picture: one tile
            rows = columns = 1
        numbers = first + np.arange(rows * columns).reshape(rows, columns)
        side = max(1, MAX_SIDE // dataset.tile_shape[0])
        numbers = numbers[:side, :side]
        if numbers.size and numbers.max() < dataset.num_samples:
            photos.append(ScoredPhoto(record.name, numbers.ravel(), len(numbers), numbers.shape[1], record.quality))
    return photos


def spread(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """At most `count` of the items, evenly spread."""
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def restored_pair(dataset: ShardDataset, model: Network, photo: ScoredPhoto) -> Pair:
    """The photo put together from its tiles, and restored as a whole by the network alone, as it was validated."""
    clean, degraded = (join(tiles, photo.rows, photo.columns) for tiles in dataset.read(photo.samples))
    return Pair(degraded, restore(degraded, model, quality=photo.quality, consistent=False), clean)


def tile_of(pair: Pair, photo: ScoredPhoto, number: int, tile_pixels: int) -> Pair:
    """A tile cut out of a photo."""
    return Pair(*(cut(picture, tile_pixels)[number] for picture in pair)) if photo.name else pair


def _measured(photo: ScoredPhoto, pair: Pair) -> ScoredPhoto:
    side = pair.clean.shape[0] // photo.rows
    before, after, clean = (cut(picture, side) for picture in (pair.degraded, pair.restored, pair.clean))
    tiles = [[psnr(*both) for both in ((one, first), (one, second))]
             for one, first, second in zip(clean, before, after, strict=True)]
    return ScoredPhoto(photo.name, photo.samples, photo.rows, photo.columns, photo.quality,
                  psnr(pair.clean, pair.degraded), psnr(pair.clean, pair.restored), np.array(tiles))


def _gain_of_tile(tile: tuple[ScoredPhoto, int]) -> float:
    photo, number = tile
    return float(photo.tiles[number, 1] - photo.tiles[number, 0])
