"""How fast a training run of given settings goes on this machine, and where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from srcnn.config import plain
from srcnn.distributed import sum_over_ranks
from srcnn.files import write_json
from srcnn.loader import Batch
from srcnn.meter import Meter, memory_gib
from srcnn.srcnn_model import ModelConfig
from srcnn.state import Run, open_split, start_accelerator, start_run
from srcnn.step import resolve_pending_step, train_step
from srcnn.train_config import TrainConfig
from srcnn.trainer import batches
from srcnn.unet import UNetConfig
from srcnn.weights_io import make_network

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
        num_rounds: stretches with the real stream and with one batch again and again, in turn; medians are told.
        json: write the numbers to this file too.
        trace: write a profiler's trace of three steps to this file (for perfetto.dev or chrome://tracing).
    """

    num_steps: int = 10
    num_rounds: int = 3
    json: str = ""
    trace: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_steps, self.num_rounds) < 1:
            raise ValueError("num_steps and num_rounds: expected at least 1")


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures the steps of a run on all its ranks; the main process prints the table and writes `json`.

    Returns:
        What `json` holds: tiles/s over all ranks with the stream and without it, GFLOP/s, seconds of each phase.

    Raises:
        FileNotFoundError, ShardError: no shards, or not what their manifest says.
        OSError, ValueError: samples cannot be read.
    """
    config = replace(config, total_samples=ENDLESS)
    accelerator = start_accelerator(config)
    reader = open_split(config, "train")
    run = start_run(config, accelerator)
    meter = Meter(accelerator.device)
    stream = batches(config, run, reader, meter)
    try:
        measured = measure_rates(config, run, stream, meter)
        if config.trace:
            write_trace(config, run, stream, meter)
        phases = measure_phases(config, run, stream, meter)
    finally:
        reader.close()
    results = about(config, run) | measured | {"seconds_per_step": phases, "memory_gib": memory_gib(accelerator.device)}
    flop = training_flop(config.network, config.pair_shape(reader.tile_shape)[0])
    results["gflop_per_tile"] = flop / 1e9
    results["share_of_peak"] = flop * results["tiles_per_second_synthetic"] / 1e9 / results["peak_gflop_per_second"]
    if accelerator.is_main_process:
        print(table(results))
        if config.json:
            write_json(Path(config.json), results | {"config": plain(asdict(config))})
    return results


def about(config: BenchmarkConfig, run: Run) -> dict[str, Any]:
    """What is measured, and on what."""
    accelerator = run.accelerator
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} cores"
    batch_size = config.global_batch_size(accelerator.num_processes)
    return {
        "ranks": accelerator.num_processes,
        "device_of_each": name,
        "precision": accelerator.mixed_precision,
        "batch_size": batch_size,
        "tiles_at_once": config.tiles_at_once(device.type, -(-batch_size // accelerator.num_processes)),
        "gradient_bytes": sum(parameter.numel() * 4 for parameter in run.network.parameters()),
    }


def training_flop(config: ModelConfig | UNetConfig, tile_pixels: int) -> int:
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
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_rates(config: BenchmarkConfig, run: Run, stream: Iterator[Batch], meter: Meter) -> dict[str, Any]:
    """Tiles/s over all ranks with the stream, and with one batch again and again; GFLOP/s of products between them."""
    device = run.accelerator.device
    dtype = DTYPES.get(run.accelerator.mixed_precision, torch.float32)

    def peak() -> float:
        run.accelerator.wait_for_everyone()
        return over_ranks(matrix_peak(device, dtype), device) / 1e9

    return alternate(config, run, stream, meter, "peak_gflop_per_second", peak)


def alternate(
    config: BenchmarkConfig, run: Run, stream: Iterator[Batch], meter: Meter, name_between: str,
    between: Callable[[], float],
) -> dict[str, Any]:
    """Medians over the rounds, and all of them: tiles/s over all ranks with the stream, and with one of its batches
    again and again; the share of time that the stream is waited for; and what is measured between the rounds.
    """
    device = run.accelerator.device
    same = next(stream).map(torch.clone)
    found: dict[str, list[float]] = defaultdict(list)
    for batch in (same, next(stream), next(stream)):
        train_step(config, run, batch, meter)
    for _ in range(config.num_rounds):
        for name, source in (("tiles_per_second", stream), ("tiles_per_second_synthetic", repeat(same))):
            meter.restart()
            seconds = stretch(config, run, source, meter)
            found[name].append(config.num_steps * config.global_batch_size(run.accelerator.num_processes) / seconds)
            if source is stream:
                found["data_wait"].append(over_ranks(meter.waited / seconds, device) / run.accelerator.num_processes)
        found[name_between].append(between())
    return {name: median(values) for name, values in found.items()} | {"rounds": dict(found)}


def stretch(config: BenchmarkConfig, run: Run, source: Iterator[Batch], meter: Meter) -> float:
    """Seconds of `num_steps` steps, from when all ranks begin to when the last has ended."""
    device = run.accelerator.device
    run.accelerator.wait_for_everyone()
    begin = now(device)
    for batch in islice(source, config.num_steps):
        train_step(config, run, batch, meter)
    resolve_pending_step(config, run, meter)
    now(device)
    run.accelerator.wait_for_everyone()
    return now(device) - begin


def over_ranks(value: float, device: torch.device) -> float:
    """The sum over all ranks."""
    return sum_over_ranks(torch.tensor(value, dtype=torch.float64, device=device)).item()


class Timed:
    """An object whose calls, or calls of some methods, are timed; for the rest it is the object."""

    def __init__(self, inner: Any, timed: Callable[..., Any], **phases: str) -> None:
        self.__dict__.update(inner=inner, timed=timed, phases=phases)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self.timed(self.phases[name], found) if name in self.phases else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def __call__(self, *arguments: Any) -> Any:
        return self.timed(self.phases["__call__"], self.inner)(*arguments)


def measure_phases(config: BenchmarkConfig, run: Run, stream: Iterator[Batch], meter: Meter) -> dict[str, float]:
    """Seconds of a step's phases, on the main process. The device is waited for at each end, so that on a GPU they add
    up to more than an undisturbed step takes.
    """
    seconds: dict[str, float] = defaultdict(float)
    device = run.accelerator.device

    def timed(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **named: Any) -> Any:
            begin = now(device)
            result = call(*arguments, **named)
            seconds[phase] += now(device) - begin
            return result

        return timing

    def all_reduce(gradients: torch.Tensor) -> Any:
        done: Any = torch.futures.Future()
        timed("all-reduce", dist.all_reduce)(gradients.div_(run.accelerator.num_processes))
        done.set_result(gradients)
        return done

    if isinstance(run.model, DistributedDataParallel):
        run.model.register_comm_hook(None, lambda _, bucket: all_reduce(bucket.buffer()))
    watched: dict[str, Any] = {
        "accelerator": Timed(run.accelerator, timed, backward="backward", clip_grad_norm_="optimizer"),
        "model": Timed(run.model, timed, __call__="forward"),
        "optimizer": Timed(run.optimizer, timed, step="optimizer", zero_grad="optimizer"),
        "to_float_batch": timed("bytes to floats", run.to_float_batch),
    }
    watched_run, watched_meter = replace(run, **watched), cast(Meter, Timed(meter, timed, add="meter"))
    begin = now(device)
    for _ in range(config.num_steps):
        train_step(config, watched_run, timed("waiting for data", next)(stream), watched_meter)
    total = now(device) - begin
    seconds["backward"] -= seconds.get("all-reduce", 0.0)
    seconds["the rest"] = total - sum(seconds.values())
    return {phase: part / config.num_steps for phase, part in seconds.items()}


def write_trace(config: BenchmarkConfig, run: Run, stream: Iterator[Batch], meter: Meter) -> None:
    """A trace of the main process's next steps."""
    with profile() if run.accelerator.is_main_process else nullcontext() as profiler:
        for batch in islice(stream, NUM_TRACED_STEPS):
            train_step(config, run, batch, meter)
    if profiler:
        profiler.export_chrome_trace(config.trace)


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
