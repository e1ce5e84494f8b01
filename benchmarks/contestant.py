"""One way to train, in a process of its own, for `benchmarks.step`: it is told on standard input what to do next."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from srcnn.metrics import tile_psnr
from srcnn.model import SRCNN, initialize
from srcnn.optimizer import OptimizerConfig
from srcnn.profile_step import DTYPES, matrix_peak
from srcnn.reader import ShardReader
from srcnn.step import resolve_pending_step, train_step
from srcnn.stream import Batch
from srcnn.train_config import TrainConfig
from srcnn.trainer import Trainer
from srcnn.transforms import to_float_batch

NUM_VAL_PAIRS = 128  # the last ones, never trained on
LR = 1e-4  # at 1e-3 Adam blows up rounding: within 100 steps float32 parts from float32 added in another order
CPU = torch.device("cpu")
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


def source_update(
    seed: int, device: torch.device
) -> tuple[Callable[[torch.Tensor, torch.Tensor], float], nn.Module]:
    """The source's loop: eager, float32, the batch at once; its PSNR is a number on the host every step. The update
    takes (clean, degraded) as floats (N, 1, H, W) in [0, 1] and gives the loss.
    """
    start = SRCNN()
    initialize(start, "pytorch", seed)
    network = SourceNetwork()
    network.load_state_dict(start.state_dict())
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    criterion = nn.MSELoss()

    def update(clean: torch.Tensor, degraded: torch.Tensor) -> float:
        optimizer.zero_grad()
        restored = network(degraded)
        loss = criterion(restored, clean)
        loss.backward()
        optimizer.step()
        (20 * torch.log10(1 / torch.sqrt(torch.mean((restored.detach() - clean) ** 2)))).item()
        return float(loss.item())

    return update, network


def source_step(seed: int, device: torch.device = CPU) -> tuple[Step, nn.Module]:
    """`source_update` of batches as they lie in the shards, on the device."""
    update, network = source_update(seed, device)

    def step(batch: Batch) -> float:
        return update(*(tiles.unsqueeze(1).float() / 255 for tiles in (batch.clean, batch.degraded)))

    return step, network


def our_step(seed: int, precision: str, batch_size: int, **settings: Any) -> tuple[Step, nn.Module]:
    """The product's own step, with the source's settings; `settings` are others of TrainConfig."""
    config = TrainConfig(
        initialization="pytorch", centred=False, augment=False, seed=seed, optimizer=OptimizerConfig(lr=LR),
        batch_size_per_process=batch_size, mixed_precision=precision if precision in DTYPES else "no", **settings,
    )  # fmt: skip
    trainer = Trainer(config, datasets=(None, None))

    def step(batch: Batch) -> float:
        trainer.meter.restart()
        trainer.config = replace(config, batch_size_per_process=len(batch.clean))
        train_step(trainer, batch)
        resolve_pending_step(trainer)
        return float(trainer.meter.sums[2] / trainer.meter.sums[3])

    return step, trainer.network


class Contestant:
    """Answers `steps N`, `peak` and `curve SEED`, each with a line of JSON."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.reader = ShardReader(options.shards)
        clean, degraded = self.reader.read(np.arange(self.reader.num_samples))
        self.tiles = torch.from_numpy(clean), torch.from_numpy(degraded)
        self.step, _ = self.new(seed=0)
        self.num_taken = 0

    def new(self, seed: int) -> tuple[Step, nn.Module]:
        if self.options.name == "source":
            return source_step(seed)
        return our_step(seed, self.options.name, self.options.batch_size)

    def batch(self, number: int, batch_size: int) -> Batch:
        """The same for all contestants."""
        choice = np.random.default_rng(number).integers(0, self.reader.num_samples - NUM_VAL_PAIRS, batch_size)
        return self.pairs(torch.from_numpy(choice))

    def pairs(self, samples: torch.Tensor) -> Batch:
        clean, degraded = (tiles[samples] for tiles in self.tiles)
        return Batch(clean, degraded, samples, torch.zeros(len(samples), dtype=torch.uint8))

    def steps(self, num_steps: int) -> dict[str, Any]:
        batches = [self.batch(self.num_taken + number, self.options.batch_size) for number in range(num_steps)]
        self.num_taken += num_steps
        begin = time.perf_counter()
        for batch in batches:
            self.step(batch)
        return {"seconds": time.perf_counter() - begin}

    def peak(self) -> dict[str, Any]:
        dtype = DTYPES.get(self.options.name, torch.float32)
        return {"gflop_per_second": matrix_peak(torch.device("cpu"), dtype) / 1e9}

    def curve(self, seed: int) -> dict[str, Any]:
        step, network = self.new(seed)
        batch_size = self.options.curve_batch_size
        losses = [step(self.batch(number, batch_size)) for number in range(self.options.curve_steps)]
        clean, degraded = to_float_batch(self.pairs(torch.arange(self.reader.num_samples)[-NUM_VAL_PAIRS:]))
        plain = SRCNN()
        plain.load_state_dict(network.state_dict())
        with torch.inference_mode():
            restored = torch.cat([plain(part).clamp(0, 1) for part in degraded.split(1)])
        return {"losses": losses, "psnr": tile_psnr(clean, restored).mean().item()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--shards", type=Path, required=True)
    for key in ("cores", "batch_size", "curve_steps", "curve_batch_size"):
        parser.add_argument(f"--{key}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    contestant = Contestant(options)
    for line in sys.stdin:
        what, *numbers = line.split()
        print(json.dumps(getattr(contestant, what)(*map(int, numbers))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
