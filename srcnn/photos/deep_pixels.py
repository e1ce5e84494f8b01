"""Reads photos of 9 to 16 bits a channel, which Pillow reduces to 8 or does not read, by the libraries that can.

PNG, AVIF, JPEG 2000 and JPEG XL by imagecodecs, TIFF by tifffile, HEIC by pillow-heif. Arrays are uint16, `(H, W)` or
`(H, W, C)` with C = 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), levels 0..65535.
"""

from __future__ import annotations

import io
import math
from typing import IO, Any

import numpy as np
from PIL import ImageFile, PngImagePlugin, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from srcnn.photos import heif, jpeg2000, jpegxl
from srcnn.runtime.extras import extra
from srcnn.runtime.untrusted import InvalidInput

MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
# TIFF compression: none, LZW, deflate (two codes), packbits, LZMA, zstd. Others have a header with a size of its own.
CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}
MAX_TILE_PIXELS = 1 << 24
MAX_BANDS = 8
PREMULTIPLIED, UNASSOCIATED_ALPHA = 1, 2  # TIFF 6.0
MAX_BITS = 16
HEAD_BYTES = 1 << 16


def bits_of(image: ImageFile.ImageFile) -> int:
    """The bits a channel of an opened, not yet decoded image; 8 for formats that have no more."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(Tag.BitsPerSample, (1,)))
    if isinstance(image, PngImagePlugin.PngImageFile):
        return head_of(image)[24]  # of the chunk IHDR, which is the first
    if isinstance(image, jpegxl.JpegXlImage):
        return image.bits
    if image.format == "JPEG2000":
        return jpeg2000.bits_of(head_of(image))
    if image.format == "AVIF":
        return heif.avif_bits(head_of(image))
    bits = image.info.get("bit_depth", 8) if image.format == "HEIF" else 8
    return bits if isinstance(bits, int) else 8


def head_of(image: ImageFile.ImageFile) -> bytes:
    """The first HEAD_BYTES of the file of an opened, not yet decoded image."""
    assert image.fp is not None
    image.fp.seek(0)
    return image.fp.read(HEAD_BYTES)


def is_deep(image: ImageFile.ImageFile, bits: int) -> bool:
    """Whether `read_deep` reads an opened image: grey or RGB, unsigned integers of 9 to 16 bits."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if set(tags.get(Tag.BitsPerSample, ())) != {bits} or set(tags.get(Tag.SampleFormat, (1,))) != {1} \
                or tags.get(Tag.PhotometricInterpretation) not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB):
            return False
    return 8 < bits <= MAX_BITS and image.mode not in ("CMYK", "P", "PA", "LAB")


def read_deep(image: ImageFile.ImageFile, size: tuple[int, int], bits: int) -> np.ndarray:
    """The pixels of an opened, not yet decoded image that `is_deep`, of a stored `size` (width, height), as stored.

    Raises:
        InvalidInput: the pixels do not match the header, or the TIFF is of an unsupported kind.
    """
    file = image.fp
    assert file is not None
    width, height = size
    file.seek(0)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pixels = _read_tiff(file, image.tell(), width, height)
    else:
        pixels = _decoded(image, file.read())
        if isinstance(image, PngImagePlugin.PngImageFile):  # whose EXIF may follow the pixels
            image.load()
        if "transparency" in image.info and pixels.shape[2:] in ((), (3,)):
            pixels = _with_alpha(pixels, image.info["transparency"])
    shapes = [(height, width, *channels) for channels in ((), (2,), (3,), (4,))]
    if pixels.dtype != np.uint16 or pixels.shape not in shapes:
        raise InvalidInput(f"{pixels.dtype} of shape {pixels.shape}; expected uint16, {height} rows, {width} columns")
    if bits < MAX_BITS and image.format != "PNG":
        levels = np.arange(1 << bits, dtype=np.float64) / ((1 << bits) - 1)
        pixels = np.rint(levels * 65535).astype(np.uint16).take(pixels, mode="clip")
    return pixels


def _decoded(image: ImageFile.ImageFile, content: bytes) -> np.ndarray:
    if isinstance(image, jpegxl.JpegXlImage):
        return jpegxl.decode(content, image)
    if image.format == "HEIF":
        return heif.decode_heic(io.BytesIO(content), image.tell())
    with extra("formats"):
        import imagecodecs  # slow to import

    if image.format == "AVIF":
        return imagecodecs.avif_decode(content, index=0)
    return imagecodecs.jpeg2k_decode(content) if image.format == "JPEG2000" else imagecodecs.png_decode(content)


def _read_tiff(file: IO[bytes], index: int, width: int, height: int) -> np.ndarray:
    with extra("formats"):
        import tifffile

    with tifffile.TiffFile(file, name="photo.tif") as tiff:  # `file.name` is the number of a descriptor
        page = tiff.pages[index]
        # If a tag occurs twice, Pillow takes the last and tifffile the first.
        if (page.imagewidth, page.imagelength) != (width, height) or page.nbytes > 2 * MAX_BANDS * width * height:
            raise InvalidInput(f"{page.nbytes} bytes of {page.imagewidth}x{page.imagelength} pixels; "
                              f"expected {width}x{height}")
        if page.compression not in CODECS:
            raise InvalidInput(f"TIFF compression {int(page.compression)} is not supported with 16 bits")
        if math.prod(page.chunked) > len(page.dataoffsets):
            raise InvalidInput(f"has {len(page.dataoffsets)} of {math.prod(page.chunked)} strips or tiles")
        if page.is_tiled and page.tilewidth * page.tilelength > MAX_TILE_PIXELS:
            raise InvalidInput(f"tiles of {page.tilewidth}x{page.tilelength} pixels are too large")
        if max(page.databytecounts, default=0) > tiff.filehandle.size:  # tifffile allocates these bytes before it reads
            raise InvalidInput("a strip or tile of more bytes than the file has")
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
        pixels = _colours_and_alpha(pixels, page.photometric == RGB, page.extrasamples)
        if page.extrasamples[:1] == (PREMULTIPLIED,):
            return unpremultiply(pixels)
        most = np.uint16((1 << page.bitspersample) - 1)
        return most - pixels if page.photometric == MIN_IS_WHITE else pixels


def _colours_and_alpha(pixels: np.ndarray, is_rgb: bool, extra: tuple[int, ...]) -> np.ndarray:
    """Without the bands that are neither."""
    if pixels.ndim == 2:
        return pixels
    num_bands = (3 if is_rgb else 1) + (extra[:1] in ((PREMULTIPLIED,), (UNASSOCIATED_ALPHA,)))
    return np.ascontiguousarray(pixels[..., 0] if num_bands == 1 else pixels[..., :num_bands])


def unpremultiply(pixels: np.ndarray) -> np.ndarray:
    """Divides the colours by alpha, the last channel; black where it is 0."""
    colours, alpha = pixels[..., :-1].astype(np.float32), pixels[..., -1:]
    np.divide(colours * 65535, alpha, out=colours, where=alpha > 0)
    return np.concatenate([np.rint(colours.clip(0, 65535)).astype(np.uint16), alpha], -1)


def _with_alpha(pixels: np.ndarray, transparent: Any) -> np.ndarray:
    """Adds an alpha channel that is 0 where a PNG has its transparent level or colour."""
    planes = np.atleast_3d(pixels)
    alpha = np.where((planes == np.uint16(transparent)).all(-1, keepdims=True), np.uint16(0), np.uint16(65535))
    return np.concatenate([planes, alpha], -1)
