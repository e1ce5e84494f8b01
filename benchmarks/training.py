"""The training step beside the source project's loop, and two ranks beside one: `python -m benchmarks.training --help`.

Steps: each variant is a process of its own on the same cores and has the same batches of real tiles in memory; they
alternate, some steps each, round after round, and between them the largest matrix product says what the device can do
at that moment. The source's loop is written out: its network, MSE, Adam, and PSNR of each batch.

Curves: all variants train from the same weights on the same batches; their losses are compared step by step, beside the
spread of two seeds. PSNR is that of the last pairs, which are never trained on, after the same number of tiles.

Ranks: the step with its stream as `launch/benchmark.py` measures it, in turn: one rank; two ranks over gloo; and two
runs of one rank at the same time, which is what the machine allows: two cores share its memory, cache and clock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.dataset import TILE_PIXELS, make_shards
from benchmarks.measure import WORK, Failed, alternate, call, log, machine, not_measured, table
from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import Batch
from srcnn.data.transforms import to_float_batch
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize
from srcnn.photos.metrics import tile_psnr
from srcnn.runtime.torch_internals import cpu_has_bf16
from srcnn.training import trainer as trainer_module
from srcnn.training.benchmark import DTYPES, PEAK_SIDES, matrix_peak, now, training_flop
from srcnn.training.config import TrainConfig
from srcnn.training.optimizer import OptimizerConfig
from srcnn.training.step import resolve_pending_step, train_step

PARTS = ("step", "curves", "ranks")
# Name -> the precision of srcnn's step, and whether it is compiled; None: the source's loop.
Variant = tuple[str, bool] | None
SOURCE = "source's loop"
VARIANTS: dict[str, Variant] = {SOURCE: None, "srcnn fp32": ("no", False), "srcnn bf16": ("bf16", False)}
COMPILED: dict[str, Variant] = {"srcnn fp32, compiled": ("no", True), "srcnn bf16, compiled": ("bf16", True)}
NUM_VAL_PAIRS = 128  # the last ones, never trained on
LR = 1e-4  # at 1e-3 Adam blows up rounding: within 100 steps float32 parts from float32 added in another order
QUICK = {"rounds": 1, "num_steps": 1, "rank_steps": 2, "curve_steps": 2, "batch_size": 2, "curve_batch_size": 2,
         "num_val_pairs": 2, "num_pairs": NUM_VAL_PAIRS + 32}
Step = Callable[[Batch], float]  # gives the loss


class SourceNetwork(nn.Module):
    """The source project's network: every layer padded by 2 with replicated edges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 9, padding=2, padding_mode="replicate")
        self.conv2 = nn.Conv2d(64, 32, 1, padding=2, padding_mode="replicate")
        self.conv3 = nn.Conv2d(32, 1, 5, padding=2, padding_mode="replicate")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv1(pixels))
        restored: torch.Tensor = self.conv3(torch.relu(self.conv2(features)))
        return restored


def source_step(seed: int, device: torch.device) -> tuple[Step, nn.Module]:
    """The source's loop: eager, float32, the batch at once; its PSNR is a number on the host every step."""
    start = SRCNN()
    initialize(start, "pytorch", seed)
    network = SourceNetwork()
    network.load_state_dict(start.state_dict())
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    criterion = nn.MSELoss()

    def step(batch: Batch) -> float:
        clean, degraded = (tiles.unsqueeze(1).float() / 255 for tiles in (batch.clean, batch.degraded))
        optimizer.zero_grad()
        restored = network(degraded)
        loss = criterion(restored, clean)
        loss.backward()
        optimizer.step()
        (20 * torch.log10(1 / torch.sqrt(torch.mean((restored.detach() - clean) ** 2)))).item()
        return float(loss.item())

    return step, network


def srcnn_step(seed: int, precision: Any, compile: bool, batch_size: int) -> tuple[Step, nn.Module]:
    """The product's own step, with the source's settings."""
    config = TrainConfig(
        initialization="pytorch", centred=False, augment=False, seed=seed, optimizer=OptimizerConfig(lr=LR),
        batch_size_per_process=batch_size, mixed_precision=precision, compile=compile,
    )  # fmt: skip
    trainer = trainer_module.Trainer(config, datasets=(None, None))

    def step(batch: Batch) -> float:
        trainer.meter.restart()
        trainer.config = replace(config, batch_size_per_process=len(batch.clean))
        train_step(trainer, batch)
        resolve_pending_step(trainer)
        return float(trainer.meter.sums[2] / trainer.meter.sums[3])

    return step, trainer.network


