"""What a training step costs and gives, summed between two log lines."""

from __future__ import annotations

import math
import resource
import sys
import time

import torch

from srcnn.metrics import sum_over_ranks, tile_psnr
from srcnn.run import Run


class Meter:
    """Sums over the steps since the last log line; they stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gradient_norm: torch.Tensor | float | None = 0.0
        self.restart()

    def restart(self) -> None:
        self.waited = 0.0
        self.began = time.perf_counter()
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # PSNR in, PSNR out, loss, tiles

    @torch.no_grad()
    def add(self, loss_sum: torch.Tensor, clean: torch.Tensor, degraded: torch.Tensor, restored: torch.Tensor) -> None:
        """Adds a step's tiles and the sum of their mean squared errors."""
        self.sums[0] += tile_psnr(clean, degraded).sum()
        self.sums[1] += tile_psnr(clean, restored.clamp(0, 1)).sum()
        self.sums[2] += loss_sum
        self.sums[3] += len(clean)

    def read(self, run: Run) -> dict[str, float]:
        """The means over all ranks, and starts again. Raises FloatingPointError where the loss is not finite."""
        seconds = time.perf_counter() - self.began
        waited = torch.tensor([self.waited], dtype=torch.float64, device=self.device)
        totals = sum_over_ranks(torch.cat([self.sums, waited])).tolist()
        psnr_in, psnr_out, loss, num_tiles, waited_seconds = totals
        values = {
            "train/loss": loss / num_tiles,
            "train/psnr_in": psnr_in / num_tiles,
            "train/psnr": psnr_out / num_tiles,
            "learning_rate": run.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(self.gradient_norm or 0),
            "skipped_steps": run.skipped_steps,
            "tiles_per_second": num_tiles / seconds,
            "data_wait": waited_seconds / run.accelerator.num_processes / seconds,
            "memory_gib": memory_gib(self.device),
            "step": run.step,
        }
        if not math.isfinite(values["gradient_norm"]):
            del values["gradient_norm"]  # fp16 overflowed: the step was skipped and counted
        self.restart()
        if not math.isfinite(values["train/loss"]):
            loss_text = f"the loss is {values['train/loss']} after {run.samples} tiles"
            raise FloatingPointError(f"{loss_text}: lower optimizer.lr and start a new run")
        return values


def memory_gib(device: torch.device) -> float:
    """The most memory used so far, GiB: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
