"""grain over ArrayRecord files (uncompressed, one record a group, as grain asks for): global shuffle, batches made by
its reading threads or worker processes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import grain.python as grain
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from timing import Batches, main, read_pairs

RECORDS_PER_FILE = 1024


def collate(records: Sequence[bytes]) -> np.ndarray:
    """uint8 (batch, 2, 128, 128)."""
    return np.frombuffer(b"".join(records), np.uint8).reshape(len(records), 2, 128, 128)


def prepare(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    pairs = read_pairs(source)
    for number in itertools.count():
        records = [pair.tobytes() for pair in itertools.islice(pairs, RECORDS_PER_FILE)]
        if not records:
            return
        writer = ArrayRecordWriter(str(out / f"{number:06d}.array_record"), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    flags.FLAGS(sys.argv[:1])
    records = grain.ArrayRecordDataSource(sorted(map(str, Path(location).glob("*.array_record"))))
    dataset = grain.MapDataset.source(records).shuffle(seed=0).repeat().batch(batch_size, batch_fn=collate)
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if num_workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2))
    for batch in batches:
        yield batch[:, 0], batch[:, 1]


if __name__ == "__main__":
    main(stream, prepare)
