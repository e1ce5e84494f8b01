"""mosaicml-streaming: MDS shards of fixed-shape arrays, StreamingDataset with its default shuffle, in a DataLoader."""

from __future__ import annotations

import warnings
from pathlib import Path

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from timing import Batches, main, read_pairs
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def prepare(source: Path, out: Path) -> None:
    with MDSWriter(out=str(out), columns={"pair": "ndarray:uint8:2,128,128"}) as writer:
        for pair in read_pairs(source):
            writer.write({"pair": pair})


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=location, shuffle=True, batch_size=batch_size)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
    while True:
        for batch in loader:
            yield batch["pair"][:, 0], batch["pair"][:, 1]


if __name__ == "__main__":
    main(stream, prepare)