@dataclass(frozen=True)
class Trainer:
    """One variant, in a process of its own; its methods are called there (see `start_trainers`)."""

    variant: Variant
    shards: Path
    device: str
    batch_size: int

    def new(self, seed: int) -> tuple[Step, nn.Module]:
        if self.variant is None:
            return source_step(seed, torch.device(self.device))
        return srcnn_step(seed, *self.variant, self.batch_size)

    @cache
    def step(self) -> Step:
        """The same training for all rounds."""
        return self.new(seed=0)[0]

    @cache
    def tiles(self) -> tuple[torch.Tensor, ...]:
        """Clean and degraded, uint8 (N, H, W), on the device."""
        reader = ShardDataset(self.shards)
        return tuple(torch.from_numpy(tiles).to(self.device) for tiles in reader.read(np.arange(reader.num_samples)))

    def pairs(self, samples: torch.Tensor) -> Batch:
        clean, degraded = (tiles[samples.to(self.device)] for tiles in self.tiles())
        return Batch(clean, degraded, samples, torch.zeros(len(samples), dtype=torch.uint8, device=self.device))

    def batch(self, number: int, batch_size: int) -> Batch:
        """The same for all variants."""
        choice = np.random.default_rng(number).integers(0, len(self.tiles()[0]) - NUM_VAL_PAIRS, batch_size)
        return self.pairs(torch.from_numpy(choice))

    def tiles_per_second(self, num_steps: int) -> float:
        step = self.step()
        batches = [self.batch(number, self.batch_size) for number in range(num_steps)]
        begin = now(torch.device(self.device))
        for batch in batches:
            step(batch)
        return num_steps * self.batch_size / (now(torch.device(self.device)) - begin)

    def peak(self, sides: tuple[int, ...]) -> float:
        """Operations a second of the fastest square matrix product in the precision of this variant."""
        precision = self.variant[0] if self.variant else "no"
        return matrix_peak(torch.device(self.device), DTYPES.get(precision, torch.float32), sides)

    def memory_gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device != "cpu" else float("nan")

    def curve(self, seed: int, num_steps: int, batch_size: int, num_val_pairs: int) -> tuple[list[float], float]:
        """The losses of training anew, and PSNR in dB on pairs it has not seen."""
        step, network = self.new(seed)
        losses = [step(self.batch(number, batch_size)) for number in range(num_steps)]
        samples = torch.arange(len(self.tiles()[0]))[-num_val_pairs:]
        clean, degraded = to_float_batch(self.pairs(samples))
        plain = SRCNN().to(self.device)
        plain.load_state_dict(network.state_dict())
        with torch.inference_mode():
            restored = torch.cat([plain(part).clamp(0, 1) for part in degraded.split(1)])
        return losses, tile_psnr(clean, restored).mean().item()


Remote = Callable[..., Any]  # (method of Trainer, its arguments) -> its result


def shards_of(options: argparse.Namespace) -> Path:
    """The folder with train/ below it; made when first asked for."""
    return make_shards(options.work / f"training-{options.num_pairs}", options.photos, options.num_pairs) / "npy"


def start_trainers(options: argparse.Namespace, variants: dict[str, Variant], stack: ExitStack) -> dict[str, Remote]:
    """A process for each variant, on the first `options.cores` cores, that waits for calls of Trainer's methods.

    On a CPU without a unit for bfloat16, which would emulate it for minutes, its variants are left out.
    """
    if options.device == "cpu" and not cpu_has_bf16():
        log("bf16 is left out: this processor has no unit for it")
        variants = {name: variant for name, variant in variants.items() if variant is None or variant[0] != "bf16"}
    shards = shards_of(options) / "train"
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Accelerate would take a GPU that is there
    trainers: dict[str, Remote] = {}
    for name, variant in variants.items():
        pool = stack.enter_context(
            ProcessPoolExecutor(1, get_context("spawn"), initializer=use_cores, initargs=(options.cores,)))
        trainer = Trainer(variant, shards, options.device, options.batch_size)
        trainers[name] = partial(call_in_pool, pool, trainer)
    return trainers


def use_cores(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)


