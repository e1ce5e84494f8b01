"""How fast a training run of given settings goes on this machine, and where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from srcnn.data.loader import Batch
from srcnn.models.base import NetworkConfig, make_network
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_json
from srcnn.runtime.settings import plain
from srcnn.training.config import TrainConfig
from srcnn.training.meter import memory_gib
from srcnn.training.setup import open_split
from srcnn.training.step import resolve_pending_step, train_step
from srcnn.training.trainer import Trainer

ENDLESS = 10**12  # tiles
NUM_TRACED_STEPS = 3
PEAK_SIDES = (1024, 2048, 4096)  # of the square products, the fastest of which is taken for the device's peak
PEAK_SECONDS = 0.2  # about so long a product is repeated
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BenchmarkConfig(TrainConfig):
    """A training run's settings, and how to measure it. Nothing is written to the run's folder.

    Args:
        num_steps: optimizer steps of a stretch that is timed.
        num_rounds: stretches with the real stream and with one batch again and again, in turn; medians are reported.
        json: write the numbers to this file too.
        trace: write a profiler's trace of three steps to this file (for perfetto.dev or chrome://tracing).
    """

    COMMON = {"how it is measured": ("num_steps", "num_rounds", "json", "trace"), **TrainConfig.COMMON}

    num_steps: int = 10
    num_rounds: int = 3
    json: str = ""
    trace: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_steps, self.num_rounds) < 1:
            raise UserError("num_steps and num_rounds: expected at least 1")


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures the steps of a run on all its ranks; the main process prints the table and writes `json`.

    Returns:
        What `json` holds: tiles/s over all ranks with the stream and without it, GFLOP/s, seconds of each phase.

    Raises:
        UserError, FileNotFoundError, ShardError: no shards, or not what their manifest says.
        OSError, ValueError: samples cannot be read.
    """
    dataset = open_split(config, "train")  # shards without validation photos will do
    trainer = TimedTrainer(replace(config, total_samples=ENDLESS), datasets=(dataset, dataset))
    accelerator = trainer.accelerator
    batches = trainer.batches()
    try:
        measured = measure_rates(trainer, batches, config.num_steps, config.num_rounds)
        if config.trace:
            write_trace(trainer, batches, config.trace)
        phases = measure_phases(trainer, batches, config.num_steps)
    finally:
        trainer.close()
    results = describe(trainer) | measured
    results |= {"seconds_per_step": phases, "memory_gib": memory_gib(accelerator.device)}
    flop = training_flop(config.architecture, config.pair_shape(trainer.dataset.tile_shape)[0])
    results["gflop_per_tile"] = flop / 1e9
    results["share_of_peak"] = flop * results["tiles_per_second_synthetic"] / 1e9 / results["peak_gflop_per_second"]
    if accelerator.is_main_process:
        print(table(results))
        if config.json:
            write_json(Path(config.json), results | {"config": plain(asdict(config))})
    return results


