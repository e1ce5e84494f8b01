"""Training on shards of this machine: what the stream costs beside one batch again and again; an epoch's seconds."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import torch

from benchmarks.gpu_part import Part, forget_accelerator, product_settings
from benchmarks.measure import set_state
from srcnn.profile_step import ENDLESS, BenchmarkConfig, measure_rates, time_steps
from srcnn.stream import StreamConfig
from srcnn.trainer import Trainer

EPOCH_TILES = 13_056  # the source project's training set: 12 batches of 1,088, 3 of 4,352
WAYS = (("device", 2), ("host", 2), ("no", 2), ("host", 8), ("no", 8), ("no", 16))  # resident, threads
BATCHES = {1088: WAYS, 4352: WAYS, 256: WAYS[:1]}  # 256 is that of configs/srcnn-915-gpu.yaml
STRETCH_SECONDS = 0.3
EXPECTED_RATE = 50_000  # tiles/s, where the step's part has found none
VARIANT_SECONDS = 60.0


def measure(part: Part) -> None:
    set_state(part.shards, "page cache")
    sizes = {4: WAYS[:3], 2: WAYS[:1]} if part.quick else BATCHES
    rows: list[dict[str, Any]] = []
    part.note(epoch_tiles=16 if part.quick else EPOCH_TILES)
    for batch_size, ways in sizes.items():
        part.attempt(f"batch {batch_size}", lambda: measure_batch(part, batch_size, ways, rows))


def measure_batch(part: Part, batch_size: int, ways: tuple[tuple[str, int], ...], rows: list[dict[str, Any]]) -> None:
    """All ways to bring batches of this size, on one run: what it compiles is compiled once."""
    torch._dynamo.reset()  # another size shall not become a size of any kind
    forget_accelerator()
    config = BenchmarkConfig(
        shards=str(part.shards), mixed_precision="bf16", initialization="pytorch", centred=False, augment=False,
        batch_size_per_process=batch_size, total_samples=ENDLESS, num_rounds=1 if part.quick else 3,
        **product_settings(part),
    )  # fmt: skip
    trainer = Trainer(config)
    with closing(trainer):
        for resident, threads in ways:
            stream = StreamConfig(resident=cast(Any, resident), num_threads=threads)
            name = f"resident {resident}, {threads} threads, batch {batch_size}"
            row = part.attempt(name, lambda: measure_way(part, replace(config, stream=stream), trainer),
                               VARIANT_SECONDS)
            if row is not None:
                rows.append({"batch_size": batch_size, "resident": resident, "num_threads": threads} | row)
                part.note(rows=rows, compile=config.compile)


def measure_way(part: Part, config: BenchmarkConfig, trainer: Trainer) -> dict[str, Any]:
    """Tiles/s with this stream and with one of its batches again and again, share of time that it is waited for, and
    the seconds of an epoch of the source's size.
    """
    rates = part.of_part("step").get("rates", {})
    rate = max((row["tiles_per_second"] for row in rates.values() if "compile" in row), default=EXPECTED_RATE)
    batch_size = config.batch_size_per_process
    num_steps = 1 if part.quick else max(3, round(STRETCH_SECONDS * rate / batch_size))
    trainer.config = config
    num_steps_of_epoch = -(-part.found["epoch_tiles"] // batch_size)
    batches = trainer.batches()
    with closing(batches):
        measured = measure_rates(trainer, batches, num_steps, config.num_rounds)
        return measured | {"epoch_seconds": time_steps(trainer, batches, num_steps_of_epoch)}
