"""A photo on the page of `srcnn demo`: restored or enlarged, looked at in parts, written with its metadata."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from srcnn.models.device import restoring_device
from srcnn.models.pretrained import FAMILY, GOOD_QUALITY_CONDITIONED, WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL, WEIGHTS
from srcnn.photos.degradation import Degradation, to_uint8
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.reading import KINDS, luma_l, suffix_of
from srcnn.photos.tiling import Region, windows
from srcnn.restoration.figures import psnr_luma
from srcnn.restoration.jpeg_damage import JpegRestorer, Treatment, find_damage
from srcnn.restoration.restore import access_to_array, access_to_file
from srcnn.restoration.restore_files import COPIED, jpeg_quality_for
from srcnn.restoration.tiled_inference import PixelAccess
from srcnn.restoration.upscale import check_scale, network_for_scale, upscale_photo_file, upscaled_part
from srcnn.runtime.errors import UserError

MAX_MEGAPIXELS = 50.0  # of a photo and of its result
MAX_SIDE = 4096  # of a picture that the browser gets, pixels
PLACE_PIXELS = 128  # side of the places of which the one that changed most is shown first
WRITING_SIDE = 1024  # of the parts that a result is written in
DEGREES = ((25, "heavily compressed"), (60, "clearly compressed"), (GOOD_QUALITY_CONDITIONED - 1, "lightly compressed"),
           (100, "good quality"))
FORMATS = ("jpg", "png", "webp", "tiff")


class Result(NamedTuple):
    """What restoring gave.

    Attributes:
        photo: all but the pixels, which lie in the file `pixels`; they have `size`, (height, width).
        source: the file of the photo before: the upload, or its degraded copy.
    """

    photo: PhotoFile
    pixels: Path
    size: tuple[int, int]
    source: Path
    scale: int
    treatment: Treatment

    @property
    def is_unchanged(self) -> bool:
        return self.scale == 1 and not self.treatment.was_restored


class DemoPhoto:
    """An uploaded photo; everything made of it lies in the folder of the upload.

    Raises:
        PhotoRefused: it is no picture, damaged, animated or too large.
    """

    def __init__(self, path: Path, name: str) -> None:
        """`name`: as the visitor's file is called."""
        photo = read_photo_file(path, MAX_MEGAPIXELS)
        self.path, self.name = path, name
        self.kind, self.size, self.profile = photo.kind, photo.size, photo.metadata.icc_profile
        self.damage = find_damage(access_to_file(photo), photo.jpeg)
        self.result: Result | None = None
        self.num_results = 0
        self.last_used = time.monotonic()

    def about(self) -> dict[str, Any]:
        """What the page says of it."""
        found = "no JPEG damage found"
        if self.damage is not None:
            words = next(words for bound, words in DEGREES if self.damage.quality <= bound)
            found = f"{words}, {'JPEG' if self.kind == 'JPEG' else 'once a JPEG of'} quality {self.damage.quality}"
        kind = {"HEIF": "HEIC", "JXL": "JPEG XL", "JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(self.kind, self.kind)
        return {"name": self.name, "width": self.size[1], "height": self.size[0], "kind": kind, "found": found,
                "bytes": self.path.stat().st_size}

    def restore(
        self, network: str = DEFAULT_MODEL, scale: int = 1, degrade_quality: int | None = None,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> dict[str, Any]:
        """Restores the photo, enlarges it if `scale` is above 1, and returns what the page says of the result.

        Args:
            network: one of `networks()`.
            degrade_quality: JPEG quality, 1..100, to degrade the photo with first; None: not degraded.
            on_progress: called with the fraction that is done.

        Raises:
            ValueError: another network or scale, or a result above MAX_MEGAPIXELS.
        """
        if network not in networks():
            raise UserError(f"{network}: no such network")
        self._check_scale(scale)
        source, known = self.path, self.damage
        if degrade_quality is not None:
            Degradation(jpeg_quality=degrade_quality)  # checks the range
            source, known = self.path.with_name("degraded.jpg"), None
            shown.cache_clear()
            write_photo_file(source, read_photo_file(self.path), degrade_quality, subsampling="4:2:0")
        photo, steps = read_photo_file(source), 1 + (scale > 1)
        treatment = JpegRestorer(WeightSelector(network, restoring_device()))(
            access_to_file(photo), photo.jpeg, known, lambda done, tiles: on_progress(done / tiles / steps))
        if scale > 1:
            photo = upscale_photo_file(photo, network_for_scale(None, scale), scale,
                                       on_progress=lambda done, tiles: on_progress(0.5 + done / tiles / 2))
        self._keep(photo, source, scale, treatment)
        gain = None
        if degrade_quality is not None and scale == 1:
            gain = [round(psnr_luma(pixels, shown(self.path)), 2) for pixels in (shown(source), self.after())]
        return {"width": photo.size[1], "height": photo.size[0], "unchanged": self.result_or_refuse().is_unchanged,
                "network": treatment.weights or (network if treatment.was_restored else ""),
                "place": self.changed_most(), "gain": gain}

    def _check_scale(self, scale: int) -> None:
        if scale != 1:
            check_scale(scale)
        height, width = (side * scale for side in self.size)
        if height * width > MAX_MEGAPIXELS * 1e6:
            raise UserError(f"{self.name}: would become {width} × {height} pixels, more than {MAX_MEGAPIXELS:.0f} "
                            "megapixels; choose a smaller size")

    def _keep(self, photo: PhotoFile, source: Path, scale: int, treatment: Treatment) -> None:
        earlier, self.num_results = self.result, self.num_results + 1
        pixels = self.path.with_name(f"pixels-{self.num_results}.npy")
        np.save(pixels, np.asarray(photo.image))
        self.result = Result(replace(photo, image=Image.new("L", (1, 1))), pixels, photo.size, source, scale, treatment)
        if earlier is not None:
            earlier.pixels.unlink()

    def result_or_refuse(self) -> Result:
        if self.result is None:
            raise UserError(f"{self.name}: not restored yet")
        return self.result

    def before(self, part: Region) -> np.ndarray:
        """A part of the photo before, uint8 (h, w) or (h, w, 3), enlarged by bicubic interpolation like the result."""
        result = self.result
        pixels = shown(self.path if result is None else result.source)
        if result is None or result.scale == 1:
            return pixels[part]
        return to_uint8(upscaled_part(access_to_array(pixels), part, result.scale))

    def after(self, part: Region = (slice(None), slice(None))) -> np.ndarray:
        """A part of the result, as `before`."""
        pixels = np.load(self.result_or_refuse().pixels, mmap_mode="r")
        return PhotoFile(image_of(pixels[part])).visible()

    def changed_most(self) -> tuple[int, int]:
        """The middle (column, row) of the place whose luma changed most."""
        def change(part: Region) -> int:
            before, after = (luma_l(pixels).astype(np.int16) for pixels in (self.before(part), self.after(part)))
            return int(np.abs(after - before).sum())

        places = (window.target for window in windows(*self.result_or_refuse().size, PLACE_PIXELS, halo=0))
        rows, columns = max(places, key=change)
        return (columns.start + columns.stop) // 2, (rows.start + rows.stop) // 2

    def part(self, which: str, part: Region) -> Image.Image:
        """A part of the photo "before" or "after" at full resolution. Raises ValueError where there is none."""
        size = self.size if self.result is None else self.result.size
        if not all(side.start < side.stop <= min(length, side.start + MAX_SIDE) for side, length in zip(part, size)):
            raise UserError(f"a part lies within the photo and has at most {MAX_SIDE} pixels a side")
        pixels = self.before(part) if which == "before" else self.after(part)
        return Image.fromarray(np.ascontiguousarray(pixels))

    def whole(self, which: str, side: int) -> Image.Image:
        """The photo "before" (not enlarged) or "after", reduced to sides of at most `side` pixels."""
        before = self.path if self.result is None else self.result.source
        image = Image.fromarray(shown(before) if which == "before" else self.after())
        image.thumbnail((min(max(1, side), MAX_SIDE),) * 2, Image.Resampling.LANCZOS)
        return image

    def result_name(self, format_name: str) -> str:
        """As `srcnn restore` and `srcnn upscale` name it."""
        result = self.result_or_refuse()
        ending = f"_x{result.scale}" if result.scale > 1 else "_restored"
        return f"{Path(self.name).stem}{ending}{self.result_suffix(format_name)}"

    def result_suffix(self, format_name: str) -> str:
        if format_name and format_name not in FORMATS:
            raise UserError(f"format {format_name}: expected one of {', '.join(FORMATS)}")
        return f".{format_name}" if format_name else suffix_of(self.result_or_refuse().source)

    def write(self, target: Path, strength: float = 1.0) -> tuple[str, ...]:
        """Writes the result with its metadata; returns notes on what was not kept.

        Args:
            strength: share of the change that is applied, 0..1: before and after are blended, no network runs.

        Raises:
            ValueError, OSError: it cannot be written.
        """
        result, kind = self.result_or_refuse(), KINDS[target.suffix.lower()]
        if not 0 <= strength <= 1:
            raise UserError(f"strength {strength:g}: expected 0..1")
        if result.is_unchanged and kind == result.photo.kind:
            shutil.copyfile(result.source, target)
            return (COPIED,)
        pixels = np.load(result.pixels)
        if strength < 1:
            blend_with(read_photo_file(result.source), pixels, result.scale, strength)
        quality = None
        if kind == "JPEG" and result.scale == 1 and result.treatment.damage is not None:
            quality = jpeg_quality_for(result.treatment.damage.quality)
        photo = replace(result.photo, image=image_of(pixels))
        return (*photo.notes, *write_photo_file(target, photo, quality))


def blend_with(photo: PhotoFile, pixels: np.ndarray, scale: int, strength: float) -> None:
    """Moves `pixels`, (H, W) or (H, W, C) uint8 or uint16, back towards the photo before, part by part."""
    source = PixelAccess(*photo.size, photo.read_all, photo.write_all, photo.dtype)
    height, width = pixels.shape[:2]
    for window in windows(height, width, WRITING_SIDE, halo=0):
        part = window.target
        before = upscaled_part(source, part, scale) if scale > 1 else source.read(part).astype(np.float32)
        blended = before + strength * (pixels[part] - before)
        pixels[part] = np.rint(blended).clip(0, np.iinfo(pixels.dtype).max)


@lru_cache(2)
def shown(path: Path) -> np.ndarray:
    """What a viewer shows of a photo file, uint8 (H, W) or (H, W, 3)."""
    return read_photo_file(path).visible()


def image_of(pixels: np.ndarray) -> Image.Image | np.ndarray:
    """Pixels as a PhotoFile has them: an image of 8 bits, or an array of 16."""
    return Image.fromarray(np.ascontiguousarray(pixels)) if pixels.dtype == np.uint8 else pixels


def networks() -> list[str]:
    """The default, the family, and the others that restore JPEGs: names of those that enlarge end in x2, x3, x4."""
    names = (path.stem for path in WEIGHTS.glob("*.safetensors"))
    others = sorted(name for name in names if name != DEFAULT_MODEL and not re.search(r"-x\d+$", name))
    return [DEFAULT_MODEL, FAMILY, *others]
