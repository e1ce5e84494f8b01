"""JPEG 2000 beside what Pillow does, which decodes it with 8 bits a channel: tested with Pillow 12.3 (OpenJPEG 2.5.4).

ISO/IEC 15444-1: annex A.5.1 (the segment SIZ of a codestream), annex I (the boxes of a file).
"""

from __future__ import annotations

from PIL import ImageFile

from srcnn.photos.boxes import EXIF_UUID, XMP_UUID, walk_boxes
from srcnn.photos.tiff_tags import Content
from srcnn.runtime.untrusted import InvalidInput, check_size

SIZ = b"\xff\x4f\xff\x51"
EMBEDDED_PROFILE = 2


def check_codestream(content: Content, max_pixels: float) -> None:
    """Raises InvalidInput if the picture or a tile is too large, or has too many components, whatever the boxes say."""
    start = 0 if content[:4] == SIZ else next((start for kind, start, _ in walk_boxes(content) if kind == b"jp2c"), 0)
    if content[start : start + 4] != SIZ or len(content) < start + 42:
        raise InvalidInput("a JPEG 2000 without an image")
    start += len(SIZ) + 4
    width, height, left, top, tile_width, tile_height, _, _ = (
        int.from_bytes(content[place : place + 4], "big") for place in range(start, start + 32, 4))
    check_size((width - left, height - top), max_pixels)
    check_size((min(tile_width, width), min(tile_height, height)), max_pixels)
    if (num_components := int.from_bytes(content[start + 32 : start + 34], "big")) > 4:
        raise InvalidInput(f"a JPEG 2000 of {num_components} channels; save it as grey or RGB")


def bits_of(head: bytes) -> int:
    """The bits a channel: those of the first component."""
    start = head.find(SIZ) + 42
    return (head[start] & 0x7F) + 1 if start >= 42 and len(head) > start else 8


def add_metadata(image: ImageFile.ImageFile, content: Content) -> None:
    """Adds what Pillow does not read to `info`: EXIF, XMP and ICC profile."""
    for kind, start, stop in walk_boxes(content):
        if kind == b"jp2h":
            for inner, first, last in walk_boxes(content, start, stop):
                if inner == b"colr" and content[first] == EMBEDDED_PROFILE:
                    image.info["icc_profile"] = bytes(content[first + 3 : last])
        elif kind == b"uuid" and content[start : start + 16] == EXIF_UUID:
            image.info["exif"] = b"Exif\0\0" + bytes(content[start + 16 : stop])
        elif kind == b"uuid" and content[start : start + 16] == XMP_UUID:
            image.info["xmp"] = bytes(content[start + 16 : stop])
