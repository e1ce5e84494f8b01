"""The source project's loop on a GPU: on a batch that is there, and on what its own dataset brings."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch

from benchmarks import material
from benchmarks.contestant import source_step, source_update
from benchmarks.gpu_part import Contestant, Part
from srcnn.profile_step import now
from srcnn.stream import Batch

BATCHES = (32, 256)
RATE_SECONDS = 1.5
NUM_SHARDS = 2  # whose pairs are written as pictures


def loop(batch: Batch, device: torch.device, tf32: bool = True) -> Contestant:
    """Its loop on one batch again and again, as PyTorch runs it, or in whole float32."""
    step, _ = source_step(0, device)
    return Contestant(lambda: step(batch), len(batch.clean), tf32)


def measure_loader(part: Part) -> None:
    """Its loop with its own dataset: pictures of 256x128, left clean, right degraded, by a DataLoader."""
    sys.path.insert(0, str(material.PEERS))
    source = importlib.import_module("source")
    pictures = part.work / "pictures"
    if not pictures.is_dir():
        write_pictures(part, source.prepare)
    rows = []
    cores = len(os.sched_getaffinity(0))
    for batch_size in (2,) if part.quick else BATCHES:
        for workers in (0,) if part.quick else dict.fromkeys((0, min(8, cores), cores)):
            update, _ = source_update(0, part.device)
            with closing(source.stream(str(pictures), workers, batch_size)) as batches:
                rate = loader_rate(part, batches, update)
            rows.append({"batch_size": batch_size, "workers": workers, "tiles_per_second": rate})
            part.note(source_loader=rows)


def write_pictures(part: Part, prepare: Callable[..., None]) -> None:
    """The pairs of the first shards as its dataset wants them."""
    shards = part.work / "first-shards"
    shards.mkdir(exist_ok=True)
    for path in sorted((part.shards / "train").glob("*.tar"))[: 1 if part.quick else NUM_SHARDS]:
        (shards / path.name).unlink(missing_ok=True)
        (shards / path.name).symlink_to(path.resolve())
    unfinished = part.work / "pictures-unfinished"
    prepare(shards, unfinished)
    unfinished.rename(part.work / "pictures")


def loader_rate(part: Part, batches: Iterator[Any], update: Callable[..., float]) -> float:
    """Tiles a second from the third batch on. The loss, read every step, waits for the device."""
    num_tiles, begin = 0, 0.0
    for number, pair in enumerate(batches):
        if number == 2:
            begin = now(part.device)
        clean, degraded = (pixels.to(part.device) for pixels in pair)
        update(clean, degraded)
        if number < 2:
            continue
        num_tiles += len(clean)
        seconds = time.perf_counter() - begin
        if seconds > (0.1 if part.quick else RATE_SECONDS):
            return num_tiles / seconds
    raise AssertionError("its batches never end")
