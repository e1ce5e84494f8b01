"""Validation: every tile exactly once, the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator

from srcnn.data.dataset import ShardDataset
from srcnn.data.device_loader import copy_to_device
from srcnn.data.loader import LoaderConfig, val_batches
from srcnn.data.transforms import to_float_batch
from srcnn.models.base import Network
from srcnn.models.device import full_precision, to_device
from srcnn.models.perceptual import Distance
from srcnn.models.unet import to_luma
from srcnn.photos.metrics import ssim, tile_psnr
from srcnn.runtime import signals
from srcnn.runtime.distributed import run_on_all_ranks
from srcnn.runtime.errors import DivergedError
from srcnn.training.loss import conditions_for

BATCH_SIZE = {"cpu": 8, "cuda": 128}
SCORES = ("psnr_in", "psnr", "ssim_in", "ssim", "loss")
LUMA_SCORES = ("psnr_luma_in", "psnr_luma")


@torch.inference_mode()
def validate(
    model: Network, dataset: ShardDataset, accelerator: Accelerator, stream: LoaderConfig | None = None,
    group: Any = None, distances: Mapping[str, Distance] = MappingProxyType({}),
) -> dict[str, float]:
    """Scores the network in float32 on every pair of the split; exact means over the tiles of all ranks.

    Returns:
        val/psnr_in, val/psnr (dB; output clipped to [0, 1], not rounded), val/gain (dB), val/gain_percent, val/ssim_in,
        val/ssim, val/loss (mean squared error); of three channels also val/psnr_luma_in, val/psnr_luma (of
        `to_luma`); val/lpips_in and the like for each of `distances`.

    Raises:
        DivergedError: the network's output is not finite; on all ranks alike.
        DistributedError: a rank cannot read its pairs; on all ranks, where `group` is that of `new_cpu_group`.
        StopRequested: a rank was asked to stop; likewise.
    """
    model = to_device(model.without_centering(), accelerator.device).eval()  # free of autocast
    size = BATCH_SIZE.get(accelerator.device.type, 64)
    batches = val_batches(dataset, stream or LoaderConfig(), size, accelerator.process_index, accelerator.num_processes)

    def score() -> torch.Tensor:
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=accelerator.device)
        for batch in copy_to_device(batches, accelerator.device):
            if request := signals.stop_requested():
                raise request
            sums += score_sums(model, *to_float_batch(batch), *conditions_for(model, batch), distances=distances)
        return sums

    names: tuple[str, ...] = SCORES + LUMA_SCORES if len(dataset.tile_shape) == 3 else SCORES
    names += tuple(f"{name}{ending}" for name in distances for ending in ("_in", ""))
    *totals, num_tiles = accelerator.reduce(run_on_all_ranks(score, group)).tolist()
    if num_tiles != dataset.num_samples:
        raise RuntimeError(f"validation counted {num_tiles:g} tiles of {dataset.num_samples}")
    values = {f"val/{name}": total / num_tiles for name, total in zip(names, totals, strict=True)}
    if not math.isfinite(values["val/loss"]):
        raise DivergedError("the network's output is no longer finite: lower optimizer.lr and start a new run")
    values["val/gain"] = values["val/psnr"] - values["val/psnr_in"]
    values["val/gain_percent"] = 100 * values["val/gain"] / values["val/psnr_in"]
    return values


def score_sums(
    model: Network, clean: torch.Tensor, degraded: torch.Tensor, *conditions: torch.Tensor,
    distances: Mapping[str, Distance] = MappingProxyType({}),
) -> torch.Tensor:
    """SCORES, of three channels LUMA_SCORES too, two of each of `distances`, and 1, each summed over the tiles, in
    float64: (6,) or (8,) and more.
    """
    with full_precision():
        restored = model(degraded, *conditions)
    shown = restored.clamp(0, 1)
    scores = [
        tile_psnr(clean, degraded),
        tile_psnr(clean, shown),
        ssim(clean, degraded),
        ssim(clean, shown),
        (restored - clean).double().square().mean(dim=(1, 2, 3)),
    ]
    if clean.shape[1] == 3:
        scores += [tile_psnr(to_luma(clean), to_luma(other)) for other in (degraded, shown)]
    ones = torch.ones(len(clean), device=clean.device)
    scores += [distance(clean, other) * ones for distance in distances.values() for other in (degraded, shown)]
    return torch.stack([score.double().sum().to(clean.device) for score in (*scores, ones)])
