"""A bounded walk over the markers of a JPEG: ITU-T T.81, annex B."""

from __future__ import annotations

import re
from collections.abc import Iterator

from srcnn.photos.tiff_tags import Content
from srcnn.runtime.untrusted import InvalidInput

MAX_SEGMENTS = 10_000
SOI, EOI, SOS, TEM = 0xD8, 0xD9, 0xDA, 0x01
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
NUM_COEFFICIENTS = 64
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # not a stuffed FF 00, a restart marker or a fill byte


def segments(content: Content, position: int = 0) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG from a position up to its end marker: the marker, and where its content begins (after the
    marker and the length) and ends. Coded pixels between them, and what follows the end, are skipped.

    Ends early where the content ends, or at a segment that is not whole.

    Args:
        content: bytes, or a memory-mapped file.

    Raises:
        InvalidInput: more than MAX_SEGMENTS.
    """
    for _ in range(MAX_SEGMENTS):
        if (match := _MARKER.search(content, position)) is None:
            return
        marker, start = match[1][0], match.end()
        position = start
        if marker not in (SOI, EOI, TEM):
            length = int.from_bytes(content[start : start + 2], "big")
            start, position = start + 2, start + length
            if length < 2 or position > len(content):
                return
        yield marker, start, position
        if marker == EOI:
            return
    raise InvalidInput(f"a JPEG with more than {MAX_SEGMENTS} segments")


def has_all_scans(content: Content) -> bool:
    """Whether the scans that begin in a JPEG cover every coefficient of every component to its last bit.

    Those of a progressive JPEG (annex G) bring a band of coefficients each, first without, then with the last bits.
    """
    missing: dict[int, set[int]] = {}  # of each component
    is_progressive = False
    for marker, start, stop in segments(content):
        part = content[start:stop]
        if marker in FRAMES and len(part) >= 6:
            is_progressive = marker in PROGRESSIVE
            needed = range(NUM_COEFFICIENTS if is_progressive else 1)
            missing = {identifier: set(needed) for identifier in part[6::3]}
        elif marker == SOS and len(part) >= 4:
            first, last, bits = part[-3:]
            if is_progressive and bits & 15:  # the lowest bits are left for a later scan
                continue
            for identifier in part[1:-3:2]:
                missing.get(identifier, set()).difference_update(range(first, last + 1) if is_progressive else (0,))
    return bool(missing) and not any(missing.values())
