"""Writes pixels and metadata as a JPEG, PNG, TIFF, WebP or BMP. The metadata must come from `drop_unsupported`.

Arrays are uint16, `(H, W)` or `(H, W, C)` with C = 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha); images of 8 bits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, Any

import numpy as np
from PIL import Image

from srcnn.photos import jpeg_parts, png_chunks, tiff_tags, webp_chunks
from srcnn.photos.metadata import RESOLUTION_CHUNK, Metadata, pillow_options
from srcnn.photos.tiff_tags import BYTE, LONG, RATIONAL, SHORT, UNDEFINED, Directory, Value
from srcnn.runtime.extras import extra

PNG_LEVEL = 6
INCHES_PER_METRE = 1 / 0.0254
BAND_BYTES = 16 << 20  # converted at a time
MIN_IS_BLACK, RGB, UNASSOCIATED_ALPHA, INCH = 1, 2, 2, 2  # TIFF 6.0


def write_container(
    file: IO[bytes], image: Image.Image | np.ndarray, kind: str, metadata: Metadata, options: dict[str, Any]
) -> None:
    """Writes a photo into an empty file; `options` are those of Pillow's `save`. An array as PNG or TIFF only."""
    if kind == "PNG":
        write_png(file, image, metadata)
    elif kind == "TIFF":
        write_tiff(file, image, metadata)
    else:
        assert isinstance(image, Image.Image)
        image.save(file, kind, **options, **pillow_options(metadata, kind))
        if metadata.appended:
            jpeg_parts.append(file, metadata.appended)
        if metadata.webp_chunks:
            webp_chunks.append_chunks(file, metadata.webp_chunks, *image.size, image.mode in ("LA", "RGBA"))


def write_png(file: IO[bytes], image: Image.Image | np.ndarray, metadata: Metadata) -> None:
    """Writes a PNG with its chunks."""
    target = png_chunks.InsertingFile(file, b"".join(_png_metadata(metadata)))
    if isinstance(image, Image.Image):
        image.save(target, "PNG")  # type: ignore[arg-type]
    else:
        with extra("formats"):
            import imagecodecs  # slow to import

        target.write(memoryview(imagecodecs.png_encode(image, level=PNG_LEVEL)))
    png_chunks.append_chunks(file, b"".join(png_chunks.chunk_bytes(*chunk) for chunk in metadata.png_chunks_after))


def _png_metadata(metadata: Metadata) -> Iterator[bytes]:
    chunks = list(metadata.png_chunks)
    if metadata.icc_profile:  # not beside sRGB, as the specification says
        chunks = [chunk for chunk in chunks if chunk[0] != b"sRGB"]
        chunks.insert(0, (b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.dpi:
        across, down = (round(side * INCHES_PER_METRE) for side in metadata.dpi)
        chunks.append((RESOLUTION_CHUNK, struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp:  # XMP specification part 3, section 1.1.5: an uncompressed international text
        chunks.append((b"iTXt", png_chunks.XMP_KEY + b"\0\0\0\0\0" + metadata.xmp))
    if blocks := metadata.resources():
        chunks.append(png_chunks.raw_profile_chunk(b"iptc", blocks))
    return (png_chunks.chunk_bytes(*chunk) for chunk in chunks)


def write_tiff(file: IO[bytes], image: Image.Image | np.ndarray, metadata: Metadata) -> None:
    """Writes an uncompressed TIFF of one strip, in the byte order of the EXIF, whose tags become its own."""
    order, directory, *_ = tiff_tags.read_tags(metadata.exif) if metadata.exif else ("<", {})
    file.write((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    start = file.tell()
    for band in _bands(image, order):
        file.write(band)
    directory |= _storage_tags(image, order, start, file.tell() - start) | _own_tags(metadata, order)
    file.write(bytes(file.tell() % 2))
    place = file.tell()
    file.write(tiff_tags.write_directory(directory, order, place))
    file.seek(4)
    file.write(struct.pack(order + "I", place))


def _bands(image: Image.Image | np.ndarray, order: str) -> Iterator[bytes | memoryview]:
    """The bytes of the pixels, some rows at a time."""
    if isinstance(image, np.ndarray):
        rows = max(1, BAND_BYTES // max(1, image[:1].nbytes))
        yield from (np.ascontiguousarray(image[top : top + rows], order + "u2").data
                    for top in range(0, len(image), rows))
    else:
        rows = max(1, BAND_BYTES // (image.width * len(image.mode)))
        yield from (image.crop((0, top, image.width, min(top + rows, image.height))).tobytes()
                    for top in range(0, image.height, rows))


def _storage_tags(image: Image.Image | np.ndarray, order: str, start: int, num_bytes: int) -> Directory:
    if isinstance(image, np.ndarray):
        (height, width), bits, channels = image.shape[:2], 16, image.shape[2] if image.ndim == 3 else 1
    else:
        (width, height), bits, channels = image.size, 8, len(image.mode)
    values = {256: (LONG, width), 257: (LONG, height), 258: (SHORT, *[bits] * channels), 259: (SHORT, 1),
              262: (SHORT, RGB if channels >= 3 else MIN_IS_BLACK), 273: (LONG, start), 277: (SHORT, channels),
              278: (LONG, height), 279: (LONG, num_bytes), 284: (SHORT, 1)}
    if channels in (2, 4):
        values[338] = (SHORT, UNASSOCIATED_ALPHA)
    return {tag: _numbers(order, *value) for tag, value in values.items()}


def _own_tags(metadata: Metadata, order: str) -> Directory:
    """Tags of what has a field of its own in the metadata."""
    directory: Directory = {}
    for tag, kind, content in ((tiff_tags.XMP_TAG, BYTE, metadata.xmp), (tiff_tags.IPTC_TAG, UNDEFINED, metadata.iptc),
                               (tiff_tags.PHOTOSHOP_TAG, BYTE, metadata.photoshop),
                               (tiff_tags.ICC_TAG, UNDEFINED, metadata.icc_profile)):
        if content:
            directory[tag] = Value(kind, len(content), content)
    if metadata.dpi:
        for tag, side in zip((282, 283), metadata.dpi, strict=True):
            fraction = Fraction(side).limit_denominator(1 << 16)
            directory[tag] = Value(RATIONAL, 1, struct.pack(order + "II", fraction.numerator, fraction.denominator))
        directory[296] = _numbers(order, SHORT, INCH)
    return directory


def _numbers(order: str, kind: int, *numbers: int) -> Value:
    return Value(kind, len(numbers), struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers))
