"""A network over the tiles of a photo: colour by its luma, float32 or bfloat16, several tiles at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from srcnn.model import SRCNN, computes_bf16, full_precision
from srcnn.products import keep_freed_memory
from srcnn.strips import restore_in_strips, suits
from srcnn.threads import in_order, lone_threads
from srcnn.tiles import Window, windows

TILE_PIXELS = {"cpu": 256, "cuda": 1024}  # a CPU: the fastest of 96 to 384 in both precisions
MAX_THREADS = {"cuda": 4}  # that wait for one device; on a CPU as many as PyTorch may use
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG's Y and Pillow's L

Part = tuple[slice, slice]
Progress = Callable[[int, int], None]


class Pixels(NamedTuple):
    """A photo of `height` x `width` wherever it lies: parts of it are read and written, uint8 (h, w) or (h, w, 3)."""

    height: int
    width: int
    read: Callable[[Part], np.ndarray]
    write: Callable[[Part, np.ndarray], None]


def restore_tiles(
    pixels: Pixels, model: SRCNN, tile_pixels: int = 0, exact: bool = False, on_progress: Progress | None = None
) -> None:
    """Restores a photo tile by tile, as if in one piece; reading and writing may mean the same memory.

    Args:
        exact: float32 throughout; else bfloat16 where the device computes it itself, and the network adds to its
            input: then only the correction has 8 bits of precision, not the photo.
        on_progress: called in this thread with the tiles done and their number.
    """
    device = next(model.parameters()).device
    bf16 = not exact and model.config.residual and computes_bf16(device)
    tile_pixels = tile_pixels or TILE_PIXELS.get(device.type, 512)
    halo = model.receptive_radius
    parts = list(windows(pixels.height, pixels.width, tile_pixels, halo))
    # A tile is overwritten only after the last one that sees it has been read: the one below to the right.
    tiles_across = -(-pixels.width // tile_pixels)
    ahead = -(-halo // tile_pixels) * (tiles_across + 1)
    num_threads = min(len(parts), torch.get_num_threads(), MAX_THREADS.get(device.type, len(parts)))

    def cut() -> Iterator[tuple[Window, np.ndarray]]:
        for part in parts:
            yield part, pixels.read(part.source)

    work = partial(restore_tile, model=model, bf16=bf16)
    keep_freed_memory()
    with full_precision(), lone_threads(num_threads) as pool:
        results = in_order(pool, work, cut(), max(ahead, 2 * num_threads))
        for number, (part, restored) in enumerate(zip(parts, results, strict=True), 1):
            pixels.write(part.target, restored)
            if on_progress is not None:
                on_progress(number, len(parts))


@torch.inference_mode()
def restore_tile(job: tuple[Window, np.ndarray], model: SRCNN, bf16: bool) -> np.ndarray:
    """A tile with its halo, uint8 -> the tile alone, restored, clipped and rounded to uint8."""
    window, source = job
    device = next(model.parameters()).device
    tile = torch.from_numpy(source).to(device)
    planes = tile.reshape(*tile.shape[:2], -1).permute(2, 0, 1)
    planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
    inner = slice(None), *window.inner
    if len(planes) == model.config.channels:
        restored = run_network(planes / 255, model, bf16)[inner] * 255
    else:
        # Replacing Y in YCbCr and going back to RGB adds the same difference to R, G and B.
        red, green, blue = (weight / 255 * plane for weight, plane in zip(LUMA_WEIGHTS, planes, strict=True))
        luma = (red + green + blue)[None]
        change = (run_network(luma, model, bf16) - luma)[inner] * 255
        restored = planes[inner] + change
    levels = restored.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    return levels.cpu().numpy().reshape(*levels.shape[:2], *source.shape[2:])


def run_network(pixels: torch.Tensor, model: SRCNN, bf16: bool = False) -> torch.Tensor:
    """float32 (C, H, W) in [0, 1] -> the network's output, same shape, float32, not clipped."""
    height, width = pixels.shape[-2:]
    missing = max(0, model.min_pixels - width), max(0, model.min_pixels - height)
    if any(missing):
        pixels = functional.pad(pixels, (0, missing[0], 0, missing[1]), mode="replicate")
    if bf16 and pixels.device.type == "cpu" and suits(model):
        restored = restore_in_strips(pixels, model)
    else:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            restored = model(pixels[None])[0]
    return restored[:, :height, :width].float()
