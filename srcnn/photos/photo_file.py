"""A photo file in memory, changed in place and written again: pixels once, whatever their number, and metadata."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms

from srcnn.photos.jpeg_quality import condition_of_image, quality_of
from srcnn.photos.metadata import Metadata, fitted, metadata_of, pillow_options
from srcnn.photos.reading import (
    KINDS,
    MAX_MEGAPIXELS,
    SUFFIXES,
    PhotoRefused,
    open_image,
    orientation_of,
    over_white,
    sixteen_bit_levels,
    to_eight_bits,
    to_plain_mode,
    turn_upright,
)
from srcnn.photos.sixteen_bit import is_deep, read_deep, write_png, write_tiff
from srcnn.runtime.files import atomic_file

MAX_SIDES = {"WEBP": 16_383, "JPEG": 65_500}  # pixels, of libwebp and libjpeg
DEEP_WRITERS: dict[str, Callable[[IO[bytes], np.ndarray, Metadata], None]] = {"PNG": write_png, "TIFF": write_tiff}
Part = tuple[slice, slice]


@dataclass
class Canvas:
    """An upright photo; parts are read and written as arrays without alpha, (h, w) or (h, w, 3).

    Attributes:
        image: of one of `PLAIN_MODES`; or uint16 (H, W), or (H, W, C) with C = 2 (grey, alpha), 3 or 4.
        metadata: what `save_canvas` puts back.
        notes: conversions the reader had to make.
        quality: of the JPEG it was, 1..100 by its own tables; None where it was none.
        condition: what a conditioned network is told of these tables; None likewise.
    """

    image: Image.Image | np.ndarray
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()
    quality: int | None = None
    condition: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return np.dtype(np.uint8) if isinstance(self.image, Image.Image) else self.image.dtype

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        if isinstance(self.image, Image.Image):
            return self.image.height, self.image.width
        return self.image.shape[0], self.image.shape[1]

    @property
    def num_channels(self) -> int:
        """With alpha."""
        if isinstance(self.image, Image.Image):
            return len(self.image.mode)
        return self.image.shape[2] if self.image.ndim == 3 else 1

    @property
    def has_alpha(self) -> bool:
        return self.num_channels in (2, 4)

    @property
    def is_grey(self) -> bool:
        return self.num_channels < 3

    def blank(self, height: int, width: int) -> Canvas:
        """A black one of the same kind and another size, without metadata."""
        if isinstance(self.image, Image.Image):
            return Canvas(Image.new(self.image.mode, (width, height)))
        return Canvas(np.zeros((height, width, *self.image.shape[2:]), self.dtype))

    def eight_bit_image(self) -> Image.Image:
        """The image, with its levels reduced if they have 16 bits."""
        return self.image if isinstance(self.image, Image.Image) else Image.fromarray(to_eight_bits(self.image))

    def to_image(self, photo: Image.Image) -> Image.Image:
        """As a Pillow image with the `info` of the photo it comes from, but for what is of another mode."""
        image = self.image if isinstance(self.image, Image.Image) else Image.fromarray(self.image)
        lost = {"transparency"} if image.mode != photo.mode else set()
        lost |= {"icc_profile"} if photo.mode in ("CMYK", "LAB") else set()
        image.info.update({name: value for name, value in photo.info.items() if name not in lost})
        return image

    def read(self, part: Part) -> np.ndarray:
        """A copy of these rows and columns, (h, w) or (h, w, 3)."""
        return self._colours(self.read_all(part))

    def read_all(self, part: Part) -> np.ndarray:
        """A copy with alpha, (h, w) or (h, w, C)."""
        if isinstance(self.image, np.ndarray):
            return self.image[part].copy()
        rows, columns = part
        return np.array(self.image.crop((columns.start, rows.start, columns.stop, rows.stop)))

    def write(self, part: Part, pixels: np.ndarray) -> None:
        """Changes the colours; alpha stays."""
        if self.has_alpha:
            tile = self.read_all(part)
            tile[..., :-1] = np.atleast_3d(pixels)
            pixels = tile
        self.write_all(part, pixels)

    def write_all(self, part: Part, pixels: np.ndarray) -> None:
        """Changes colours and alpha."""
        if isinstance(self.image, np.ndarray):
            self.image[part] = pixels
        else:
            self.image.paste(Image.fromarray(pixels), (part[1].start, part[0].start))

    def _colours(self, pixels: np.ndarray) -> np.ndarray:
        if not self.has_alpha:
            return pixels
        return np.ascontiguousarray(pixels[..., 0] if self.is_grey else pixels[..., :-1])


def canvas_of(image: Image.Image) -> Canvas:
    """An image in memory as a canvas, without a copy where its mode is one of `PLAIN_MODES`.

    Raises:
        PhotoRefused: as `srcnn.photos.reading.to_plain_mode`.
    """
    if image.mode.startswith("I"):
        return Canvas(sixteen_bit_levels(image))
    return Canvas(_to_plain_mode(image)[0])


def _to_plain_mode(image: Image.Image, name: object = "image") -> tuple[Image.Image, tuple[str, ...]]:
    """As `srcnn.photos.reading.to_plain_mode`, but CMYK by its ICC profile if it has one."""
    if image.mode == "CMYK" and (managed := _managed(image)):
        return managed, ("CMYK converted to sRGB by its profile",)
    return to_plain_mode(image, name)


def _managed(image: Image.Image) -> Image.Image | None:
    """CMYK -> sRGB by the profile of its inks; None where there is none that can be used."""
    if not (profile := image.info.get("icc_profile")):
        return None
    try:
        return ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def read_canvas(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Canvas:
    """Decodes a photo upright. Other modes than `PLAIN_MODES`, and photos stored sideways, are copied once.

    Raises:
        PhotoRefused: as `srcnn.photos.reading.read_photo`.
    """
    with open_image(path, max_megapixels) as opened:
        told = quality_of(opened), condition_of_image(opened)
        notes: tuple[str, ...] = ("only the first of several pictures kept",) if opened.format == "MPO" else ()
        if is_deep(opened):
            file = opened.fp
            assert file is not None
            if opened.format == "PNG":  # whose EXIF and texts may come last
                opened.load()
            metadata = metadata_of(opened)
            pixels = upright_array(read_deep(opened, file), orientation_of(opened))
            return Canvas(pixels, metadata, (*notes, *_damaged(opened, metadata)), *told)
        if opened.mode.startswith("I"):
            raise PhotoRefused(f"{path}: levels of more than 16 bits, or below zero; save it with 8 or 16 bits")
        opened.load()
        metadata = metadata_of(opened)
        notes += _damaged(opened, metadata)
        image, converted = _to_plain_mode(turn_upright(opened), path)
    # Pillow would write what its own reader found beside the metadata: comments, the compression and tags of a TIFF.
    image.info.clear()
    for name in ("tag", "tag_v2"):
        vars(image).pop(name, None)
    return Canvas(image, metadata, (*notes, *converted), *told)


def _damaged(image: Image.Image, metadata: Metadata) -> tuple[str, ...]:
    return ("damaged EXIF left out",) if image.info.get("exif") and not metadata.exif else ()


def upright_array(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as a viewer shows them: EXIF 2.32, tag 0x0112."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def save_canvas(path: Path, canvas: Canvas, quality: int = 95, subsampling: str = "4:4:4") -> tuple[str, ...]:
    """Writes by the suffix of `path`; returns notes on what could not be kept.

    Raises:
        ValueError: the suffix is no photo's, or the format cannot hold such a photo.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: expected one of {', '.join(sorted(SUFFIXES))} at the end of the name")
    metadata, notes = fitted(canvas.metadata, kind)
    try:
        if isinstance(canvas.image, np.ndarray) and kind in DEEP_WRITERS:
            pixels = canvas.image
            if kind == "TIFF" and canvas.num_channels == 2:  # which Pillow, and so this program, cannot read again
                pixels = pixels[..., [0, 0, 0, 1]]
                notes += ("grey with transparency written as RGB",)
            with atomic_file(path) as file:
                DEEP_WRITERS[kind](file, pixels, metadata)
            return notes
        image = canvas.eight_bit_image()
        if image is not canvas.image:
            notes += ("16 bits reduced to 8",)
        if canvas.has_alpha and kind in ("JPEG", "BMP"):  # no program reads the alpha of Pillow's BMP
            image = over_white(image)
            notes += ("transparency laid over white",)
        options: dict[str, Any] = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
        if max(canvas.size) > (longest := MAX_SIDES.get(kind, max(canvas.size))):
            raise ValueError(f"{kind} ends at {longest} pixels a side; take --format png")
        if kind == "JPEG":
            options["subsampling"] = subsampling
        elif kind == "WEBP":
            options["exact"] = True  # colours where it is transparent, too
        with atomic_file(path) as file:
            image.save(file, kind, **options, **pillow_options(metadata, kind))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # as many kinds as Pillow has encoders, where the metadata is odd
        raise ValueError(f"{path}: cannot be written: {error}") from error
    return notes
