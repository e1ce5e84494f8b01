"""A network over the tiles of a photo: colour by its luma or as RGB, float32 or bfloat16, several tiles at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from srcnn.models.base import Network
from srcnn.models.device import full_precision, prefers_bf16, raise_malloc_threshold
from srcnn.models.srcnn import SRCNN, fused_bf16, supports_fused_bf16
from srcnn.models.unet import LUMA_WEIGHTS, to_luma
from srcnn.photos.tiling import Window, spans, windows
from srcnn.restoration.chroma import REACH, smooth_chroma
from srcnn.runtime.parallel import in_order, single_threaded_pool

TILE_PIXELS = {"cpu": 256, "cuda": 1024}  # a CPU: the fastest of 96 to 384 in both precisions
TILE_HALOS = 8  # a tile is as wide as so many of its halos at least: they make its work 1.6 times as much, not more
MIN_TILE_PIXELS = 16  # what is tried last when memory runs out
MAX_THREADS = {"cuda": 4}  # that wait for one device; on a CPU as many as PyTorch may use
LEVELS = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}

Part = tuple[slice, slice]
Progress = Callable[[int, int], None]


class Pixels(NamedTuple):
    """A photo of `height` x `width` wherever it lies: parts of it are read and written, (h, w) or (h, w, 3).

    Attributes:
        read: levels 0..255 of uint8, 0..65535 of uint16, [0, 1] of float32, by `dtype`; they may come as float32.
        write: takes `dtype`, the integers rounded, all clipped to their range.
    """

    height: int
    width: int
    read: Callable[[Part], np.ndarray]
    write: Callable[[Part, np.ndarray], None]
    dtype: np.dtype[Any] = np.dtype(np.uint8)


@dataclass(frozen=True)
class Treatment:
    """How a network is applied.

    Args:
        tile_pixels: side of the tiles that go through the network; 0 chooses by the device.
        exact: float32 throughout; else bfloat16 where the device is faster with it, the network adds to its input, and
            the photo has 8 bits: then only the correction has 8 bits of precision, not the photo.
        strength: share of the network's change that is made, 0..1.
        chroma_quality: of the JPEG a colour photo comes from, by which its chroma is smoothed when a network restores
            the luma (srcnn/restoration/chroma.py); None: the chroma stays as it is.
        condition: what a conditioned network gets to know of that JPEG (srcnn/photos/jpeg_quality.py); None: nothing.
    """

    tile_pixels: int = 0
    exact: bool = False
    strength: float = 1.0
    chroma_quality: float | None = None
    condition: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength {self.strength:g}: expected 0 (nothing) to 1 (all that the network changes)")
        if self.chroma_quality is not None and not 1 <= self.chroma_quality <= 100:
            raise ValueError(f"quality {self.chroma_quality:g}: expected 1..100, as of a JPEG")
        if self.tile_pixels < 0:
            raise ValueError(f"tile {self.tile_pixels}: expected a number of pixels, or 0 for a fitting one")


def restore_tiles(
    pixels: Pixels, model: Network, treatment: Treatment = Treatment(), on_progress: Progress | None = None
) -> None:
    """Restores a photo tile by tile, as if in one piece; reading and writing may mean the same memory.

    Where memory runs out, that tile and all after it are halved, until it suffices.

    Args:
        on_progress: called in this thread with the tiles done and their number.
    """
    tiles = Tiles(pixels, model, treatment)
    parts = list(windows(pixels.height, pixels.width, tiles.tile_pixels, tiles.halo))
    # A tile is overwritten only after the last one that sees it has been read: the one below to the right.
    tiles_across = -(-pixels.width // tiles.tile_pixels)
    ahead = -(-tiles.halo // tiles.tile_pixels) * (tiles_across + 1)
    num_threads = min(len(parts), torch.get_num_threads(), MAX_THREADS.get(tiles.device.type, len(parts)))

    def cut() -> Iterator[tuple[Window, np.ndarray]]:
        for part in parts:
            yield part, pixels.read(part.source)

    raise_malloc_threshold()
    with full_precision(), single_threaded_pool(num_threads) as pool:
        results = in_order(pool, tiles.restore, cut(), max(ahead, 2 * num_threads))
        for number, (part, restored) in enumerate(zip(parts, results, strict=True), 1):
            pixels.write(part.target, restored)
            if on_progress is not None:
                on_progress(number, len(parts))


class Tiles:
    """The work on the tiles of one photo; knows how large a tile the memory allowed so far."""

    def __init__(self, pixels: Pixels, model: Network, treatment: Treatment) -> None:
        self.device = next(model.parameters()).device
        if (channels := model.config.channels) not in (1, 3):
            raise ValueError(f"this network restores {channels} channels; expected one of luma (1) or RGB (3)")
        self.model, self.treatment, self.dtype = model.with_condition(treatment.condition), treatment, pixels.dtype
        self.bf16 = (not treatment.exact and model.config.residual and pixels.dtype == np.uint8
                     and prefers_bf16(model.config, self.device))
        smooths = treatment.chroma_quality is not None and channels == 1
        self.halo = self._whole(model.halo + (REACH if smooths else 0))
        fitting = max(TILE_PIXELS.get(self.device.type, 512), TILE_HALOS * self.halo)
        self.tile_pixels = self._whole(treatment.tile_pixels or fitting)

    def _whole(self, pixels: int) -> int:
        """As many or more: with such tiles and halos all that goes through the network begins where it may."""
        return self.model.multiple * -(-pixels // self.model.multiple)

    def restore(self, job: tuple[Window, np.ndarray]) -> np.ndarray:
        """A tile with its halo -> the tile alone, restored, clipped and rounded."""
        window, source = job
        longest = max(side.stop - side.start for side in window.inner)
        if longest <= self.tile_pixels:
            try:
                return self._restore_at_once(window, source)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or longest <= max(MIN_TILE_PIXELS, self.model.multiple):
                    raise
                self.tile_pixels = min(self.tile_pixels, self._whole(-(-longest // 2)))
        # Beyond the except clause: what it had allocated is free only now.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        rows, columns = window.inner
        restored = np.empty((rows.stop - rows.start, columns.stop - columns.start, *source.shape[2:]), self.dtype)
        side = self.tile_pixels  # which another thread may halve meanwhile
        for top, bottom in spans(restored.shape[0], side):
            for left, right in spans(restored.shape[1], side):
                target = slice(top, bottom), slice(left, right)
                part = self._part(target, window.inner, source.shape)
                restored[target] = self.restore((part, source[part.source]))
        return restored

    def _part(self, target: Part, inner: Part, shape: tuple[int, ...]) -> Window:
        """The window of a part of a tile's inside, in the tile with its halo."""
        placed = [slice(start.start + side.start, start.start + side.stop)
                  for side, start in zip(target, inner, strict=True)]
        sources = [slice(max(0, side.start - self.halo), min(length, side.stop + self.halo))
                   for side, length in zip(placed, shape, strict=False)]
        inside = [slice(side.start - source.start, side.stop - source.start)
                  for side, source in zip(placed, sources, strict=True)]
        return Window((sources[0], sources[1]), (inside[0], inside[1]), target)

    @torch.inference_mode()
    def _restore_at_once(self, window: Window, source: np.ndarray) -> np.ndarray:
        levels = LEVELS[self.dtype]
        tile = torch.from_numpy(np.asarray(source, np.uint8 if source.dtype == np.uint8 else np.float32))
        planes = tile.to(self.device).reshape(*tile.shape[:2], -1).permute(2, 0, 1)
        planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
        inner = slice(None), *window.inner
        if len(planes) == self.model.config.channels:
            restored = run_network(planes / levels, self.model, self.bf16)[inner] * levels
        elif len(planes) == 1:  # greyscale as R = G = B
            restored = to_luma(run_network(planes.expand(3, -1, -1) / levels, self.model, self.bf16)[inner]) * levels
        else:
            restored = planes[inner] + self._change_of_luma(planes / levels, inner).mul_(levels)
        if self.treatment.strength < 1:
            restored = planes[inner].lerp(restored, self.treatment.strength)
        restored.clamp_(0, levels)
        if self.dtype != np.float32:
            restored.round_()
        result = restored.permute(1, 2, 0).to(torch.uint8 if self.dtype == np.uint8 else torch.float32)
        return result.cpu().numpy().astype(self.dtype, copy=False).reshape(*result.shape[:2], *source.shape[2:])

    def _change_of_luma(self, planes: torch.Tensor, inner: tuple[slice, ...]) -> torch.Tensor:
        """What R, G and B in [0, 1] change by, where the network restores the luma.

        Replacing Y in YCbCr and going back to RGB adds the same difference to R, G and B.
        """
        red, _, blue = planes
        luma = to_luma(planes)
        restored = run_network(luma, self.model, self.bf16)
        change = (restored - luma)[inner]
        if self.treatment.chroma_quality is None:
            return change
        chroma = torch.cat([blue - luma, red - luma])
        smoothed = smooth_chroma(chroma, restored.clamp(0, 1), self.treatment.chroma_quality)
        by_blue, by_red = (smoothed - chroma)[inner]
        by_green = -(LUMA_WEIGHTS[0] * by_red + LUMA_WEIGHTS[2] * by_blue) / LUMA_WEIGHTS[1]
        return torch.stack([by_red, by_green, by_blue]) + change


def out_of_memory(error: BaseException) -> bool:
    """Of the device or of this machine: PyTorch's allocator for the CPU raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def run_network(pixels: torch.Tensor, model: Network, bf16: bool = False) -> torch.Tensor:
    """float32 (C, H, W) in [0, 1] -> the network's output, same shape, float32, not clipped."""
    height, width = pixels.shape[-2:]
    missing = max(0, model.min_pixels - width), max(0, model.min_pixels - height)
    if any(missing):
        pixels = functional.pad(pixels, (0, missing[0], 0, missing[1]), mode="replicate")
    if bf16 and pixels.device.type == "cpu" and isinstance(model, SRCNN) and supports_fused_bf16(model):
        restored = fused_bf16(pixels, model)
    else:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            restored = model(pixels[None])[0]
    return restored[:, :height, :width].float()
