"""Converts uint8 batches to floating point, and augments them with the symmetries of the square."""

from __future__ import annotations

import torch

from srcnn.data.loader import Batch
from srcnn.data.stream import StreamBatch


def to_float_batch(batch: Batch | StreamBatch, augment: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts a batch of uint8 tensors to (clean, degraded), float32 (N, C, H, W) in [0, 1], on the same device.

    The memory format is channels_last. With `augment` each pair is transformed by its symmetry.
    """
    symmetries = batch.symmetries if augment else None
    return _to_floats(batch.clean, symmetries), _to_floats(batch.degraded, symmetries)


def _to_floats(tiles: torch.Tensor, symmetries: torch.Tensor | None) -> torch.Tensor:
    pixels = tiles.unsqueeze(1) if tiles.ndim == 3 else tiles.permute(0, 3, 1, 2)
    if symmetries is not None:
        pixels = apply_symmetries(pixels, symmetries)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def apply_symmetries(pixels: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """Transforms pixels (N, C, S, S), each by its symmetry 0..7, (N,) uint8.

    Bit 0 flips the columns, bit 1 flips the rows, then bit 2 transposes.
    """
    if pixels.device.type != "cpu" or torch.compiler.is_compiling():
        return _gather(pixels, symmetries)
    results = torch.empty_like(pixels)  # on a CPU one tile at a time is fifty times as fast as gathering each pixel
    for result, square, symmetry in zip(results.unbind(), pixels.unbind(), symmetries.tolist(), strict=True):
        flipped = square.flip([axis for bit, axis in ((1, -1), (2, -2)) if symmetry & bit])
        result.copy_(flipped.transpose(-1, -2) if symmetry & 4 else flipped)
    return results


def _gather(pixels: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """`apply_symmetries` for all tiles at once: a single kernel when compiled, and no synchronization with the GPU."""
    side = pixels.shape[-1]
    bits = symmetries.view(-1, 1, 1)
    across = torch.arange(side, device=pixels.device)
    down, transposed = across.view(-1, 1), (bits & 4) > 0
    rows, columns = torch.where(transposed, across, down), torch.where(transposed, down, across)
    rows = torch.where((bits & 2) > 0, side - 1 - rows, rows)
    columns = torch.where((bits & 1) > 0, side - 1 - columns, columns)
    indices = (rows * side + columns).view(len(pixels), 1, -1).expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, indices).view_as(pixels)
