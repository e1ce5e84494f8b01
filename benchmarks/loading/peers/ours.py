"""srcnn's own reader, from a folder or from an address (http://, s3://); its threads fill the batches."""

from __future__ import annotations

from pathlib import Path

from timing import Batches, main

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig, train_batches
from srcnn.data.shuffle import BatchPlan

ENDLESS = 2**40


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    reader = ShardDataset(location if "://" in location else Path(location))
    config = LoaderConfig(num_threads=num_workers)
    for batch in train_batches(reader, config, BatchPlan(0, 0, ENDLESS, batch_size)):
        yield batch.clean, batch.degraded


if __name__ == "__main__":
    main(stream)
