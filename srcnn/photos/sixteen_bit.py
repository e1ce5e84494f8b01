"""16 bits a channel, which Pillow reads and writes for greyscale only: PNG by imagecodecs, TIFF read by tifffile.

Arrays are uint16, `(H, W)` or `(H, W, C)` with C = 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), levels 0..65535.
"""

from __future__ import annotations

import io
import math
import struct
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from srcnn.photos.metadata import Metadata, pillow_options
from srcnn.runtime.untrusted import InvalidInput

BITS_TAG, FORMAT_TAG, PHOTOMETRIC_TAG = 258, 339, 262
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
PNG_START_BYTES = 8 + 25  # the signature and the header of the picture
PNG_LEVEL = 6
ICC_TAG = 34675
# Lossless, of plain bytes: none, LZW, deflate, packbits, LZMA, zstd. Others bring a size of their own.
CODECS = {1, 5, 8, 32946, 32773, 34925, 50000}
MAX_TILE_PIXELS = 1 << 24
INCH, UNSPECIFIED, PREMULTIPLIED, UNASSOCIATED_ALPHA, UNDEFINED = 2, 0, 1, 2, 7  # TIFF 6.0
FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image is a PNG or TIFF, grey or RGB, of 16 bits a channel."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return bool(image.tile) and ";16" in str(image.tile[0][3])
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    return (set(tags.get(BITS_TAG, ())) == {16} and set(tags.get(FORMAT_TAG, (1,))) == {1}
            and tags.get(PHOTOMETRIC_TAG) in (MIN_IS_WHITE, MIN_IS_BLACK, RGB))


def read_deep(image: Image.Image, file: IO[bytes]) -> np.ndarray:
    """All levels of an opened image that `is_deep`, as stored (not turned upright).

    Raises:
        InvalidInput: another shape than the header told, or damaged.
    """
    file.seek(0)
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        pixels = _read_tiff(file, width, height)
    else:
        import imagecodecs  # slow to import, and wanted only here

        pixels = imagecodecs.png_decode(file.read())
        if "transparency" in image.info and pixels.shape[2:] in ((), (3,)):
            pixels = _with_alpha(pixels, image.info["transparency"])
    shapes = [(height, width, *channels) for channels in ((), (2,), (3,), (4,))]
    if pixels.dtype != np.uint16 or pixels.shape not in shapes:
        raise InvalidInput(f"{pixels.dtype} of shape {pixels.shape}; expected uint16, {height} rows, {width} columns")
    return pixels


def _read_tiff(file: IO[bytes], width: int, height: int) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(file, name="photo.tif") as tiff:  # the file, of a descriptor, has a number for its name
        page = tiff.pages.first
        # Of a tag that is there twice, Pillow takes the last and tifffile the first.
        if (page.imagewidth, page.imagelength) != (width, height) or page.nbytes > 8 * width * height:
            raise InvalidInput(f"{page.nbytes} bytes of {page.imagewidth}x{page.imagelength} pixels; "
                              f"expected {width}x{height}")
        if page.compression not in CODECS:
            raise InvalidInput(f"16 bits compressed by method {int(page.compression)}")
        if math.prod(page.chunked) > len(page.dataoffsets):
            raise InvalidInput(f"{len(page.dataoffsets)} of {math.prod(page.chunked)} strips or tiles are there")
        if page.is_tiled and page.tilewidth * page.tilelength > MAX_TILE_PIXELS:
            raise InvalidInput(f"tiles of {page.tilewidth}x{page.tilelength} pixels")
        if max(page.databytecounts, default=0) > tiff.filehandle.size:  # reading allocates all that it asks for
            raise InvalidInput("a strip or tile of more bytes than the file has")
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
        if page.extrasamples and page.extrasamples[0] == UNSPECIFIED:  # no transparency
            pixels = np.ascontiguousarray(pixels[..., :3] if page.photometric == RGB else pixels[..., 0])
        if page.extrasamples == (PREMULTIPLIED,):
            return straight(pixels)
        return np.iinfo(np.uint16).max - pixels if page.photometric == MIN_IS_WHITE else pixels


def straight(pixels: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by their alpha, the last channel, as they were before; black where it is 0."""
    colours, alpha = pixels[..., :-1].astype(np.float32), pixels[..., -1:]
    np.divide(colours * 65535, alpha, out=colours, where=alpha > 0)
    return np.concatenate([np.rint(colours.clip(0, 65535)).astype(np.uint16), alpha], -1)


def _with_alpha(pixels: np.ndarray, transparent: Any) -> np.ndarray:
    """A PNG's one transparent level or colour as alpha."""
    planes = np.atleast_3d(pixels)
    alpha = np.where((planes == np.uint16(transparent)).all(-1, keepdims=True), np.uint16(0), np.uint16(65535))
    return np.concatenate([planes, alpha], -1)


def write_png(file: IO[bytes], pixels: np.ndarray, metadata: Metadata) -> None:
    """The chunks of metadata are those of a picture of one pixel that Pillow writes."""
    import imagecodecs

    start = io.BytesIO()
    Image.new("L", (1, 1)).save(start, "PNG", **pillow_options(metadata, "PNG"))
    chunks = start.getvalue()[PNG_START_BYTES:]
    content = imagecodecs.png_encode(pixels, level=PNG_LEVEL)
    file.write(content[:PNG_START_BYTES])
    place = 0
    while chunks[place + 4 : place + 8] != b"IDAT":
        length = 12 + struct.unpack_from(">I", chunks, place)[0]
        file.write(chunks[place : place + length])
        place += length
    file.write(memoryview(content)[PNG_START_BYTES:])


def write_tiff(file: IO[bytes], pixels: np.ndarray, metadata: Metadata) -> None:
    """Uncompressed, in one strip behind the directory, which Pillow writes with EXIF's folders below it."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength] = width, height
    tags[BITS_TAG] = (16,) * channels
    tags[ExifTags.Base.Compression], tags[ExifTags.Base.PlanarConfiguration] = 1, 1
    tags[PHOTOMETRIC_TAG] = RGB if channels >= 3 else MIN_IS_BLACK
    tags[ExifTags.Base.SamplesPerPixel], tags[ExifTags.Base.RowsPerStrip] = channels, height
    tags[ExifTags.Base.StripOffsets] = 0  # counted from the directory's end
    tags[ExifTags.Base.StripByteCounts] = pixels.nbytes
    if channels in (2, 4):
        tags[ExifTags.Base.ExtraSamples] = UNASSOCIATED_ALPHA
    if metadata.dpi:
        tags[ExifTags.Base.XResolution], tags[ExifTags.Base.YResolution] = metadata.dpi
        tags[ExifTags.Base.ResolutionUnit] = INCH
    if metadata.icc_profile:
        tags[ICC_TAG] = metadata.icc_profile
        tags.tagtype[ICC_TAG] = UNDEFINED
    exif = pillow_options(metadata, "TIFF").get("exif", {})
    for tag in exif:
        tags[tag] = exif.get_ifd(tag) if tag in FOLDERS else exif[tag]
    tags.save(file)  # the header too
    file.write(np.ascontiguousarray(pixels, "<u2").data)
