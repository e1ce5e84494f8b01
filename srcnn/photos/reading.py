"""Finding and decoding photos: orientation, colour modes, transparency; resize rules; luma.

Arrays are uint8, `(H, W)` for greyscale and `(H, W, 3)` for RGB, levels 0..255. Does not import torch, so that
preprocessing workers start fast.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from srcnn.photos.deep_pixels import bits_of, head_of, is_deep, read_deep
from srcnn.photos.file_kinds import NAMES
from srcnn.photos.heif import brands_of, colour_note
from srcnn.photos.opening import MAX_MEGAPIXELS as MAX_MEGAPIXELS
from srcnn.photos.opening import PhotoRefused as PhotoRefused
from srcnn.photos.opening import open_image as open_image
from srcnn.photos.truncated import CompletedFile
from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import InvalidInput

KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
         ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}  # format by suffix
READ_ONLY_KINDS = {".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".j2c": "JPEG2000", ".jpf": "JPEG2000",
                   ".jpx": "JPEG2000", ".jxl": "JXL", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
READ_ONLY_RESULT = ".png"  # lossless, of 8 and 16 bits
SUFFIXES = frozenset(KINDS | READ_ONLY_KINDS)  # of photos that are read
PLAIN_MODES = ("L", "LA", "RGB", "RGBA")  # 8 bits a channel
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag 0x0112
NUM_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # of a TIFF, by its photometric interpretation: RGB, CMYK, YCbCr, LAB; else 1
ALPHAS = (1, 2, 999)  # TIFF extra samples: premultiplied, not, as Corel Draw says it
FLOATS = "floating-point pixels have no defined range; save it with 8 or 16 bits"
HIDDEN = "alpha of 0 everywhere ignored"


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


def photos_below(folder: Path) -> list[Path]:
    """The photos that `find_photos` finds. Raises FileNotFoundError if there are none."""
    photos, _ = find_photos(folder)
    if not photos:
        raise FileNotFoundError(f"{folder}: no photo ({NAMES}) in this folder or below it")
    return photos


def suffix_of(path: Path) -> str:
    """The suffix for a result in the photo's own format: the file's own if it fits the content, else one that does;
    .png for formats that are not written. Raises PhotoRefused.
    """
    with open_image(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
    if KINDS.get(path.suffix.lower()) == kind:
        return path.suffix
    return next((suffix for suffix, name in KINDS.items() if name == kind), READ_ONLY_RESULT)


def result_suffix(path: Path) -> str:
    """The suffix for a result in the format that the suffix of a photo tells: the same, or .png."""
    return READ_ONLY_RESULT if path.suffix.lower() in READ_ONLY_KINDS else path.suffix


def read_photo(source: Path | bytes, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Decodes a photo, a file or its bytes, upright and over white: uint8, (H, W) or (H, W, 3) RGB.

    Raises:
        PhotoRefused: unreadable, truncated, several frames, pixels of more than 16 bits, or too many pixels.
    """
    with open_image(source, max_megapixels) as image:
        return np.asarray(over_white(eight_bit_image(decode(image)[0])))


def decode(
    image: ImageFile.ImageFile, turn: bool = True
) -> tuple[Image.Image | np.ndarray, tuple[str, ...]]:
    """Decodes an image of `open_image`, upright unless `turn` is False: photos and members of shards alike.

    Returns:
        An image of one of PLAIN_MODES, or uint16 (H, W) or (H, W, C) with C = 2 (grey, alpha), 3 or 4; and notes on
        what was left out, repaired and converted.

    Raises:
        InvalidInput: cut off, or levels below zero or of more than 16 bits; and whatever Pillow raises. `open_image`
            makes a PhotoRefused of it.
    """
    notes, bits = _left_out(image), bits_of(image)
    if isinstance(image.fp, CompletedFile):
        notes.append(_cut_note(image.fp))
    if is_deep(image, bits):
        pixels = read_deep(image, stored_size(image), bits)
        return _shown(upright_array(pixels, orientation_of(image) if turn else 1), image.format, notes)
    if image.mode == "F":
        raise InvalidInput(FLOATS)
    if image.mode.startswith("I"):
        raise InvalidInput("levels of more than 16 bits, or below zero; save it with 8 or 16 bits")
    size = image.size
    image.load()
    if image.format == "HEIF" and image.size != size:
        raise InvalidInput(f"{image.width}x{image.height} pixels, unlike its header")
    if bits > 8:
        notes.append(f"{bits} bits reduced to 8")
    decoded, conversions = to_plain_mode(turn_upright(image) if turn else image)
    return _shown(decoded, image.format, [*notes, *conversions])


