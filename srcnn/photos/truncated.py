"""JPEGs and PNGs whose end is missing: completed, so that a decoder gives what is there, and how much that is.

Pillow's own switch for this, ImageFile.LOAD_TRUNCATED_IMAGES, is one for all threads, and does not tell what is
missing.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from functools import cached_property

import numpy as np
from PIL import Image

from srcnn.photos.jpeg_markers import EOI, SOS, has_all_scans, segments
from srcnn.photos.png_chunks import SIGNATURE, chunk_bytes, walk_chunks
from srcnn.photos.tiff_tags import Content
from srcnn.runtime.untrusted import MAX_JPEG_SCANS, InvalidInput, check_size

JPEG_END = b"\xff\xd9"
# Coded pixels of noise, beginning with a 1, where libjpeg takes zeros for what is missing.
NOISE = bytes(byte for byte in np.random.default_rng(0).integers(0x80, 0xFF, 4096, np.uint8))
MIN_PADDING = 16  # zero bytes at the end of a file that are taken for the padding of a recovered one
PNG_FRAMES = (b"IDAT", b"fdAT", b"acTL", b"fcTL")  # pixels, and animation
PNG_DEPTHS = (1, 2, 4, 8, 16)  # bits
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class CompletedFile(io.BytesIO):
    """A photo file whose end was missing, completed.

    Attributes:
        is_allowed: whether a picture of which something is missing is to be decoded.
        share: of the picture that is there: 1.0 if nothing but the end marker is missing.
    """

    is_allowed = False
    share: float


class CompletedJpeg(CompletedFile):
    """A JPEG without an end marker; what is missing is grey, or coarse where it is the later scans."""

    def __init__(self, content: Content) -> None:
        body = bytes(content)
        unpadded = body.rstrip(b"\0")
        body = (unpadded if len(body) - len(unpadded) >= MIN_PADDING else body).rstrip(b"\xff")
        super().__init__(body + JPEG_END)

    @cached_property
    def share(self) -> float:  # type: ignore[override]  # computed when it is asked for
        """What decodes to the same, whatever follows the data, is there; counted in rows from the top."""
        body = self.getvalue().removesuffix(JPEG_END)
        pictures = []
        for rest in (b"", NOISE):
            with Image.open(io.BytesIO(body + rest + JPEG_END), formats=("JPEG",)) as image:
                pictures.append(np.asarray(image))
        height = len(pictures[0])
        is_equal = [np.array_equal(*rows) for rows in zip(*pictures, strict=True)]
        num_rows = is_equal.index(False) if False in is_equal else height
        return num_rows / height if has_all_scans(body) else min(num_rows / height, 0.99)


class CompletedPng(CompletedFile):
    """A PNG without its last chunk; what is missing is black, or transparent.

    Raises:
        InvalidInput: more than `max_pixels`. struct.error, KeyError: its header is not whole.
    """

    def __init__(self, content: Content, max_pixels: float) -> None:
        chunks = [(kind, bytes(content[start:stop])) for kind, start, stop in walk_chunks(content)]
        header = next((data for kind, data in chunks if kind == b"IHDR"), b"")
        num_bytes, rows = png_bytes(header, max_pixels), b""
        with suppress(zlib.error):  # damaged as well
            stored = b"".join(data for kind, data in chunks if kind == b"IDAT")
            rows = zlib.decompressobj().decompress(stored, num_bytes)
        self.share = len(rows) / num_bytes
        kept = [chunk for chunk in chunks[:-1] if chunk[0] not in PNG_FRAMES]  # of the last one not all is there
        kept += [(b"IDAT", zlib.compress(rows.ljust(num_bytes, b"\0"), 0)), (b"IEND", b"")]
        super().__init__(SIGNATURE + b"".join(chunk_bytes(kind, data) for kind, data in kept))


def png_bytes(header: bytes, max_pixels: float) -> int:
    """How many bytes the rows of a PNG have, each with its filter, from the content of IHDR.

    Raises:
        InvalidInput, struct.error, KeyError: too many pixels; not a header.
    """
    width, height, depth, colour, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    check_size((width, height), max_pixels)
    if depth not in PNG_DEPTHS:
        raise KeyError(depth)
    bits = depth * PNG_CHANNELS[colour]
    passes = ADAM7 if is_interlaced else ((0, 0, 1, 1),)  # first column and row, and the steps to the next ones
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def completed(content: Content, max_pixels: float) -> CompletedFile | None:
    """A JPEG or PNG whose end is missing, completed; None for any other file.

    Raises:
        InvalidInput: a JPEG with more than MAX_JPEG_SCANS, or a PNG of more than `max_pixels`.
    """
    if content[:3] == b"\xff\xd8\xff":
        num_scans, has_end = 0, False
        for marker, _, _ in segments(content):
            num_scans, has_end = num_scans + (marker == SOS), marker == EOI
            if num_scans > MAX_JPEG_SCANS:
                raise InvalidInput(f"a JPEG with more than {MAX_JPEG_SCANS} scans")
        return CompletedJpeg(content) if num_scans and not has_end else None
    if content[:8] == SIGNATURE and not any(kind == b"IEND" for kind, _, _ in walk_chunks(content)):
        with suppress(struct.error, KeyError):  # cut or damaged in its header
            return CompletedPng(content, max_pixels)
    return None
