"""How well an epoch is shuffled, measured on batches: `python -m benchmarks.shuffle --shards data/shards/train`.

Two sets: the tiles of a shards folder, and a million tiles made of the same photos, 64 neighbouring tiles each.
Six orders: an ideal shuffle (NumPy's), the three of `srcnn.data.shuffle`, and webdataset's own shuffle stages with a
small and a large buffer. Prints the tables of docs/shuffle.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from webdataset.filters import shuffle

from benchmarks.measure import table
from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig
from srcnn.data.photo_list import read_photo_records
from srcnn.data.shuffle import BlockShuffle, Shuffle

VALUES = ("mean luma", "variance", "squared error")
SIMULATED_SAMPLES = 1_000_000
PHOTO_TILES = 64
NUM_DEALS = 4  # of photos over the simulated set: the same order is measured on each
WEBDATASET_SHARD, WEBDATASET_BUFFERS = 1000, (1000, 32_768)
NEIGHBOURS = 8  # a "run" in the measure of co-occurrence, for every order
SAMPLE_BYTES = 34_816  # a pair of grey 128 x 128 tiles
NUM_STRETCHES = 16  # of batches in an epoch; what the bootstrap draws
LABELS = ("ideal", "uniform (local)", "runs (remote)", "runs, lanes kept",
          *(f"webdataset, {buffer:,}" for buffer in WEBDATASET_BUFFERS))
BLOCK = 8192  # positions computed together, as the stream does
TABLE = [(run, window, 64) for run in (4, 8, 16, 32) for window in (4096, 8192, 16384, 32768)]
TABLE += [(run, window, 1024) for run in (8, 16) for window in (16384, 32768, 65536)]
TABLE += [(8, 32768, 256), (8, 131_072, 4096)]
LARGE_BATCH = 4096
Epochs = Callable[[int], np.ndarray]  # the samples of an epoch, in their order


class TileSet(NamedTuple):
    """What is shuffled: values (N, deals, 3), each column with mean 0 and variance 1; the photo of each tile (N,)."""

    name: str
    values: np.ndarray
    photos: np.ndarray


def tiles_of_shards(folder: Path) -> TileSet:
    """The values of every tile of a split."""
    reader = ShardDataset(folder)
    parts = []
    for start in range(0, reader.num_samples, BLOCK):
        pixels = reader.read(np.arange(start, min(start + BLOCK, reader.num_samples)))
        clean, degraded = (tiles.reshape(len(tiles), -1).astype(np.float32) for tiles in pixels)
        parts.append(np.stack([clean.mean(1), clean.var(1), np.square(clean - degraded).mean(1)], -1))
    counts = [photo.num_samples for photo in read_photo_records(reader.storage, reader.manifest)]
    photos = np.repeat(np.arange(len(counts)), counts)
    reader.close()
    return TileSet("real", standardized(np.concatenate(parts)[:, None]), photos)


def simulated_tiles(real: TileSet, num_samples: int) -> TileSet:
    """Photos of 64 neighbouring tiles as they are, drawn at random from the real ones, another draw in each deal."""
    starts = np.flatnonzero(real.photos[: 1 - PHOTO_TILES] == real.photos[PHOTO_TILES - 1 :])
    if not len(starts):
        raise ValueError(f"no photo has {PHOTO_TILES} tiles or more; make shards of larger photos")
    num_photos = num_samples // PHOTO_TILES
    drawn = np.random.default_rng(0).choice(starts, (num_photos, 1, NUM_DEALS))
    tiles = (drawn + np.arange(PHOTO_TILES)[:, None]).reshape(-1, NUM_DEALS)
    return TileSet("simulated", standardized(real.values[tiles, 0]), np.repeat(np.arange(num_photos), PHOTO_TILES))


def standardized(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(0, dtype=np.float64)) / values.std(0, dtype=np.float64)).astype(np.float32)


def correlation_in_runs(tiles: TileSet, run_samples: int) -> list[float]:
    """Mean correlation of two different tiles of a run, for each value."""
    num_runs = len(tiles.values) // run_samples
    sums = tiles.values[: num_runs * run_samples].reshape(num_runs, run_samples, -1, len(VALUES)).sum(1)
    shared = np.square(sums).mean((0, 1)) / run_samples - 1
    return [round(float(value) / (run_samples - 1), 3) for value in shared]


def as_streamed(num_samples: int, is_local: bool, config: LoaderConfig = LoaderConfig()) -> Epochs:
    """The order the stream takes for so many samples on a local disk or elsewhere."""
    reader: Any = SimpleNamespace(num_samples=num_samples, is_local=is_local)
    return partial(epoch_of, config.make_shuffle(0, reader))


def epoch_of(order: Shuffle, epoch: int) -> np.ndarray:
    start, stop = epoch * order.num_samples, (epoch + 1) * order.num_samples
    blocks = (np.arange(first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK))
    return np.concatenate([order.samples_at(block) for block in blocks])


def epoch_of_webdataset(num_samples: int, buffer: int, epoch: int) -> np.ndarray:
    """Its shard shuffle with room for all shards, then its sample shuffle; a new seed each epoch, which stock lacks."""
    rng = random.Random(epoch)
    starts = range(0, num_samples, WEBDATASET_SHARD)
    shards: Iterator[int] = shuffle(len(starts), rng=rng)(iter(starts))
    stream = chain.from_iterable(range(start, min(start + WEBDATASET_SHARD, num_samples)) for start in shards)
    return np.fromiter(shuffle(buffer, rng=rng)(stream), np.int64, num_samples)


def design_effects(samples: np.ndarray, tiles: TileSet, batch_size: int) -> np.ndarray:
    """(stretches, 3): squared batch means over what an ideal shuffle gives, without replacement, in each stretch."""
    num_batches = len(samples) // batch_size
    means = tiles.values[samples[: num_batches * batch_size]].reshape(num_batches, batch_size, -1, len(VALUES)).mean(1)
    expected = (len(samples) - batch_size) / (len(samples) - 1) / batch_size
    stretches = np.array_split(np.square(means).mean(1) / expected, min(NUM_STRETCHES, num_batches))
    return np.stack([stretch.mean(0) for stretch in stretches])


def repeats(numbers: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Mean number of different ones in a batch, and of pairs of equal ones where none comes over NEIGHBOURS times."""
    rows = np.sort(numbers[: len(numbers) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    pairs = [(rows[:, lag:] == rows[:, :-lag]).sum() / len(rows) for lag in range(1, NEIGHBOURS)]
    return float(batch_size - pairs[0]), float(sum(pairs))


def expected_photos(photos: np.ndarray, batch_size: int) -> float:
    """Photos in a batch of an ideal shuffle: 1 - C(N - n, B) / C(N, B) for each photo of n tiles."""
    missed = np.cumprod(np.maximum(0, 1 - batch_size / (len(photos) - np.arange(np.bincount(photos).max()))))
    return float((1 - missed[np.bincount(photos) - 1]).sum())


def expected_pairs(num_samples: int, batch_size: int) -> float:
    """Pairs out of the same neighbours in a batch of an ideal shuffle."""
    return batch_size * (batch_size - 1) / 2 * (NEIGHBOURS - 1) / (num_samples - 1)


def distance_from_law(before: np.ndarray, after: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of |p1 - p2| / N over the samples from the triangular law."""
    moved = np.sort(np.abs(after - before) / len(before))
    steps = np.arange(len(moved) + 1) / len(moved)
    law = 1 - np.square(1 - moved)
    return float(max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max()))


def measure(epochs: Epochs, tiles: TileSet, batch_size: int, num_epochs: int) -> dict[str, Any]:
    """Every measure of one order, means over the epochs."""
    numbers = np.arange(len(tiles.photos))
    before, effects = numbers, list[np.ndarray]()
    rows: list[dict[str, float]] = []
    for epoch in range(num_epochs):
        samples = epochs(epoch)
        positions = np.empty_like(numbers)
        positions[samples] = numbers
        assert np.array_equal(samples[positions], numbers)
        effects.append(design_effects(samples, tiles, batch_size))
        row = {
            "photos": repeats(tiles.photos[samples], batch_size)[0],
            "pairs": repeats(samples // NEIGHBOURS, batch_size)[1],
            "neighbour_distance": float(np.median(np.abs(np.diff(positions)))),
            "correlation_with_number": float(np.corrcoef(numbers, positions)[0, 1]),
        }
        if epoch:
            row["distance_from_law"] = distance_from_law(before, positions)
            row["correlation_between_epochs"] = float(np.corrcoef(before, positions)[0, 1])
        before = positions
        rows.append(row)
    result: dict[str, Any] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in rows[-1]}
    return result | {"effects": with_interval(np.concatenate(effects))}


def with_interval(units: np.ndarray) -> list[tuple[float, float, float]]:
    """Mean and 95 % interval for each value, by bootstrap over the stretches of all epochs."""
    picks = np.random.default_rng(0).integers(len(units), size=(1000, len(units)))
    low, high = np.percentile(units[picks].mean(1), (2.5, 97.5), axis=0)
    return list(zip(units.mean(0).tolist(), low.tolist(), high.tolist(), strict=True))


def samples_held(order: BlockShuffle) -> tuple[int, float]:
    """Most and mean samples held over an epoch's turn by a reader that keeps a run from its first to its last use.

    Runs that two lanes share are used twice, an epoch apart; they are let go after two windows.
    """
    total = 2 * order.num_samples
    epochs = [epoch_of(order, epoch) // order.block_samples + epoch * order.num_samples for epoch in (0, 1)]
    runs = np.concatenate(epochs)
    _, first, sizes = np.unique(runs, return_index=True, return_counts=True)
    last = np.minimum(total - 1 - np.unique(runs[::-1], return_index=True)[1], first + 2 * order.window_samples)
    held = np.cumsum(np.bincount(first, sizes, total + 1) - np.bincount(last + 1, sizes, total + 1))[:total]
    return int(held.max()), float(held.mean())


def runs_table(tiles: TileSet, batch_size: int, num_epochs: int) -> str:
    """Design effect and memory of BlockShuffle over runs, windows and lanes."""
    rows = []
    for run, window, lanes in TABLE:
        order = BlockShuffle(0, len(tiles.photos), run, lanes, window)
        epochs = [epoch_of(order, epoch) for epoch in range(num_epochs)]
        units = ([design_effects(samples, tiles, size) for samples in epochs] for size in (batch_size, LARGE_BATCH))
        effect, large = (with_interval(np.concatenate(unit)) for unit in units)
        megabytes = [f"{held * SAMPLE_BYTES / 1e6:,.0f}" for held in samples_held(order)]
        rows.append([run, f"{window:,}", lanes, *map(interval, [*effect, large[0]]), *megabytes])
    return table(["run", "window", "lanes", *VALUES, f"{VALUES[0]}, batch {LARGE_BATCH}", "most MB", "mean MB"], rows)


def interval(effect: tuple[float, float, float]) -> str:
    return f"{effect[0]:.3f} ± {(effect[2] - effect[1]) / 2:.3f}"


def orders_table(tiles: TileSet, results: dict[str, Any], batch_size: int) -> str:
    total, orders = len(tiles.photos), results.values()
    photos, pairs = expected_photos(tiles.photos, batch_size), expected_pairs(total, batch_size)
    rows = [[f"design effect, {value}", *(interval(order["effects"][number]) for order in orders)]
            for number, value in enumerate(VALUES)]
    rows.append([f"photos in a batch (expected {photos:.1f})", *(f"{order['photos']:.1f}" for order in orders)])
    rows.append([f"pairs of neighbours (expected {pairs:.3f})", *(f"{order['pairs']:.3f}" for order in orders)])
    for key in ("distance_from_law", "correlation_between_epochs", "correlation_with_number", "neighbour_distance"):
        form = ",.0f" if key == "neighbour_distance" else ".4f"
        rows.append([key.replace("_", " "), *(format(order[key], form) for order in orders)])
    about = f"{tiles.name}: {total:,} tiles of {tiles.photos[-1] + 1:,} photos, batches of {batch_size}"
    return f"{about}\n\n{table(['', *results], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, default=Path("data/shards/train"))
    parser.add_argument("--batch", type=int, default=256, help="global batch size of the tables")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the simulated set, two at least")
    parser.add_argument("--simulated", type=int, default=SIMULATED_SAMPLES, help="tiles of the simulated set")
    args = parser.parse_args()
    real = tiles_of_shards(args.shards)
    for tiles in (real, simulated_tiles(real, args.simulated)):
        total, num_deals = tiles.values.shape[:2]
        num_epochs = max(2, round(args.epochs * args.simulated * NUM_DEALS / num_deals / total))
        orders: tuple[Epochs, ...] = (
            lambda epoch: np.random.default_rng(epoch).permutation(total),
            as_streamed(total, is_local=True),
            as_streamed(total, is_local=False),
            as_streamed(total, is_local=False, config=LoaderConfig(lanes="kept")),
            *(partial(epoch_of_webdataset, total, buffer) for buffer in WEBDATASET_BUFFERS),
        )
        results = {name: measure(epochs, tiles, args.batch, num_epochs)
                   for name, epochs in zip(LABELS, orders, strict=True)}
        alike = {run: correlation_in_runs(tiles, run) for run in (4, 8, 16, 32, 64)}
        print(f"{orders_table(tiles, results, args.batch)}\n\nHow alike two tiles of a run are: {alike}\n", flush=True)
    print(runs_table(tiles, args.batch, args.epochs))


if __name__ == "__main__":
    main()