def _left_out(image: ImageFile.ImageFile) -> list[str]:
    """Notes on the parts of a file that are not decoded."""
    notes = list(getattr(image, "notes", ()))
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        if getattr(image, "is_animated", False) and image.format != "MPO":  # whose pictures are kept as they are
            notes.append("only the first of several pictures kept")
        if image.format in ("AVIF", "HEIF"):
            head = head_of(image)
            if b"tmap" in brands_of(head) or any(image.info.get(name) for name in ("depth_images", "aux")):
                notes.append("gain map, depth or other auxiliary pictures left out")
            notes += () if image.info.get("icc_profile") else colour_note(head)
        return notes
    if image.is_animated:
        notes.append("reduced copies or masks in the TIFF left out")
    tags = image.tag_v2
    num_bands = NUM_COLOURS.get(tags.get(Tag.PhotometricInterpretation, 1), 1) + (
        tags.get(Tag.ExtraSamples, (ALPHAS[0],) if image.mode[-1] == "A" else (0,))[0] in ALPHAS)
    if (num_extra := tags.get(Tag.SamplesPerPixel, 1) - num_bands) > 0:
        notes.append(f"further bands of the TIFF left out: {num_extra}")
    return notes


def _cut_note(file: CompletedFile) -> str:
    """A note on a file whose end is missing. Raises InvalidInput if some of the picture is, unless that is allowed."""
    if file.share == 1:
        return "end marker missing"
    told = f"cut off: some {int(100 * file.share)} % of the picture is there"
    if not file.is_allowed:
        raise InvalidInput(f"is {told}; `srcnn restore --allow-truncated` saves that")
    return f"{told}, the rest is empty"


def _shown(
    pixels: Image.Image | np.ndarray, kind: str | None, notes: list[str]
) -> tuple[Image.Image | np.ndarray, tuple[str, ...]]:
    """Decoded pixels and their notes, without an alpha that is 0 everywhere: many programs write one into a BMP, and
    none heeds it. In other formats it is kept over a single colour: that file is empty.
    """
    if isinstance(pixels, Image.Image):
        alpha = pixels.getchannel("A") if pixels.mode in ("LA", "RGBA") else None
        is_hidden = alpha is not None and alpha.getextrema()[1] == 0 and (
            kind == "BMP" or any(np.ptp(band.getextrema()) > 0 for band in pixels.split()))
        return (pixels.convert(pixels.mode[:-1]), (*notes, HIDDEN)) if is_hidden else (pixels, tuple(notes))
    if pixels.shape[2:] not in ((2,), (4,)) or pixels[..., -1].any() or (pixels == pixels[0, 0]).all():
        return pixels, tuple(notes)
    colours = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :-1]
    return np.ascontiguousarray(colours), (*notes, HIDDEN)


def _managed(image: Image.Image) -> Image.Image | None:
    """CMYK -> sRGB by the image's ICC profile; None without a usable one."""
    if not (profile := image.info.get("icc_profile")):
        return None
    try:
        return ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def eight_bit_image(pixels: Image.Image | np.ndarray) -> Image.Image:
    """The image, with its levels reduced if they have 16 bits."""
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(to_eight_bits(pixels))


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; the image itself if it is upright."""
    turn = TURNS.get(orientation_of(image))  # not ImageOps.exif_transpose, which fails at odd EXIF as it rewrites it
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """The orientation 1..8 of the EXIF, or of the XMP if it has none; 1 if there is none, or it is damaged."""
    try:
        orientation = image.getexif().get(Tag.Orientation, 1)
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
        return image.tag_v2[Tag.ImageWidth], image.tag_v2[Tag.ImageLength]
    return image.size


def upright_array(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels, (H, W) or (H, W, C), turned upright by their orientation 1..8 (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def to_plain_mode(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """An image of at most 8 bits a channel in one of PLAIN_MODES, the same where it has such a mode already; and notes
    on conversions. CMYK is converted by its ICC profile, if it has a usable one.
    """
    if image.mode == "CMYK" and (managed := _managed(image)):
        return managed, ("CMYK converted to sRGB by its profile",)
    if image.mode in ("LA", "RGBA") or image.mode in PLAIN_MODES and "transparency" not in image.info:
        return image, ()
    is_grey = image.mode in ("1", "L", "La")
    converted = image.convert("L" if is_grey else "RGB")
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    converted.info.clear()
    return converted, () if is_grey or image.mode == "RGB" else (f"{image.mode} converted to RGB",)


def to_eight_bits(levels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded: level v is v / 257. Row by row, as a whole photo of floats takes gigabytes."""
    reduced = np.empty(levels.shape, np.uint8)
    for row, wide_row in zip(reduced, levels, strict=True):
        row[:] = np.rint(wide_row / 257)
    return reduced


def over_white(image: Image.Image) -> Image.Image:
    """An image of one of PLAIN_MODES as L or RGB, with transparent parts blended with white; itself if it has no alpha.
    """
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
