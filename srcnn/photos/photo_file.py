"""Photo files with their metadata: read into memory, edited in place without a second copy of the pixels, written."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srcnn.photos import webp_chunks
from srcnn.photos.containers import write_container
from srcnn.photos.jpeg_quality import JpegSave, jpeg_save_of
from srcnn.photos.metadata import Metadata, drop_unsupported, metadata_of, note_of
from srcnn.photos.pillow_internals import forget_source
from srcnn.photos.reading import (
    FLOATS,
    KINDS,
    MAX_MEGAPIXELS,
    PhotoRefused,
    decode,
    eight_bit_image,
    open_image,
    orientation_of,
    over_white,
    to_plain_mode,
)
from srcnn.photos.tiff_tags import Content
from srcnn.photos.tiling import Region
from srcnn.photos.truncated import CompletedFile
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, open_regular

MAX_SIDES = {"WEBP": 16_383, "JPEG": 65_500}  # pixels, of libwebp and libjpeg
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # as Pillow names TIFF compressions
LOSSY_QUALITY = 95  # of JPEG and WebP, where nothing else is asked for
SIXTEEN_BIT_KINDS = ("PNG", "TIFF")


@dataclass
class PhotoFile:
    """An upright photo in memory, of which regions are read and written as arrays.

    Attributes:
        image: an image of one of PLAIN_MODES; or uint16 (H, W), or (H, W, C) with C = 2 (grey, alpha), 3 or 4.
        metadata: written with the pixels by `write_photo_file`.
        notes: conversions made in reading.
        kind: the format of the file, of KINDS; "" if it is not from a file.
        jpeg: the compression of a JPEG file, by its own tables; None for other files.
        is_lossless: the file holds its pixels without loss.
        is_completed: the end of the file was missing.
    """

    image: Image.Image | np.ndarray
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()
    kind: str = ""
    jpeg: JpegSave | None = None
    is_lossless: bool = False
    is_completed: bool = False

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
        """The number of channels, counting alpha."""
        if isinstance(self.image, Image.Image):
            return len(self.image.mode)
        return self.image.shape[2] if self.image.ndim == 3 else 1

    @property
    def has_alpha(self) -> bool:
        return self.num_channels in (2, 4)

    @property
    def is_grey(self) -> bool:
        return self.num_channels < 3

    def blank_image(self, height: int, width: int) -> Image.Image | np.ndarray:
        """A black image of the same mode or dtype and another size."""
        if isinstance(self.image, Image.Image):
            return Image.new(self.image.mode, (width, height))
        return np.zeros((height, width, *self.image.shape[2:]), self.dtype)

    def eight_bit_image(self) -> Image.Image:
        """The image, with its levels reduced if they have 16 bits."""
        return eight_bit_image(self.image)

    def visible(self) -> np.ndarray:
        """What a viewer shows: uint8 (H, W) or (H, W, 3), over white where it is transparent."""
        return np.asarray(over_white(self.eight_bit_image()))

    def to_image(self, photo: Image.Image) -> Image.Image:
        """A Pillow image with the `info` of `photo`, except for entries that do not fit the mode."""
        image = self.image if isinstance(self.image, Image.Image) else Image.fromarray(self.image)
        lost = {"transparency"} if image.mode != photo.mode else set()
        lost |= {"icc_profile"} if photo.mode in ("CMYK", "LAB") else set()
        image.info.update({name: value for name, value in photo.info.items() if name not in lost})
        return image

    def read(self, region: Region) -> np.ndarray:
        """A copy of the colours in a region, (h, w) or (h, w, 3)."""
        pixels = self.read_all(region)
        if not self.has_alpha:
            return pixels
        return np.ascontiguousarray(pixels[..., 0] if self.is_grey else pixels[..., :-1])

    def read_all(self, region: Region) -> np.ndarray:
        """A copy of all channels in a region, (h, w) or (h, w, C)."""
        if isinstance(self.image, np.ndarray):
            return self.image[region].copy()
        rows, columns = region
        return np.array(self.image.crop((columns.start, rows.start, columns.stop, rows.stop)))

    def write(self, region: Region, pixels: np.ndarray) -> None:
        """Replaces the colours in a region, (h, w) or (h, w, 3); keeps alpha."""
        if self.has_alpha:
            channels = self.read_all(region)
            channels[..., :-1] = np.atleast_3d(pixels)
            pixels = channels
        self.write_all(region, pixels)

    def write_all(self, region: Region, pixels: np.ndarray) -> None:
        """Replaces all channels in a region, (h, w) or (h, w, C)."""
        if isinstance(self.image, np.ndarray):
            self.image[region] = pixels
        else:
            self.image.paste(Image.fromarray(pixels), (region[1].start, region[0].start))


def photo_file_of(image: Image.Image) -> PhotoFile:
    """A PhotoFile of an image in memory, without a copy if its mode is one of PLAIN_MODES.

    Raises:
        PhotoRefused: pixels that are floating-point numbers or exceed 16 bits.
    """
    if image.mode == "F":
        raise PhotoRefused(f"image: {FLOATS}")
    if not image.mode.startswith("I"):
        return PhotoFile(to_plain_mode(image)[0])
    levels = np.asarray(image)
    if levels.dtype.itemsize > 2 and not 0 <= levels.min() <= levels.max() <= 65535:
        raise PhotoRefused(f"image: levels from {levels.min()} to {levels.max()}; save it with 8 or 16 bits")
    return PhotoFile(levels.astype(np.uint16))


def read_photo_file(
    path: Path, max_megapixels: float = MAX_MEGAPIXELS, allow_truncated: bool = False
) -> PhotoFile:
    """Decodes a photo upright, with its metadata. Other modes than PLAIN_MODES and sideways photos are copied once.

    Args:
        allow_truncated: whether of a JPEG or PNG that is cut off what is there is decoded.

    Raises:
        PhotoRefused: as `srcnn.photos.reading.read_photo`.
    """
    with open_image(path, max_megapixels, allow_truncated) as opened:
        kind = "JPEG" if opened.format == "MPO" else opened.format or ""
        jpeg = jpeg_save_of(opened)
        is_completed = isinstance(opened.fp, CompletedFile)
        image, conversions = decode(opened)
        orientation = orientation_of(opened)
        with open_regular(path, MAX_PHOTO_BYTES) as file, \
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            metadata, lost = metadata_of(opened, content)
            is_lossless = _is_lossless(opened, content)
    if isinstance(image, Image.Image):
        forget_source(image)
        if jpeg is not None:
            jpeg = jpeg.upright(orientation, image.height, image.width)
    notes = (*conversions, *note_of("not kept", lost))
    return PhotoFile(image, metadata, notes, kind, jpeg, is_lossless, is_completed)


def _is_lossless(image: Image.Image, content: Content) -> bool:
    """Whether an opened file, whose bytes are `content`, holds its pixels without loss."""
    if image.format == "WEBP":
        return webp_chunks.is_lossless(content)
    return image.format in ("PNG", "BMP") or (
        image.format == "TIFF" and image.info.get("compression") not in LOSSY_TIFF)


def write_photo_file(
    path: Path, photo: PhotoFile, quality: int | None = None, subsampling: str = "4:4:4"
) -> tuple[str, ...]:
    """Writes the format of the suffix of `path`; returns notes on what could not be kept.

    Args:
        quality: of a JPEG or WebP, 1..100; None: LOSSY_QUALITY, but a WebP without loss where the photo came so.
        subsampling: of the chroma of a JPEG, "4:4:4", "4:2:2" or "4:2:0".

    Raises:
        ValueError: the suffix is not one of KINDS, or the format cannot hold the photo.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: the suffix must be one of {', '.join(sorted(KINDS))}")
    metadata, notes = drop_unsupported(photo.metadata, kind)
    try:
        if isinstance(photo.image, np.ndarray) and kind in SIXTEEN_BIT_KINDS:
            pixels = photo.image
            if kind == "TIFF" and photo.num_channels == 2:  # Pillow cannot read it back
                pixels = pixels[..., [0, 0, 0, 1]]
                notes += ("grey with transparency written as RGB",)
            with atomic_file(path) as file:
                write_container(file, pixels, kind, metadata, {})
            return notes
        image = photo.eight_bit_image()
        if image is not photo.image:
            notes += ("16 bits reduced to 8",)
        if photo.has_alpha and kind in ("JPEG", "BMP"):  # no program reads the alpha of Pillow's BMP
            image = over_white(image)
            notes += ("transparency laid over white",)
        options: dict[str, Any] = {"quality": quality or LOSSY_QUALITY} if kind in ("JPEG", "WEBP") else {}
        if max(photo.size) > (longest := MAX_SIDES.get(kind, max(photo.size))):
            raise UserError(f"{kind} allows {longest} pixels a side; use --format png")
        if kind == "JPEG":
            options["subsampling"] = subsampling
        elif kind == "WEBP":
            options["exact"] = True  # keeps the colours of transparent pixels
            options["lossless"] = quality is None and photo.is_lossless
        with atomic_file(path) as file:
            write_container(file, image, kind, metadata, options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Pillow's encoders raise any type of error at invalid metadata
        raise UserError(f"{path}: cannot be written: {error}") from error
    return notes
