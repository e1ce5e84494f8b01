"""The boxes of JPEG 2000, JPEG XL, AVIF and HEIC files: ISO/IEC 14496-12, section 4.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_BOXES = 10_000


def boxes(content: Any, position: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The type of each box on one level, and where its content begins and ends; stops at a box that is not whole."""
    end = len(content) if end is None else end
    for _ in range(MAX_BOXES):
        start = position + 8
        size, kind = int.from_bytes(content[position : position + 4], "big"), bytes(content[position + 4 : start])
        if size == 1:  # a size of 64 bits follows
            size, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        elif size == 0:  # up to the end
            size = end - position
        if start > position + size or position + size > end:
            return
        position += size
        yield kind, start, position
