"""Finding and decoding photos: orientation, colour modes, transparency; resize rules; luma.

Arrays are uint8, `(H, W)` for greyscale and `(H, W, 3)` for RGB, levels 0..255. Does not import torch, so that
preprocessing workers start fast.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from srcnn.photos.file_kinds import content_problem
from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, check_header, open_regular, without_pillow_limit

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
         ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}  # format by suffix
SUFFIXES = frozenset(KINDS)
PLAIN_MODES = ("L", "LA", "RGB", "RGBA")  # 8 bits a channel
MAX_MEGAPIXELS = 250.0  # which take 750 MB as RGB; a file that claims more is taken for a decompression bomb
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag 0x0112
ORIENTATION_TAG = 0x0112

LumaKind = Literal["l", "y"]


class PhotoRefused(UserError):
    """A photo that cannot be used; the message names the file and the reason."""


def _raise(error: OSError) -> NoReturn:
    raise error


def find_photos(
    folder: Path, exclude: Path | None = None, on_error: Callable[[OSError], None] = _raise
) -> tuple[list[Path], list[Path]]:
    """All files below `folder`, sorted by their relative paths: (photos, by suffix; other files).

    Skips hidden files and folders, and everything below `exclude`. Follows links to folders, visiting each folder once;
    lists a broken link as a file. `on_error` is called with the error of each folder that cannot be listed.

    Raises:
        OSError: `folder` does not exist, or what `on_error` raises.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of photos")
    excluded = Path(os.path.realpath(exclude)) if exclude else None
    photos: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        real = Path(os.path.realpath(parent))  # not Path.resolve, which raises RuntimeError at a loop of links
        if real in seen or (excluded and real.is_relative_to(excluded)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if os.path.isfile(path) or not os.path.exists(path):  # not sockets and pipes, which block when opened
                (photos if path.suffix.lower() in SUFFIXES else others).append(path)
    for paths in (photos, others):
        paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return photos, others


def photos_below(folder: Path, exclude: Path | None = None) -> list[Path]:
    """The photos that `find_photos` finds. Raises FileNotFoundError if there are none."""
    photos, _ = find_photos(folder, exclude)
    if not photos:
        raise FileNotFoundError(f"{folder}: no photo (JPEG, PNG, WebP, TIFF, BMP) in this folder or below it")
    return photos


@contextmanager
def open_image(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[ImageFile.ImageFile]:
    """Opens a photo file and checks its header. Every error here and in the `with` block becomes PhotoRefused."""
    try:
        # Not by path: Pillow (11 to 13) would memory-map a TIFF, and scramble the pixels of a sideways one, whose width
        # and height it swaps.
        with open_regular(path, MAX_PHOTO_BYTES) as file, without_pillow_limit(), \
                Image.open(file, formats=FORMATS) as image:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_header(image, content, max_megapixels * 1e6)
            # MPO: a camera JPEG with a preview. Not `n_frames`, for which Pillow reads through all pages of a TIFF.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise PhotoRefused(f"{path}: has several frames; save one of them as a file")
            yield image
    except (PhotoRefused, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        if not (reason := content_problem(path)):
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            if isinstance(error, UnidentifiedImageError):
                reason = f"not a photo in one of the formats {', '.join(FORMATS)}, or damaged"
        raise PhotoRefused(f"{path}: {reason}") from error


def suffix_of(path: Path) -> str:
    """The file's own suffix if it fits the content, else one that does. Raises PhotoRefused."""
    with open_image(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
    fits = KINDS.get(path.suffix.lower()) == kind
    return path.suffix if fits else next(suffix for suffix, name in KINDS.items() if name == kind)


def read_photo(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Decodes a photo upright and over white: uint8, (H, W) or (H, W, 3) RGB.

    Raises:
        PhotoRefused: unreadable, truncated, several frames, pixels of more than 16 bits, or too many pixels.
    """
    with open_image(path, max_megapixels) as image:
        image.load()
        return np.asarray(over_white(turn_upright(image), path))


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; the image itself if it is upright."""
    turn = TURNS.get(orientation_of(image))  # not ImageOps.exif_transpose, which fails at odd EXIF as it rewrites it
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """The orientation 1..8 of the EXIF, or of the XMP if it has none; 1 if there is none, or it is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # struct.error, SyntaxError, ... of damaged EXIF, which is no reason to refuse the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright photo. Decodes only PNGs, whose EXIF may follow the pixels."""
    width, height = stored_size(image)
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the pixels in the file: of a TIFF, Pillow's `size` is that of the upright photo since 11."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return image.size


def to_plain_mode(image: Image.Image, name: object = "image") -> tuple[Image.Image, tuple[str, ...]]:
    """An image of one of PLAIN_MODES, the same where it has such a mode already; and notes on conversions.

    Raises:
        PhotoRefused: pixels that are floating-point numbers or exceed 16 bits; `name` is the image's in the message.
    """
    if image.mode == "F":
        raise PhotoRefused(f"{name}: floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(to_eight_bits(sixteen_bit_levels(image, name))), ("16 bits reduced to 8",)
    if image.mode in ("LA", "RGBA") or image.mode in PLAIN_MODES and "transparency" not in image.info:
        return image, ()
    is_grey = image.mode in ("1", "L", "La")
    converted = image.convert("L" if is_grey else "RGB")
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    converted.info.clear()
    return converted, () if is_grey or image.mode == "RGB" else (f"{image.mode} converted to RGB",)


def sixteen_bit_levels(image: Image.Image, name: object = "image") -> np.ndarray:
    """The pixels of an image of a mode "I..." as uint16 (H, W). Raises PhotoRefused if they do not fit."""
    levels = np.asarray(image)
    if levels.dtype.itemsize > 2 and not 0 <= levels.min() <= levels.max() <= 65535:
        raise PhotoRefused(f"{name}: levels from {levels.min()} to {levels.max()}; save it with 8 or 16 bits")
    return levels.astype(np.uint16)


def to_eight_bits(levels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded: level v is v / 257. Row by row, as a whole photo of floats takes gigabytes."""
    reduced = np.empty(levels.shape, np.uint8)
    for row, wide_row in zip(reduced, levels, strict=True):
        row[:] = np.rint(wide_row / 257)
    return reduced


def over_white(image: Image.Image, name: object = "image") -> Image.Image:
    """The image as L or RGB, transparent parts blended with white; the image itself if it is that already.

    Raises:
        PhotoRefused: as `to_plain_mode`.
    """
    image, _ = to_plain_mode(image, name)
    if image.mode in ("L", "RGB"):
        return image
    white = Image.new(image.mode[:-1], image.size, "white")
    white.paste(image.convert(white.mode), mask=image.getchannel("A"))
    return white


@dataclass(frozen=True)
class Resize:
    """A parsed resize rule: `width` x `height` pixels, or the `long_side` in pixels, or a `factor`.

    With `never_enlarge`, a photo whose long side is shorter keeps its size.
    """

    width: int = 0
    height: int = 0
    long_side: int = 0
    factor: float = 1.0
    never_enlarge: bool = False

    @staticmethod
    @lru_cache(maxsize=1024)  # called for each photo
    def parse(rule: str) -> Resize:
        """Parses "1024x1024" (width x height), "long:1024" (long side), "max:1024" (at most that), "x0.5" or "none".

        Raises ValueError at any other rule.
        """
        if rule == "none":
            return Resize()
        if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", rule):
            return Resize(width=int(match[1]), height=int(match[2]))
        if match := re.fullmatch(r"(long|max):([1-9]\d*)", rule):
            return Resize(long_side=int(match[2]), never_enlarge=match[1] == "max")
        if (match := re.fullmatch(r"x(\d*\.?\d+)", rule)) and float(match[1]):
            return Resize(factor=float(match[1]))
        raise UserError(f'resize "{rule}": expected WIDTHxHEIGHT such as 1024x1024, long:1024, max:1024, x0.5 or none')

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of a resized photo, from its size before."""
        if self.width:
            return self.width, self.height
        factor = self.long_side / max(width, height) if self.long_side else self.factor
        if self.never_enlarge:
            factor = min(1.0, factor)
        return max(1, round(width * factor)), max(1, round(height * factor))


def luma_l(pixels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 -> luma (H, W) uint8 0..255 as Pillow's mode L; greyscale is returned unchanged.

    ITU-R BT.601: (19595 R + 38470 G + 7471 B + 2^15) / 2^16, rounded down.
    """
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def luma_y(pixels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 -> limited-range luma (H, W) uint8 16..235; greyscale is returned unchanged.

    ITU-R BT.601 as in MATLAB's rgb2ycbcr, which the papers use.
    """
    if pixels.ndim == 2:
        return pixels
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.rint(16 + pixels.astype(np.float64) @ weights).astype(np.uint8)


LUMA = {"l": luma_l, "y": luma_y}
