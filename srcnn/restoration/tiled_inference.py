"""Applies a network to a photo tile by tile: luma or RGB, float32 or bfloat16, several tiles in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from srcnn.models.base import Network
from srcnn.models.device import full_precision, raise_malloc_threshold, release_cached_memory, restores_in_bf16
from srcnn.models.unet import LUMA_WEIGHTS, UNet, to_luma
from srcnn.photos.jpeg_quality import JpegSave
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS, Region, Window, windows
from srcnn.restoration.chroma import REACH, smooth_chroma
from srcnn.restoration.quantization import bound_change
from srcnn.runtime.errors import UserError, is_out_of_memory
from srcnn.runtime.parallel import in_order, single_threaded_pool

TILE_PIXELS = {"cpu": 256, "cuda": 1024}  # on a CPU the fastest of 96 to 384 in both precisions
TILE_HALOS = 16  # a tile is at least this many halos wide, so that halos add at most a quarter of work
MIN_TILE_PIXELS = 16  # tiles are not halved below this when memory runs out
MAX_THREADS = {"cuda": 4, "mps": 1}  # sharing one device; on a CPU as many as PyTorch uses
MAX_LEVEL = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}

Progress = Callable[[int, int], None]


class PixelAccess(NamedTuple):
    """Reads and writes rectangles, (h, w) or (h, w, 3), of a photo of `height` x `width` pixels.

    Attributes:
        read: returns levels in the range of `dtype` (float32: [0, 1]), which may themselves be float32.
        write: takes `dtype`, rounded and clipped.
    """

    height: int
    width: int
    read: Callable[[Region], np.ndarray]
    write: Callable[[Region, np.ndarray], None]
    dtype: np.dtype[Any] = np.dtype(np.uint8)


@dataclass(frozen=True)
class RestoreOptions:
    """How a network is applied.

    Args:
        tile_pixels: side of the tiles that go through the network; 0: chosen for the device.
        exact: compute in float32; else in bfloat16 where the device is faster with it, the network is residual, and the
            photo has 8 bits: then only the correction is rounded to bfloat16, not the photo.
        strength: fraction of the network's change that is applied, 0..1.
        damage: the JPEG compression of the photo, None: unknown. Its condition is an input of a conditioned network,
            and its grid is where the tiles begin of a network that is made for blocks, or of a consistent result.
        smooth_chroma: smooth the chroma of a colour photo with known damage beside a network for luma
            (srcnn/restoration/chroma.py).
        consistent: keep the luma within what the quantization of known damage allows
            (srcnn/restoration/quantization.py).
        ensemble: average what the network makes of the photo and of its mirror images (`run_mirrored`).
    """

    tile_pixels: int = 0
    exact: bool = False
    strength: float = 1.0
    damage: JpegSave | None = None
    smooth_chroma: bool = True
    consistent: bool = True
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength {self.strength:g}: expected 0 (no change) to 1 (the whole change)")
        if self.tile_pixels < 0:
            raise UserError(f"tile {self.tile_pixels}: expected a number of pixels, or 0 to choose one for the device")


def restore_tiles(
    pixels: PixelAccess, model: Network, options: RestoreOptions = RestoreOptions(), on_progress: Progress | None = None
) -> None:
    """Restores a photo tile by tile; the result equals that of the whole photo at once. Reading and writing may share
    memory.

    When memory runs out, this tile and those after it are halved until they fit.

    Args:
        on_progress: called in this thread with the number of tiles done and of all tiles.

    Raises:
        ValueError: the network has neither 1 nor 3 channels.
    """
    restorer = TileRestorer(pixels.dtype, model, options)
    if restorer.multiple > 1 and options.damage is not None and any(options.damage.offset):
        pixels = _on_grid(pixels, options.damage.offset)
    rows, columns = (restorer.even_side(length) for length in (pixels.height, pixels.width))
    parts = list(windows(pixels.height, pixels.width, (rows, columns), restorer.halo))
    # A tile may be overwritten only when the last tile whose halo overlaps it has been read: the lower right neighbour.
    ahead = -(-restorer.halo // rows) * -(-pixels.width // columns) + -(-restorer.halo // columns)
    num_threads = min(len(parts), torch.get_num_threads(), MAX_THREADS.get(restorer.device.type, len(parts)))

    raise_malloc_threshold()
    with full_precision(), single_threaded_pool(num_threads) as pool:
        sources = ((part, pixels.read(part.source)) for part in parts)  # read in this thread
        results = in_order(pool, restorer.restore, sources, max(ahead, 2 * num_threads))
        for number, (part, restored) in enumerate(zip(parts, results, strict=True), 1):
            pixels.write(part.target, restored)
            if on_progress is not None:
                on_progress(number, len(parts))


def _on_grid(photo: PixelAccess, offset: tuple[int, int]) -> PixelAccess:
    """The photo with its first row and column repeated until the JPEG's blocks begin at multiples of 8."""
    added = [-first % JPEG_BLOCK_PIXELS for first in offset]

    def inside(part: Region) -> tuple[Region, list[int]]:
        """The part's rectangle in the photo, and how many rows and columns of the part lie before it."""
        rows, columns = (slice(max(0, side.start - num), side.stop - num) for side, num in zip(part, added))
        return (rows, columns), [max(0, num - side.start) for side, num in zip(part, added)]

    def read(part: Region) -> np.ndarray:
        region, (above, before) = inside(part)
        pixels = photo.read(region)
        return np.pad(pixels, [(above, 0), (before, 0), (0, 0)][: pixels.ndim], "edge")

    def write(part: Region, pixels: np.ndarray) -> None:
        region, (above, before) = inside(part)
        photo.write(region, np.ascontiguousarray(pixels[above:, before:]))

    return photo._replace(height=photo.height + added[0], width=photo.width + added[1], read=read, write=write)


