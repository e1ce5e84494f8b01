"""The loops of docs/stream.md beside the trainer's loader: `python -m benchmarks.stream --shards data/shards/train`.

Prints pairs a second, uint8 tensors in batches on the CPU, medians of runs that take turns, from the page cache. The
start of the workers and the first batch are not counted. What is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Failed, alternate, machine, not_measured, table
from srcnn import LoaderConfig, PairStream, ShardDataset, webdataset_pipeline
from srcnn.data.device_loader import copy_to_device
from srcnn.data.loader import train_batches
from srcnn.data.shuffle import BatchPlan

OURS = "the trainer's loader"


def trainer(shards: Path, batch_size: int, num_workers: int) -> Iterable[Any]:
    dataset = ShardDataset(shards)
    plan = BatchPlan(0, 0, 1 << 40, batch_size)
    return copy_to_device(train_batches(dataset, LoaderConfig(), plan), torch.device("cpu"))


def stream(shards: Path, batch_size: int, num_workers: int) -> Iterable[Any]:
    return DataLoader(PairStream(shards, batch_size), batch_size=None, num_workers=num_workers)


def stateful(shards: Path, batch_size: int, num_workers: int) -> Iterable[Any]:
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise Failed(str(error)) from error
    loader: Iterable[Any] = StatefulDataLoader(PairStream(shards, batch_size), batch_size=None, num_workers=num_workers)
    return loader


def map_style(shards: Path, batch_size: int, num_workers: int) -> Iterable[Any]:
    return DataLoader(ShardDataset(shards), batch_size, shuffle=True, num_workers=num_workers)


def webdataset(shards: Path, batch_size: int, num_workers: int) -> Iterable[Any]:
    dataset = ShardDataset(shards)
    channels = 3 if len(dataset.tile_shape) == 3 else 1
    urls = [str(shards / shard.name) for shard in dataset.manifest.shards]
    pairs = webdataset_pipeline(urls, dataset.manifest.members, channels, shardshuffle=len(urls)).shuffle(1000)
    return DataLoader(pairs.batched(batch_size), batch_size=None, num_workers=num_workers)


def rate(make: Callable[[], Iterable[Any]], num_batches: int) -> float:
    """Pairs a second after the first batch, of `num_batches`, or an epoch if that is shorter."""
    batches = iter(make())
    next(batches)
    start, num_pairs = time.perf_counter(), 0
    for batch in islice(batches, num_batches):
        num_pairs += len(batch[0])
    return num_pairs / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, default=Path("data/shards/train"))
    parser.add_argument("--batch", type=int, default=64, help="pairs in a batch")
    parser.add_argument("--batches", type=int, default=500, help="batches of a run, an epoch at the most")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    args = parser.parse_args()
    loops = {"PairStream in a DataLoader": stream, "PairStream in a StatefulDataLoader": stateful,
             "ShardDataset in a DataLoader, shuffle=True": map_style, "webdataset_pipeline in a DataLoader": webdataset}
    variants = {OURS: partial(rate, partial(trainer, args.shards, args.batch, 0), args.batches)}
    for name, make in loops.items():
        for number in (0, 2):
            loop = partial(make, args.shards, args.batch, number)
            variants[f"{name}, {number} workers"] = partial(rate, loop, args.batches)
    failed: dict[str, str] = {}
    rates = {name: median(found) for name, found in alternate(variants, args.rounds, failed).items()}
    rows = [(name, f"{found:,.0f}", f"{found / rates[OURS]:.2f}") for name, found in rates.items()]
    dataset = ShardDataset(args.shards)
    shape, encoding = "x".join(map(str, dataset.tile_shape)), dataset.manifest.encoding
    print(f"{machine()}; {len(dataset):,} pairs of {shape}, {encoding}, batches of {args.batch}, {args.rounds} runs\n")
    print(table(("", "pairs/s", "of the trainer's"), rows), not_measured(failed), sep="\n\n")


if __name__ == "__main__":
    main()
