"""Batches on the device, and the validation: every tile exactly once over all ranks, the same PSNR on any number."""

from __future__ import annotations

import math

import numpy as np
import torch
from accelerate import Accelerator

from srcnn.metrics import ssim, sum_over_ranks, tile_psnr
from srcnn.model import SRCNN, full_precision
from srcnn.stream import Batch, ShardReader, prefetch, val_batches

BATCH_SIZE = {"cpu": 8, "cuda": 128}


def to_device(batch: Batch, device: torch.device, augment: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean, degraded) of a batch on the device: uint8 travels, float32 (N, C, H, W) in [0, 1] comes out."""
    symmetries = torch.from_numpy(batch.symmetries).to(device, non_blocking=True) if augment else None
    clean, degraded = (_float_tiles(tiles, symmetries, device) for tiles in (batch.clean, batch.degraded))
    return clean, degraded


def _float_tiles(tiles: np.ndarray, symmetries: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    pixels = torch.from_numpy(tiles).to(device, non_blocking=True)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if symmetries is not None:
        pixels = transform(pixels, symmetries)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def transform(pixels: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """(N, C, S, S) squares, each by its symmetry 0..7: bit 0 flips columns, bit 1 flips rows, bit 2 transposes."""
    bits = symmetries.view(-1, 1, 1, 1)
    pixels = torch.where((bits & 1).bool(), pixels.flip(-1), pixels)
    pixels = torch.where((bits & 2).bool(), pixels.flip(-2), pixels)
    return torch.where((bits & 4).bool(), pixels.transpose(-1, -2), pixels)


def crop(pixels: torch.Tensor, border: int) -> torch.Tensor:
    """Leaves out `border` pixels on every side."""
    return pixels[..., border:-border, border:-border] if border else pixels


@torch.inference_mode()
def validate(model: SRCNN, reader: ShardReader, accelerator: Accelerator) -> dict[str, float]:
    """Scores the network in float32 on every pair of the split; exact means over the tiles of all ranks.

    Returns:
        val/psnr_in, val/psnr (dB; output clipped to [0, 1], not rounded), val/gain (dB), val/gain_percent, val/ssim_in,
        val/ssim, val/loss (mean squared error).

    Raises:
        FloatingPointError: the network's output is not finite; on all ranks alike.
    """
    model = model.folded().to(accelerator.device).to(memory_format=torch.channels_last).eval()  # free of autocast
    sums = torch.zeros(6, dtype=torch.float64, device=accelerator.device)
    size = BATCH_SIZE.get(accelerator.device.type, 64)
    for batch in prefetch(val_batches(reader, size, accelerator.process_index, accelerator.num_processes), 2):
        clean, degraded = to_device(batch, accelerator.device)
        with full_precision():
            restored = model(degraded)
        shown = restored.clamp(0, 1)
        scores = (
            tile_psnr(clean, degraded),
            tile_psnr(clean, shown),
            ssim(clean, degraded),
            ssim(clean, shown),
            (restored - clean).double().square().mean(dim=(1, 2, 3)),
            torch.ones(len(clean)),
        )
        sums += torch.stack([score.double().sum().to(sums.device) for score in scores])
    psnr_in, psnr, ssim_in, ssim_out, loss, num_tiles = sum_over_ranks(sums).tolist()
    assert num_tiles == reader.num_samples, "a validation tile was missed or counted twice"
    if not math.isfinite(loss):
        raise FloatingPointError("the network's output is no longer finite: lower optimizer.lr and start a new run")
    means = {"val/psnr_in": psnr_in, "val/psnr": psnr, "val/ssim_in": ssim_in, "val/ssim": ssim_out, "val/loss": loss}
    values = {key: total / num_tiles for key, total in means.items()}
    values["val/gain"] = values["val/psnr"] - values["val/psnr_in"]
    values["val/gain_percent"] = 100 * values["val/gain"] / values["val/psnr_in"]
    return values