def describe(trainer: Trainer) -> dict[str, Any]:
    """What is measured, and on what."""
    accelerator, config = trainer.accelerator, trainer.config
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores"
    batch_size = config.global_batch_size(accelerator.num_processes)
    return {
        "ranks": accelerator.num_processes,
        "device_of_each": name,
        "precision": accelerator.mixed_precision,
        "batch_size": batch_size,
        "tiles_at_once": config.tiles_at_once(device.type, -(-batch_size // accelerator.num_processes)),
        "gradient_bytes": sum(parameter.numel() * 4 for parameter in trainer.network.parameters()),
    }


def training_flop(config: NetworkConfig, tile_pixels: int) -> int:
    """Floating-point operations that a tile costs in training, as PyTorch counts them for the plain convolutions:
    forward, and backward without the gradient of the pixels. A multiplication with its addition is two.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        make_network(config)(torch.empty(1, config.channels, tile_pixels, tile_pixels)).sum().backward()
    return int(counter.get_total_flops())


def matrix_peak(device: torch.device, dtype: torch.dtype, sides: Sequence[int] = PEAK_SIDES) -> float:
    """Operations a second of the fastest of some square matrix products; of one rank, while the others do the same."""
    rates = []
    for side in sides:
        matrix = torch.rand(side, side, device=device).to(dtype)
        begin, count = now(device), 0
        while (seconds := now(device) - begin) < PEAK_SECONDS:
            matrix @ matrix
            count += 1
        rates.append(2 * side**3 * count / seconds)
    return max(rates)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class TimedTrainer(Trainer):
    """A trainer whose phases can be timed. The device is waited for at both ends of each."""

    seconds: dict[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.seconds is None:
            with record_function(name):
                yield
            return
        begin = now(self.accelerator.device)
        yield
        self.seconds[name] += now(self.accelerator.device) - begin


def measure_rates(trainer: Trainer, batches: Iterator[Batch], num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Medians over the rounds, and all of them: tiles/s over all ranks with the stream, and with one of its batches
    again and again; the share of time that the stream is waited for; GFLOP/s of products between the rounds.
    """
    accelerator = trainer.accelerator
    device, dtype = accelerator.device, DTYPES.get(accelerator.mixed_precision, torch.float32)
    batch_size = trainer.config.global_batch_size(accelerator.num_processes)
    same = next(batches).map(torch.clone)
    rounds: dict[str, list[float]] = defaultdict(list)
    for batch in (same, next(batches), next(batches)):
        train_step(trainer, batch)
    for _ in range(num_rounds):
        for name, source in (("tiles_per_second", batches), ("tiles_per_second_synthetic", repeat(same))):
            trainer.meter.restart()
            seconds = time_steps(trainer, source, num_steps)
            rounds[name].append(num_steps * batch_size / seconds)
            if source is batches:
                rounds["data_wait"].append(sum_over_ranks(trainer, trainer.meter.waited / seconds)
                                           / accelerator.num_processes)
        accelerator.wait_for_everyone()
        rounds["peak_gflop_per_second"].append(sum_over_ranks(trainer, matrix_peak(device, dtype)) / 1e9)
    return {name: median(values) for name, values in rounds.items()} | {"rounds": dict(rounds)}


def time_steps(trainer: Trainer, batches: Iterator[Batch], num_steps: int) -> float:
    """Seconds of so many steps, from when all ranks begin to when the last has ended."""
    trainer.accelerator.wait_for_everyone()
    begin = now(trainer.accelerator.device)
    for batch in islice(batches, num_steps):
        train_step(trainer, batch)
    resolve_pending_step(trainer)
    now(trainer.accelerator.device)
    trainer.accelerator.wait_for_everyone()
    return now(trainer.accelerator.device) - begin


def sum_over_ranks(trainer: Trainer, value: float) -> float:
    device = trainer.accelerator.device
    return float(trainer.accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=device)))


def measure_phases(trainer: TimedTrainer, batches: Iterator[Batch], num_steps: int) -> dict[str, float]:
    """Seconds of a step's phases, on the main process; on a GPU they add up to more than an undisturbed step takes."""
    seconds = trainer.seconds = defaultdict(float)
    device = trainer.accelerator.device

    # No annotations: DDP accepts its own class there only, and not as the string that it is in this module.
    def all_reduce(_, bucket):  # type: ignore[no-untyped-def]
        reduced: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        with trainer.phase("all-reduce"):
            dist.all_reduce(bucket.buffer().div_(trainer.accelerator.num_processes))
        reduced.set_result(bucket.buffer())
        return reduced

    if isinstance(trainer.model, DistributedDataParallel):
        trainer.model.register_comm_hook(None, all_reduce)
    begin = now(device)
    for _ in range(num_steps):
        with trainer.phase("waiting for data"):
            batch = next(batches)
        train_step(trainer, batch)
    total = now(device) - begin
    seconds["backward"] -= seconds.get("all-reduce", 0.0)
    seconds["the rest"] = total - sum(seconds.values())
    trainer.seconds = None
    return {phase: part / num_steps for phase, part in seconds.items()}


def write_trace(trainer: Trainer, batches: Iterator[Batch], path: str) -> None:
    """A profiler's trace of the main process's next steps."""
    with profile() if trainer.accelerator.is_main_process else nullcontext() as profiler:
        for batch in islice(batches, NUM_TRACED_STEPS):
            train_step(trainer, batch)
    if profiler:
        profiler.export_chrome_trace(path)


def table(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    total = sum(results["seconds_per_step"].values())
    batch = f"batches of {results['batch_size']}, {results['tiles_at_once']} tiles at once"
    lines = [
        f"{results['ranks']} x {results['device_of_each']}, precision {results['precision']}, {batch}",
        "",
        "| of a step | ms | share |",
        "|---|---:|---:|",
        *(f"| {name} | {1e3 * part:.2f} | {part / total:.1%} |" for name, part in results["seconds_per_step"].items()),
        "",
        f"tiles/s: {results['tiles_per_second']:,.0f}",
        f"tiles/s with one batch again and again: {results['tiles_per_second_synthetic']:,.0f}",
        f"waiting for data: {results['data_wait']:.2%}",
        f"largest matrix product: {results['peak_gflop_per_second']:,.0f} GFLOP/s; training reaches "
        f"{results['share_of_peak']:.0%} of it at {results['gflop_per_tile']:.2f} GFLOP a tile",
        f"memory: {results['memory_gib']:.2f} GiB",
    ]
    return "\n".join(lines)
