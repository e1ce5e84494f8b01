"""Batches of bytes -> floats, flipped and turned."""

from __future__ import annotations

import torch

from srcnn.data.loader import Batch


def to_float_batch(batch: Batch, augment: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean, degraded) of a batch of uint8 tensors: float32 (N, C, H, W) in [0, 1], where they are."""
    symmetries = batch.symmetries if augment else None
    return _to_floats(batch.clean, symmetries), _to_floats(batch.degraded, symmetries)


def _to_floats(tiles: torch.Tensor, symmetries: torch.Tensor | None) -> torch.Tensor:
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
