"""litdata: chunks written by `optimize`, StreamingDataset with shuffle in the StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import litdata
import torch
from timing import Batches, main, read_pairs


def pairs(folder: str) -> Iterator[torch.Tensor]:
    for pair in read_pairs(Path(folder)):
        yield torch.from_numpy(pair)


def prepare(source: Path, out: Path) -> None:
    litdata.optimize(pairs, [str(source)], output_dir=str(out), chunk_bytes="64MB", num_workers=1)


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    dataset = litdata.StreamingDataset(location, shuffle=True)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    while True:
        for batch in loader:
            yield batch[:, 0], batch[:, 1]


if __name__ == "__main__":
    main(stream, prepare)
