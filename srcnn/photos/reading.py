"""Photo file -> array of 8 bits: orientation, colour modes, alpha; sizes; RGB -> luma.

Arrays are uint8, `(H, W)` for greyscale and `(H, W, 3)` for RGB, levels 0..255. No torch here: preprocessing
workers import this module and must start fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, InvalidInput, check_image, open_regular, without_pillow_limit

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
         ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}  # by suffix
SUFFIXES = frozenset(KINDS)
# A 250-megapixel photo takes 750 MB as RGB; whatever claims more is taken for a decompression bomb.
MAX_MEGAPIXELS = 250.0
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag 0x0112
ORIENTATION_TAG = 0x0112

LumaKind = Literal["l", "y"]


class PhotoRefused(UserError):
    """A photo that cannot be used; the message says which one and why."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo, upright.

    Attributes:
        pixels: uint8, (H, W) or (H, W, 3) RGB.
        alpha: uint8 (H, W), or None where the file has no transparency.
        notes: conversions the reader had to make ("CMYK converted to RGB").
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def find_photos(folder: Path, exclude: Path | None = None) -> tuple[list[Path], list[Path]]:
    """All files below `folder`, in the order of their relative names: (photos by suffix, other files).

    Hidden files and folders, and whatever lies below `exclude`, are not looked at. Links to folders are followed, each
    folder once. A folder that cannot be listed raises its OSError; a broken link is listed as a file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of photos")
    excluded = exclude.resolve() if exclude else None
    photos: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        real = Path(parent).resolve()
        if real in seen or (excluded and real.is_relative_to(excluded)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            # neither sockets nor pipes: opening one would wait for ever
            if path.is_file() or not path.exists():
                (photos if path.suffix.lower() in SUFFIXES else others).append(path)
    for paths in (photos, others):
        paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return photos, others


def photos_below(folder: Path, exclude: Path | None = None) -> list[Path]:
    """The photos that `find_photos` finds; raises FileNotFoundError where there is none."""
    photos, _ = find_photos(folder, exclude)
    if not photos:
        raise FileNotFoundError(f"{folder}: no photo (JPEG, PNG, WebP, TIFF, BMP) in this folder or below it")
    return photos


def _stop(error: OSError) -> NoReturn:
    raise error


@contextmanager
def open_image(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[ImageFile.ImageFile]:
    """Opens a photo file and checks what its header says; every failure to read it becomes PhotoRefused."""
    try:
        # A file object, not a path: Pillow maps a TIFF given by path to memory, with the width and height of
        # a sideways one swapped (Pillow 11 to 13: scrambled pixels).
        with open_regular(path, MAX_PHOTO_BYTES) as file, without_pillow_limit(), \
                Image.open(file, formats=FORMATS) as image:
            check_image(image, file, max_megapixels)
            yield image
    except InvalidInput as error:
        raise PhotoRefused(f"{path}: {error}") from error
    except (PhotoRefused, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise PhotoRefused(f"{path}: not a {', '.join(FORMATS)} picture, or damaged") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise PhotoRefused(f"{path}: cannot be read: {error}") from error


def suffix_of(path: Path) -> str:
    """The suffix that a photo file's content calls for, its own where it fits. Raises PhotoRefused."""
    with open_image(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
    fits = KINDS.get(path.suffix.lower()) == kind
    return path.suffix if fits else next(suffix for suffix, name in KINDS.items() if name == kind)


def read_photo(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Decodes a photo upright.

    Raises:
        PhotoRefused: unreadable, truncated, several frames, floating-point pixels, or more pixels than allowed.
    """
    with open_image(path, max_megapixels) as image:
        image.load()
        return Photo(*image_to_arrays(turn_upright(image), path))


def turn_upright(image: Image.Image) -> Image.Image:
    """The image after its EXIF orientation; itself where it is upright, as ImageOps would copy it."""
    turn = TURNS.get(orientation_of(image))  # not ImageOps: it writes the EXIF anew, which fails where that is odd
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation 1..8, or XMP's where EXIF has none; 1 where there is none, or the EXIF is damaged."""
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises struct.error, SyntaxError, ...; the pixels are none the worse
        return 1
    return found if found in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation. Decodes nothing but PNG, whose EXIF may come last."""
    sideways = orientation_of(image) >= 5
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow turns its size, before version 11 it did not
        width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return (height, width) if sideways else (width, height)


def image_to_arrays(image: Image.Image, name: object = "image") -> tuple[np.ndarray, Any, tuple[str, ...]]:
    """Pillow image of any mode -> (pixels uint8 (H, W) or (H, W, 3), alpha or None, notes on conversions)."""
    if image.mode == "F":
        raise PhotoRefused(f"{name}: floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return eight_bits(np.asarray(image)), None, ("16 bits reduced to 8",)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
    grey = image.mode in ("1", "L", "LA", "La")
    notes = () if grey or image.mode in ("RGB", "RGBA") else (f"{image.mode} converted to RGB",)
    mode = "L" if grey else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)), alpha, notes


def eight_bits(wide: np.ndarray) -> np.ndarray:
    """Levels 0..65535 -> uint8, row by row. Pillow's own I;16 -> L clips at 255; a level v is v / 257 of 8 bits."""
    levels = np.empty(wide.shape, np.uint8)
    for row, wide_row in zip(levels, wide, strict=True):
        row[:] = np.clip(np.rint(wide_row / 257), 0, 255)
    return levels


def over_white(photo: Photo) -> np.ndarray:
    """The photo's pixels laid over white where it is transparent: what a viewer shows."""
    if photo.alpha is None:
        return photo.pixels
    opacity = photo.alpha.astype(np.float32) / 255
    if photo.pixels.ndim == 3:
        opacity = opacity[..., None]
    return np.rint(photo.pixels * opacity + 255 * (1 - opacity)).astype(np.uint8)


@dataclass(frozen=True)
class Resize:
    """A parsed resize rule: `width`x`height`, or `long_side` pixels, or a `factor`; or to keep the size.

    With `never_enlarge` photos whose long side is shorter stay as they are.
    """

    width: int = 0
    height: int = 0
    long_side: int = 0
    factor: float = 1.0
    never_enlarge: bool = False

    @staticmethod
    @lru_cache(maxsize=1024)  # asked for each photo
    def parse(rule: str) -> Resize:
        """ "1024x1024" (width x height), "long:1024" (long side), "max:1024" (long side at most), "x0.5" or "none"."""
        if rule == "none":
            return Resize()
        if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", rule):
            return Resize(width=int(match[1]), height=int(match[2]))
        if match := re.fullmatch(r"(long|max):([1-9]\d*)", rule):
            return Resize(long_side=int(match[2]), never_enlarge=match[1] == "max")
        if (match := re.fullmatch(r"x(\d*\.?\d+)", rule)) and float(match[1]):
            return Resize(factor=float(match[1]))
        raise ValueError(f'resize "{rule}": expected WIDTHxHEIGHT such as 1024x1024, long:1024, max:1024, x0.5 or none')

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) in pixels that a photo of that size becomes."""
        if self.width:
            return self.width, self.height
        factor = self.long_side / max(width, height) if self.long_side else self.factor
        if self.never_enlarge:
            factor = min(1.0, factor)
        return max(1, round(width * factor)), max(1, round(height * factor))


def luma_l(pixels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 -> Pillow's L, full range 0..255, of ITU-R 601-2.

    (19595 R + 38470 G + 7471 B + 2^15) / 2^16, rounded down.

    Greyscale comes back as it is.
    """
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def luma_y(pixels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 -> limited-range Y 16..235 of ITU-R BT.601 rounded to uint8, as MATLAB's rgb2ycbcr.

    The papers' greyscale. A greyscale array is taken to be Y already.
    """
    if pixels.ndim == 2:
        return pixels
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.rint(16 + pixels.astype(np.float64) @ weights).astype(np.uint8)


LUMA = {"l": luma_l, "y": luma_y}
