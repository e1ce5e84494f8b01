"""Loss, PSNR and times of the training steps, summed between two log lines."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from srcnn.runtime.errors import UserError
from srcnn.training.state import TrainState


class Meter:
    """Sums over the steps since the last log line; they stay on the device until they are read."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.gradient_norm = self.learning_rate = 0.0  # of the last step
        self.restart()

    def restart(self) -> None:
        self.waited = 0.0  # seconds for data
        self.tiles_before = 0.0  # of the sums: tiles of an earlier process, whose time is not known
        self.start = time.perf_counter()
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # PSNR in, PSNR out, loss, tiles

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes what is done within from the time that steps take."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.start += time.perf_counter() - begin

    def add(self, sums: torch.Tensor, gradient_norm: float, learning_rate: float) -> None:
        """Adds a step: float64 (4,), PSNR in, PSNR out, loss and 1, each summed over its tiles."""
        self.sums += sums
        self.gradient_norm, self.learning_rate = gradient_norm, learning_rate

    def read(self, state: TrainState, save_overdue: bool = False) -> tuple[dict[str, float], bool]:
        """The means over all ranks since the last restart (no loss and PSNR if all steps were skipped), and whether
        `save_overdue` is set on any rank, which is reduced with the sums.
        """
        seconds = time.perf_counter() - self.start
        others = torch.tensor([self.waited, save_overdue, self.tiles_before], dtype=torch.float64, device=self.device)
        totals = self.accelerator.reduce(torch.cat([self.sums, others])).tolist()
        psnr_in, psnr_out, loss, num_tiles, waited_seconds, num_overdue, tiles_before = totals
        sums = {"train/loss": loss, "train/psnr_in": psnr_in, "train/psnr": psnr_out} if num_tiles else {}
        values = {key: total / num_tiles for key, total in sums.items()} | {
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "skipped_steps": state.skipped_steps,
            "tiles_per_second": (num_tiles - tiles_before) / seconds,
            "data_wait": waited_seconds / self.accelerator.num_processes / seconds,
            "memory_gib": memory_gib(self.device),
            "step": state.step,
        }
        return values, num_overdue > 0

    def state(self) -> dict[str, Any]:
        """This rank's sums as plain values."""
        last = {"gradient_norm": self.gradient_norm, "learning_rate": self.learning_rate}
        return last | {"sums": self.sums.tolist()}

    def load(self, states: list[dict[str, Any]]) -> None:
        """Restores the sums of all ranks: each its own, or where their number has changed, the first one all.

        Raises:
            ValueError: these are not finite sums.
        """
        if not states or any(len(state["sums"]) != len(self.sums) for state in states):
            raise UserError(f"sums of {len(states)} ranks: expected {len(self.sums)} for each of some")
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        if len(states) == num_ranks:
            sums = states[rank]["sums"]
        else:
            columns = zip(*(state["sums"] for state in states), strict=True)
            sums = [math.fsum(column) if rank == 0 else 0.0 for column in columns]
        self.sums = torch.tensor(sums, dtype=torch.float64, device=self.device)
        if not torch.isfinite(self.sums).all():
            raise UserError("sums that are not finite")
        self.tiles_before = sums[3]
        self.gradient_norm, self.learning_rate = states[0]["gradient_norm"], states[0]["learning_rate"]


def memory_gib(device: torch.device) -> float:
    """The most memory used so far, GiB: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
