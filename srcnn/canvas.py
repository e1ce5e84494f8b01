"""A photo file as a Pillow image that is changed in place: its pixels are in memory once, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from srcnn.photo import JPEG_SUFFIXES, image_to_arrays, metadata_of, open_image, write_image

DIRECT_MODES = ("L", "LA", "RGB", "RGBA")


@dataclass
class Canvas:
    """An upright photo in memory, in one of `DIRECT_MODES`; parts are read and written as uint8 arrays without alpha.

    Attributes:
        metadata: what `save_canvas` puts back, as `Photo.metadata`.
        notes: conversions the reader had to make.
    """

    image: Image.Image
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        return self.image.mode in ("LA", "RGBA")

    def read(self, part: tuple[slice, slice]) -> np.ndarray:
        """A copy of these rows and columns, (h, w) or (h, w, 3)."""
        pixels = self._crop(part)
        if not self.has_alpha:
            return pixels
        return np.ascontiguousarray(pixels[..., 0] if self.image.mode == "LA" else pixels[..., :3])

    def write(self, part: tuple[slice, slice], pixels: np.ndarray) -> None:
        if self.has_alpha:
            tile = self._crop(part)
            tile[..., :-1] = np.atleast_3d(pixels)
            pixels = tile
        rows, columns = part
        self.image.paste(Image.fromarray(pixels), (columns.start, rows.start))

    def _crop(self, part: tuple[slice, slice]) -> np.ndarray:
        rows, columns = part
        return np.array(self.image.crop((columns.start, rows.start, columns.stop, rows.stop)))


def direct_image(image: Image.Image, name: object = "image") -> tuple[Image.Image, tuple[str, ...]]:
    """The same image where its mode is one of `DIRECT_MODES`, else one converted to it; and notes on that."""
    if image.mode in DIRECT_MODES and (image.mode in ("LA", "RGBA") or "transparency" not in image.info):
        return image, ()
    pixels, alpha, notes = image_to_arrays(image, name)
    converted = Image.fromarray(pixels)
    if alpha is not None:
        converted.putalpha(Image.fromarray(alpha))
    return converted, notes


def read_canvas(path: Path) -> Canvas:
    """Decodes a photo upright. Other modes than `DIRECT_MODES`, and photos stored sideways, are copied once.

    Raises:
        PhotoRefused: as `read_photo`.
    """
    with open_image(path) as opened:
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
        metadata = metadata_of(opened)
        image, notes = direct_image(opened, path)
    # Pillow would write what its own reader found beside the metadata: comments, the compression and tags of a TIFF.
    image.info.clear()
    for name in ("tag", "tag_v2"):
        vars(image).pop(name, None)
    return Canvas(image, metadata, notes)


def save_canvas(path: Path, canvas: Canvas, quality: int = 95) -> tuple[str, ...]:
    """Writes by the suffix of `path`, as `write_photo`; returns notes on what could not be kept."""
    write_image(path, canvas.image, canvas.metadata, quality)
    lost = canvas.has_alpha and path.suffix.lower() in JPEG_SUFFIXES
    return ("transparency laid over white",) if lost else ()
