"""Writes PNG and TIFF with 16 bits a channel, of which Pillow writes greyscale only.

Arrays are uint16, `(H, W)` or `(H, W, C)` with C = 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), levels 0..65535.
"""

from __future__ import annotations

import io
from typing import IO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from srcnn.photos.metadata import Metadata, pillow_options

BITS_TAG, PHOTOMETRIC_TAG = 258, 262
MIN_IS_BLACK, RGB = 1, 2
PNG_START_BYTES = 8 + 25  # the signature and the chunk IHDR
PNG_LEVEL = 6
ICC_TAG = 34675
INCH, UNASSOCIATED_ALPHA, UNDEFINED = 2, 2, 7  # TIFF 6.0
SUB_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def write_png(file: IO[bytes], pixels: np.ndarray, metadata: Metadata) -> None:
    """Writes a PNG with the metadata chunks that Pillow writes into a picture of one pixel."""
    import imagecodecs

    start = io.BytesIO()
    Image.new("L", (1, 1)).save(start, "PNG", **pillow_options(metadata, "PNG"))
    one_pixel = start.getvalue()  # the last "IDAT" in it is the type of its pixels' chunk, after four bytes of length
    content = imagecodecs.png_encode(pixels, level=PNG_LEVEL)
    file.write(content[:PNG_START_BYTES])
    file.write(one_pixel[PNG_START_BYTES : one_pixel.rindex(b"IDAT") - 4])
    file.write(memoryview(content)[PNG_START_BYTES:])


def write_tiff(file: IO[bytes], pixels: np.ndarray, metadata: Metadata) -> None:
    """Writes an uncompressed TIFF: the directory and the sub-IFDs of the EXIF by Pillow, then one strip."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength] = width, height
    tags[BITS_TAG] = (16,) * channels
    tags[ExifTags.Base.Compression], tags[ExifTags.Base.PlanarConfiguration] = 1, 1
    tags[PHOTOMETRIC_TAG] = RGB if channels >= 3 else MIN_IS_BLACK
    tags[ExifTags.Base.SamplesPerPixel], tags[ExifTags.Base.RowsPerStrip] = channels, height
    tags[ExifTags.Base.StripOffsets] = 0  # Pillow adds the end of the directory
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
        tags[tag] = exif.get_ifd(tag) if tag in SUB_IFDS else exif[tag]
    tags.save(file)  # with the header
    file.write(np.ascontiguousarray(pixels, "<u2").data)
