"""webdataset as its README shows it, over our own shards (npy or png): shards and samples shuffled, batches made in
the workers."""

from __future__ import annotations

import tarfile

import webdataset
from timing import Batches, main, shards_of


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    shards = shards_of(location)
    with tarfile.open(shards[0]) as tar:
        encoding = tar.next().name.rpartition(".")[2]
    dataset = (
        webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=len(shards), empty_check=False)
        .shuffle(1000)
        .decode("l8")
        .to_tuple(f"clean.{encoding}", f"degraded.{encoding}")
        .batched(batch_size)
    )
    workers = min(num_workers, len(shards))
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


if __name__ == "__main__":
    main(stream)