class TileRestorer:
    """Restores the tiles of one photo, from any thread; remembers the tile size that fitted into memory."""

    def __init__(self, dtype: np.dtype[Any], model: Network, options: RestoreOptions) -> None:
        self.device = model.device
        if (channels := model.config.channels) not in (1, 3):
            raise UserError(f"the network restores {channels} channels; expected one for luma (1) or RGB (3)")
        condition = None if options.damage is None else options.damage.condition
        self.model, self.options, self.dtype = model.with_condition(condition), options, dtype
        self.bf16 = not options.exact and model.residual and dtype == np.uint8 and restores_in_bf16(self.device)
        if self.device.type == "cpu":
            self.model = self.model.for_inference(torch.bfloat16 if self.bf16 else torch.float32)
        self.chroma_quality = options.damage.quality if options.damage and options.smooth_chroma else None
        smooths = self.chroma_quality is not None and channels == 1
        self.halo = model.multiple * -(-(model.halo + (REACH if smooths else 0)) // model.multiple)
        steps = options.damage.luma_steps if options.damage and options.consistent else None
        self.steps = None if steps is None else torch.tensor(steps, dtype=torch.float32, device=self.device)
        self.multiple = model.multiple if steps is None else math.lcm(model.multiple, JPEG_BLOCK_PIXELS)
        default = max(TILE_PIXELS.get(self.device.type, 512), TILE_HALOS * self.halo)
        self.least = JPEG_BLOCK_PIXELS if self.multiple > 1 else 1  # or a tile could lie before the photo: `_on_grid`
        self.tile_pixels = self._round_up(max(self.least, options.tile_pixels or default))

    def _round_up(self, pixels: int) -> int:
        """Rounded up, so that tiles start at multiples of the network's `multiple`, and of a block where it matters."""
        return self.multiple * -(-pixels // self.multiple)

    def even_side(self, length: int) -> int:
        """The side of the fewest tiles that cover `length` pixels, of about one size: threads finish together."""
        side = -(-length // -(-length // self.tile_pixels))
        return min(self.tile_pixels, self._round_up(max(self.least, side)))

    def restore(self, tile: tuple[Window, np.ndarray]) -> np.ndarray:
        """A tile with its halo -> the tile without the halo, restored, clipped and rounded to the photo's dtype."""
        window, source = tile
        longest = max(side.stop - side.start for side in window.inner)
        if longest <= self.tile_pixels:
            try:
                return self._restore_at_once(window, source)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or longest <= max(MIN_TILE_PIXELS, self.multiple):
                    raise
                self.tile_pixels = min(self.tile_pixels, self._round_up(-(-longest // 2)))
        # Outside the except clause: only now is the memory of the failed attempt free.
        release_cached_memory(self.device)
        (height, width), (rows, columns) = source.shape[:2], window.inner
        restored = np.empty((rows.stop - rows.start, columns.stop - columns.start, *source.shape[2:]), self.dtype)
        for part in windows(height, width, self.tile_pixels, self.halo, window.inner):
            restored[part.target] = self.restore((part, source[part.source]))
        return restored

    @torch.inference_mode()
    def _restore_at_once(self, window: Window, source: np.ndarray) -> np.ndarray:
        levels = MAX_LEVEL[self.dtype]
        tile = torch.from_numpy(np.asarray(source, np.uint8 if source.dtype == np.uint8 else np.float32))
        planes = tile.to(self.device).reshape(*tile.shape[:2], -1).permute(2, 0, 1)
        planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
        inner = slice(None), *window.inner
        if len(planes) == self.model.config.channels:
            restored = self._run(planes / levels, window.inner) * levels
        elif len(planes) == 1:  # greyscale as R = G = B
            colours = planes.expand(3, -1, -1) / levels
            restored = to_luma(self._run(colours, window.inner)) * levels
        else:
            restored = planes[inner] + self._change_of_luma(planes / levels, inner).mul_(levels)
        if self.steps is not None:
            change = restored - planes[inner]
            change = to_luma(change) if len(change) == 3 else change
            restored += bound_change(change, self.steps * (levels / 255)).sub_(change)
        if self.options.strength < 1:
            restored = planes[inner].lerp(restored, self.options.strength)
        restored.clamp_(0, levels)
        if self.dtype != np.float32:
            restored.round_()
        result = restored.permute(1, 2, 0).to(torch.uint8 if self.dtype == np.uint8 else torch.float32)
        return result.cpu().numpy().astype(self.dtype, copy=False).reshape(*result.shape[:2], *source.shape[2:])

    def _run(self, pixels: torch.Tensor, inner: Region | None = None) -> torch.Tensor:
        """As `run_network`."""
        run = run_mirrored if self.options.ensemble else run_network
        return run(pixels, self.model, self.bf16, inner)

    def _change_of_luma(self, planes: torch.Tensor, inner: tuple[slice, ...]) -> torch.Tensor:
        """The change of R, G and B, in [0, 1], when the network restores the luma.

        Replacing Y in YCbCr and converting back to RGB adds the same difference to R, G and B.
        """
        red, _, blue = planes
        luma = to_luma(planes)
        restored = self._run(luma)
        change = (restored - luma)[inner]
        if self.chroma_quality is None:
            return change
        chroma = torch.cat([blue - luma, red - luma])
        smoothed = smooth_chroma(chroma, restored.clamp(0, 1), self.chroma_quality)
        by_blue, by_red = (smoothed - chroma)[inner]
        by_green = -(LUMA_WEIGHTS[0] * by_red + LUMA_WEIGHTS[2] * by_blue) / LUMA_WEIGHTS[1]
        return torch.stack([by_red, by_green, by_blue]) + change


def run_network(
    pixels: torch.Tensor, model: Network, bf16: bool = False, inner: Region | None = None
) -> torch.Tensor:
    """float32 (C, H, W) in [0, 1], of any size -> the network's output, same shape, float32, not clipped.

    Args:
        bf16: compute in bfloat16.
        inner: the rows and columns to return.
    """
    height, width = pixels.shape[-2:]
    rows, columns = inner or (slice(0, height), slice(0, width))
    missing = max(0, model.min_pixels - width), max(0, model.min_pixels - height)
    if any(missing):
        pixels = functional.pad(pixels, (0, missing[0], 0, missing[1]), mode="replicate")
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16 and not model.is_bf16):
        if isinstance(model, UNet):
            return model.forward_inner(pixels[None], inner=(rows, columns))[0].float()
        return model(pixels[None])[0, :, rows, columns].float()


def run_mirrored(
    pixels: torch.Tensor, model: Network, bf16: bool = False, inner: Region | None = None
) -> torch.Tensor:
    """As `run_network`: the mean of its outputs for the pixels and their three mirror images, in four times the time.

    Those four of the eight images of Timofte et al., "Seven Ways to Improve Example-Based Single Image Super
    Resolution", CVPR 2016, in which rows stay rows: the quantization tables of a JPEG are not symmetrical.
    """
    height, width = pixels.shape[-2:]
    rows, columns = inner or (slice(0, height), slice(0, width))
    # The blocks of a mirror image begin at multiples, too.
    block = math.lcm(model.multiple, JPEG_BLOCK_PIXELS) if model.multiple > 1 else 1
    pixels = functional.pad(pixels, (0, -width % block, 0, -height % block), mode="replicate")
    height, width = pixels.shape[-2:]
    mirrored_rows = slice(height - rows.stop, height - rows.start)
    mirrored_columns = slice(width - columns.stop, width - columns.start)
    mean = torch.zeros_like(pixels[..., rows, columns])
    for axes in ((), (-1,), (-2,), (-2, -1)):
        region = mirrored_rows if -2 in axes else rows, mirrored_columns if -1 in axes else columns
        mean += run_network(pixels.flip(axes), model, bf16, region).flip(axes) / 4
    return mean