def call_in_pool(pool: ProcessPoolExecutor, trainer: Trainer, method: Callable[..., Any], *arguments: Any) -> Any:
    """Raises Failed if the variant cannot run here, as one that is compiled where there is no compiler."""
    try:
        return pool.submit(method, trainer, *arguments).result()
    except Exception as error:
        raise Failed(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def measure_steps(options: argparse.Namespace, trainers: dict[str, Remote]) -> str:
    """Tiles/s of each variant, times the source's, and its share of the largest matrix product's rate."""
    def measure(trainer: Remote) -> dict[str, float]:
        return {"rate": trainer(Trainer.tiles_per_second, options.num_steps), "memory": trainer(Trainer.memory_gib),
                "peak": trainer(Trainer.peak, (256,) if options.quick else PEAK_SIDES)}

    failed: dict[str, str] = {}
    measures = {name: partial(measure, trainer) for name, trainer in trainers.items()}
    if not options.quick:
        alternate(measures, 1, failed)  # warms up, compiles
    results = alternate(measures, options.rounds, failed)
    rates = {name: median(one["rate"] for one in found) for name, found in results.items()}
    flop = training_flop(ModelConfig(), TILE_PIXELS)
    rows = []
    for name, found in results.items():
        share = median(one["rate"] * flop / one["peak"] for one in found)
        memory = found[-1]["memory"]
        rows.append([name, f"{rates[name]:,.0f}", f"{rates[name] / rates[SOURCE]:.1f}",
                     f"{rates[name] * flop / 1e9:,.0f}", f"{share:.0%}", f"{memory:.1f}" if memory == memory else ""])
    columns = ["step", "tiles/s", "times the source's", "GFLOP/s", "of the largest product's", "device memory, GiB"]
    about = f"9-1-5, batches of {options.batch_size} tiles of 128x128; medians of {options.rounds} alternating rounds."
    return "\n\n".join(filter(None, [about, table(columns, rows), not_measured(failed)]))


def measure_curves(options: argparse.Namespace, trainers: dict[str, Remote]) -> str:
    """How far the losses of each variant are from the source's, and PSNR at the end."""
    arguments = options.curve_steps, options.curve_batch_size, options.num_val_pairs
    found = {}
    for name, trainer in trainers.items():
        log(f"{options.curve_steps} steps: {name}")
        found[name] = trainer(Trainer.curve, 0, *arguments)
    found["srcnn fp32, another seed"] = trainers["srcnn fp32"](Trainer.curve, 1, *arguments)
    source = np.array(found[SOURCE][0])
    rows = []
    for name, (losses, psnr) in found.items():
        apart = np.abs(np.array(losses) - source) / source
        rows.append([name, f"{np.median(apart):.1e}", f"{apart.max():.1e}", f"{psnr:.3f}"])
    about = f"Relative difference of the losses of {options.curve_steps} steps of {options.curve_batch_size} tiles:"
    return f"{about}\n\n{table(['trained by', 'median', 'largest', 'PSNR then, dB'], rows)}"


def launch(config: str, shards: Path, cores: set[int] | None, *settings: str) -> dict[str, Any]:
    """What launch/benchmark.py writes, launched with configs/accelerate/CONFIG.yaml, a core for each rank."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        call([
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{config}.yaml",
            "--main_process_port", "0", "launch/benchmark.py", "--shards", shards, "--json", result,
            "--trackers", "[]", "--num_rounds", "1", *settings,
        ], cores, environment={"OMP_NUM_THREADS": "1"} if cores else {})  # fmt: skip
        return dict(json.loads(result.read_text()))


def measure_ranks(options: argparse.Namespace) -> str:
    """Tiles/s of one rank, two ranks and two runs of one rank at once, a core each; the phases of a step of two."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return "Not measured: two ranks need two cores."
    shards = shards_of(options)
    settings = ["--model.residual", "true", "--mixed_precision", "auto", "--num_steps", str(options.rank_steps),
                "--batch_size_per_process", str(options.batch_size)]

    def two_runs() -> dict[str, Any]:
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda core: launch("cpu", shards, {core}, *settings), cores))
        return {"tiles_per_second": sum(run["tiles_per_second"] for run in runs)}

    results = alternate({
        "one rank": lambda: launch("cpu", shards, {cores[0]}, *settings),
        "two ranks": lambda: launch("cpu2", shards, set(cores), *settings),
        "two runs at once": two_runs,
    }, options.rounds)
    rates = {name: median(one["tiles_per_second"] for one in found) for name, found in results.items()}
    rows = [[name, f"{rate:,.0f}", f"{rate / (2 * rates['one rank']):.2f}"] for name, rate in rates.items()]
    phases = [one["seconds_per_step"] for one in results["two ranks"]]
    step = {name: median(one[name] for one in phases) for name in phases[0]}
    shares = ", ".join(f"{name} {seconds / sum(step.values()):.1%}" for name, seconds in step.items())
    wait = median(one["data_wait"] for one in results["two ranks"])
    return (f"{table(['a core each', 'tiles/s', 'of twice one rank'], rows)}\n\n"
            f"Of a step of two ranks: {shares}. Waiting for data while undisturbed: {wait:.1%}.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the training step beside the source project's, and ranks.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--work", type=Path, default=WORK, help="tiles, kept between calls")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compiled", action="store_true", help="the steps also with torch.compile")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=4, help="of each variant in a round")
    parser.add_argument("--rank_steps", type=int, default=15, help="the same, of each rank")
    parser.add_argument("--curve_steps", type=int, default=500)
    parser.add_argument("--curve_batch_size", type=int, default=8)
    parser.add_argument("--num_pairs", type=int, default=2048, help="at least so many are made")
    parser.add_argument("--num_val_pairs", type=int, default=NUM_VAL_PAIRS, help="for the PSNR of the curves")
    parser.add_argument("--quick", action="store_true", help="does it work?")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    return options


def main() -> int:
    options = parse()
    with ExitStack() as stack:
        trainers = start_trainers(options, VARIANTS | (COMPILED if options.compiled else {}), stack)
        if "step" in options.only:
            print(f"{measure_steps(options, trainers)}\n", flush=True)
        if "curves" in options.only:
            print(f"{measure_curves(options, trainers)}\n", flush=True)
    if "ranks" in options.only:
        print(f"{measure_ranks(options)}\n")
    print(machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
