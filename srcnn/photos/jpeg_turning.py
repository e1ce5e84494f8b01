"""Turns the gain maps and further pictures behind a JPEG with it, as viewers lay them over the picture as stored."""

from __future__ import annotations

import io
import struct

from PIL import ExifTags, Image, JpegImagePlugin

from srcnn.photos.jpeg_parts import (
    MP_ENTRY,
    STORAGE,
    Appended,
    entries_of,
    parts_of,
    walk_jpeg,
)
from srcnn.photos.xmp_claims import with_lengths, without_claims
from srcnn.runtime.untrusted import check_size, without_pillow_limit

MAX_PIXELS, MAX_SCANS = 50_000_000, 100
QUALITY = 95  # high, as a viewer multiplies with what is in a gain map


def turn_appended(
    appended: Appended, xmp: bytes, turn: Image.Transpose
) -> tuple[Appended | None, bytes, tuple[str, ...]]:
    """What follows a JPEG, with its pictures turned; XMP that fits; and names of what could not be kept.

    A picture with an orientation of its own, as a camera's preview has it, stays as it is. Where a picture cannot be
    turned, all are left out.
    """
    content, parts = appended.content, parts_of(appended.content)
    moved: dict[int, tuple[int, int]] = {}  # where a part began -> where it begins, and its size
    pieces, place, size = [], 0, 0
    try:
        for part in parts:
            piece = content[part.start : part.end]
            if part.kind == "picture":
                piece = _turned(piece, turn)
            gap = content[place : part.start]
            pieces += [gap, piece]
            moved[part.start] = size + len(gap), len(piece)
            size, place = size + len(gap) + len(piece), part.end
        lengths = {part.end - part.start: moved[part.start][1] for part in parts}
        index = _resized_index(appended, moved)
        new_xmp = with_lengths(xmp, lengths)
        if len(lengths) < len(parts) or xmp and not new_xmp:
            raise ValueError("two parts of the same length, or damaged XMP")
    except MemoryError:
        raise
    except Exception:  # Pillow's decoder raises OSError, SyntaxError, struct.error, ...
        rest = b"".join(content[part.start : part.end] for part in parts if part.kind != "picture")
        names = ("pictures behind the first (which was turned)",)
        return Appended(rest) if rest else None, without_claims(xmp, keep_video=bool(rest)), names
    return appended._replace(content=b"".join([*pieces, content[place:]]), mp_index=index), new_xmp, ()


def _turned(content: bytes, turn: Image.Transpose) -> bytes:
    """A JPEG turned, with its own segments."""
    segments, _ = walk_jpeg(content)
    if content.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError("a JPEG with too many scans")
    with without_pillow_limit(), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        check_size(image.size, MAX_PIXELS)
        if ExifTags.Base.Orientation in image.getexif():
            return content
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        kept = [part.to_bytes() for part in segments if not _is_storage(part.marker, part.content)]
        file = io.BytesIO()
        image.transpose(turn).save(file, "JPEG", quality=QUALITY, extra=b"".join(kept),
                                   subsampling=JpegImagePlugin.get_sampling(image))
    return file.getvalue()


def _is_storage(marker: int, content: bytes) -> bool:
    """Whether Pillow writes such a segment of its own; not EXIF, ICC profile and XMP, which are copied."""
    return marker in (0xE0, 0xEE) and content.startswith(STORAGE[marker])


def _resized_index(appended: Appended, moved: dict[int, tuple[int, int]]) -> bytes:
    index = bytearray(appended.mp_index)
    order, places = entries_of(appended.mp_index)
    for place in places[1:]:
        attributes, _, offset, *dependent = struct.unpack_from(order + MP_ENTRY, index, place)
        start, size = moved[appended.mp_start + offset]
        struct.pack_into(order + MP_ENTRY, index, place, attributes, size, start - appended.mp_start, *dependent)
    return bytes(index)
