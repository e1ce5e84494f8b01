"""spdl over our own npy shards: its tar and npy readers, a shard made into shuffled batches by one of its threads."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import spdl.io
from spdl.pipeline import PipelineBuilder
from timing import Batches, main, shards_of


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    shards = shards_of(location)

    def endless() -> Iterator[Path]:
        while True:
            yield from random.sample(shards, len(shards))

    def batches_of(shard: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The last batch of a shard is what is left."""
        with shard.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        tiles = [spdl.io.load_npy(member) for _, member in spdl.io.iter_tarfile(content)]
        pairs = list(zip(tiles[::2], tiles[1::2], strict=True))
        random.shuffle(pairs)
        for start in range(0, len(pairs), batch_size):
            clean, degraded = zip(*pairs[start : start + batch_size], strict=True)
            yield np.stack(clean), np.stack(degraded)

    builder = PipelineBuilder().add_source(endless()).pipe(batches_of, concurrency=num_workers).add_sink(4)
    pipeline = builder.build(num_threads=num_workers)
    with pipeline.auto_stop():
        yield from pipeline


if __name__ == "__main__":
    main(stream)
