"""Batches as the network wants them, and the validation: every tile exactly once, the same on any number of ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator

from srcnn import signals
from srcnn.base import Network
from srcnn.dataset import ShardDataset
from srcnn.device import full_precision, to_device
from srcnn.device_loader import on_device
from srcnn.loader import Batch, StreamConfig, val_batches
from srcnn.metrics import luma, ssim, sum_over_ranks, tile_psnr
from srcnn.ranks import together

BATCH_SIZE = {"cpu": 8, "cuda": 128}
SCORES = ("psnr_in", "psnr", "ssim_in", "ssim", "loss")
LUMA_SCORES = ("psnr_luma_in", "psnr_luma")


def as_floats(batch: Batch, augment: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean, degraded) of a batch of uint8 tensors: float32 (N, C, H, W) in [0, 1], where they are."""
    symmetries = batch.symmetries if augment else None
    return _as_floats(batch.clean, symmetries), _as_floats(batch.degraded, symmetries)


def conditions_for(network: Network, batch: Batch) -> list[torch.Tensor]:
    """What the network is called with after the degraded tiles: a batch's conditions, if it takes and there are any."""
    return [batch.conditions] if network.conditioned and batch.conditions is not None else []


def _as_floats(tiles: torch.Tensor, symmetries: torch.Tensor | None) -> torch.Tensor:
    pixels = tiles.unsqueeze(1) if tiles.ndim == 3 else tiles.permute(0, 3, 1, 2)
    if symmetries is not None:
        pixels = transform(pixels, symmetries)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def transform(pixels: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """(N, C, S, S) squares, each by its symmetry 0..7: bit 0 flips columns, bit 1 flips rows, bit 2 transposes."""
    if pixels.device.type != "cpu" or torch.compiler.is_compiling():
        return _gather(pixels, symmetries)
    results = torch.empty_like(pixels)  # tile by tile a CPU is fifty times as fast as by an index of every pixel
    for result, square, symmetry in zip(results.unbind(), pixels.unbind(), symmetries.tolist(), strict=True):
        flipped = square.flip([axis for bit, axis in ((1, -1), (2, -2)) if symmetry & bit])
        result.copy_(flipped.transpose(-1, -2) if symmetry & 4 else flipped)
    return results


def _gather(pixels: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """`transform` for all squares at once, one pass when compiled; where the symmetries are is never waited for."""
    side = pixels.shape[-1]
    bits = symmetries.view(-1, 1, 1)
    across = torch.arange(side, device=pixels.device)
    down, transposed = across.view(-1, 1), (bits & 4) > 0
    rows, columns = torch.where(transposed, across, down), torch.where(transposed, down, across)
    rows = torch.where((bits & 2) > 0, side - 1 - rows, rows)
    columns = torch.where((bits & 1) > 0, side - 1 - columns, columns)
    places = (rows * side + columns).view(len(pixels), 1, -1).expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, places).view_as(pixels)


def crop(pixels: torch.Tensor, border: int) -> torch.Tensor:
    """Leaves out `border` pixels on every side."""
    return pixels[..., border:-border, border:-border] if border else pixels


@torch.inference_mode()
def validate(
    model: Network, reader: ShardDataset, accelerator: Accelerator, stream: StreamConfig | None = None,
    group: Any = None,
) -> dict[str, float]:
    """Scores the network in float32 on every pair of the split; exact means over the tiles of all ranks.

    Returns:
        val/psnr_in, val/psnr (dB; output clipped to [0, 1], not rounded), val/gain (dB), val/gain_percent, val/ssim_in,
        val/ssim, val/loss (mean squared error); of three channels also val/psnr_luma_in, val/psnr_luma (of
        `metrics.luma`).

    Raises:
        FloatingPointError: the network's output is not finite; on all ranks alike.
        RankFailed: a rank cannot read its pairs; on all ranks, where `group` is that of `process_group`.
        Stopped: a rank was told to stop; likewise.
    """
    model = to_device(model.without_centering(), accelerator.device).eval()  # free of autocast
    size = BATCH_SIZE.get(accelerator.device.type, 64)
    batches = val_batches(
        reader, stream or StreamConfig(), size, accelerator.process_index, accelerator.num_processes
    )

    def score() -> torch.Tensor:
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=accelerator.device)
        for batch in on_device(batches, accelerator.device):
            if warning := signals.warned():
                raise warning
            sums += score_sums(model, *as_floats(batch), *conditions_for(model, batch))
        return sums

    names = SCORES + LUMA_SCORES if len(reader.tile_shape) == 3 else SCORES
    *totals, num_tiles = sum_over_ranks(together(score, group)).tolist()
    assert num_tiles == reader.num_samples, "a validation tile was missed or counted twice"
    values = {f"val/{name}": total / num_tiles for name, total in zip(names, totals, strict=True)}
    if not math.isfinite(values["val/loss"]):
        raise FloatingPointError("the network's output is no longer finite: lower optimizer.lr and start a new run")
    values["val/gain"] = values["val/psnr"] - values["val/psnr_in"]
    values["val/gain_percent"] = 100 * values["val/gain"] / values["val/psnr_in"]
    return values


def score_sums(
    model: Network, clean: torch.Tensor, degraded: torch.Tensor, *conditions: torch.Tensor
) -> torch.Tensor:
    """SCORES, of three channels LUMA_SCORES too, and 1, each summed over the tiles; float64 (6,) or (8,)."""
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
        scores += [tile_psnr(luma(clean), luma(other)) for other in (degraded, shown)]
    return torch.stack([score.double().sum().to(clean.device) for score in (*scores, torch.ones(len(clean)))])
