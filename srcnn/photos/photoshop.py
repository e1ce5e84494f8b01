"""Photoshop's image resources: blocks with IPTC, thumbnails and more, in JPEG, TIFF and PNG files.

Adobe Photoshop File Formats Specification, "Image Resource Blocks": a signature, a number, a name and a length, both of
even size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

NAME = b"Photoshop 3.0\0"  # before the blocks in a segment of a JPEG
SIGNATURES = (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR")
IPTC, THUMBNAILS = 0x0404, (0x0409, 0x040C)


class Block(NamedTuple):
    """One block: its number, its content, and all its bytes."""

    number: int
    content: bytes
    whole: bytes


def blocks_of(content: bytes) -> list[Block]:
    """The blocks, as far as they are not damaged."""
    blocks, place = [], 0
    while content[place : place + 4] in SIGNATURES and place + 12 <= len(content):
        number, name_length = struct.unpack_from(">HB", content, place + 4)
        start = place + 6 + (1 + name_length + 1) // 2 * 2
        size = int.from_bytes(content[start : start + 4], "big")
        end = start + 4 + size
        if end > len(content):
            break
        blocks.append(Block(number, content[start + 4 : end], content[place : end + size % 2]))
        place = end + size % 2
    return blocks


def iptc_of(content: bytes) -> bytes:
    """The IPTC records in the blocks; b"" without any."""
    return next((block.content for block in blocks_of(content) if block.number == IPTC), b"")


def with_iptc(content: bytes, iptc: bytes) -> bytes:
    """The blocks with the IPTC records added, where they have none."""
    if not iptc or iptc_of(content):
        return content
    return content + b"8BIM" + struct.pack(">HHI", IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def without_thumbnails(content: bytes) -> bytes:
    """The blocks without pictures of the photo."""
    return b"".join(block.whole for block in blocks_of(content) if block.number not in THUMBNAILS)
