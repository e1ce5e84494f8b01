"""The parts of a JPEG file besides its pixels: application segments, comments, and what follows the end of the picture.

Behind the picture lie gain maps (ISO 21496-1, Ultra HDR, Apple), previews and second views (MPO, CIPA DC-007), videos
(motion photos) and what cameras add. These bytes are kept as they are; the MP index, whose offsets tell where they lie,
is computed anew.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress
from typing import IO, NamedTuple

from srcnn.photos import jpeg_markers, photoshop
from srcnn.photos.tiff_tags import Content
from srcnn.photos.xmp_claims import claims_gain_map
from srcnn.runtime.untrusted import InvalidInput

MAX_SEGMENT_BYTES = 65_533  # without the marker and the length
MAX_APPENDED_BYTES = 256 << 20
MAX_PICTURES = 100  # behind the first
COMMENT, APP0, APP1, APP2, APP11, APP13, APP14 = 0xFE, 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE
PICTURE = b"\xff\xd8\xff"  # a JPEG begins so
ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
MPF = b"MPF\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
MP_ENTRIES_TAG, MP_ENTRY = 0xB002, "IIIHH"  # attributes, size, offset, two dependent pictures
# Segments that describe how the pixels are stored, or that are fields of `Metadata`.
STORAGE = {APP0: (b"JFIF\0", b"JFXX\0"), APP1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),
           APP2: (b"ICC_PROFILE\0",), APP14: (b"Adobe",)}
_NOT_ZERO = re.compile(rb"[^\0]")


class Segment(NamedTuple):
    """A segment of a JPEG: the second byte of its marker, and its content."""

    marker: int
    content: bytes

    def to_bytes(self) -> bytes:
        return struct.pack(">BBH", 0xFF, self.marker, 2 + len(self.content)) + self.content


class Appended(NamedTuple):
    """What follows the picture in a JPEG file.

    Attributes:
        content: all of it.
        segments: of the picture's head, which describe it (ISO 21496-1).
        mp_index: a TIFF structure with offsets from its own start; b"" without one.
        mp_start: where this began, counted from the end of the picture: negative.
    """

    content: bytes
    segments: bytes = b""
    mp_index: bytes = b""
    mp_start: int = 0


class JpegParts(NamedTuple):
    """`segments`: whole, those kept as they are. `photoshop`: see `srcnn.photos.photoshop`. `lost`: names."""

    segments: bytes = b""
    photoshop: bytes = b""
    appended: Appended | None = None
    lost: tuple[str, ...] = ()


class Part(NamedTuple):
    """A part of what follows a picture: "picture", "video" or "data", and where it lies."""

    kind: str
    start: int
    end: int


def walk_jpeg(content: Content, start: int = 0) -> tuple[list[Segment], int]:
    """The application segments and comments of the JPEG at `start`, and where it ends: len(content) without an end."""
    found, end = [], len(content)
    with suppress(InvalidInput):  # too many segments: the rest is not looked at
        for marker, first, last in jpeg_markers.segments(content, start + 2):
            if marker == jpeg_markers.EOI:
                end = last
            elif APP0 <= marker < APP0 + 16 or marker == COMMENT:
                found.append(Segment(marker, bytes(content[first:last])))
    return found, end


def read_parts(content: Content) -> JpegParts:
    """Everything in a JPEG file besides pixels and how they are stored, EXIF, ICC profile and XMP."""
    segments, end = walk_jpeg(content)
    kept, about_appended, blocks, index, lost = [], [], [], b"", []
    for segment in segments:
        marker, body = segment
        if body.startswith(STORAGE.get(marker, ())):
            has_aspect = body.startswith(b"JFIF\0") and body[7:8] == b"\0" and body[8:10] != body[10:12]
            lost += ["aspect of the pixels"] if has_aspect else []
            continue
        if marker == APP13 and body.startswith(photoshop.NAME):
            blocks.append(body[len(photoshop.NAME) :])
        elif marker == APP2 and body.startswith(MPF):
            index = index or body[len(MPF) :]
        elif marker == APP2 and body.startswith(ISO_GAIN_MAP):
            about_appended.append(segment.to_bytes())
        elif marker == APP11 and body.startswith(b"JP"):  # ISO 19566-5; a box may take several segments
            lost.append("C2PA signature (of the picture as it was)" if b"c2pa" in body else "JUMBF box")
        else:
            kept.append(segment.to_bytes())
    if any("C2PA" in name for name in lost):
        lost = [name for name in lost if "C2PA" in name]
    appended = None
    if len(content) - end > MAX_APPENDED_BYTES:
        lost.append(f"{len(content) - end} bytes behind the picture")
    elif end < len(content) and (rest := bytes(content[end:])).strip(b"\0"):
        index_start = content.find(MPF + index, 0, end) + len(MPF) - end if index else 0
        appended = Appended(rest, b"".join(about_appended), index, index_start)
        if index and not fits(appended):
            appended = appended._replace(mp_index=b"", mp_start=0)
            lost.append("damaged index of further pictures")
    return JpegParts(b"".join(kept), b"".join(blocks), appended, tuple(dict.fromkeys(lost)))


def segment_names(segments: bytes) -> list[str]:
    """What whole segments are, for a note: "comment", "extended XMP", "APP12 (Ducky)", ..."""
    names = []
    for marker, body in walk_jpeg(b"\xff\xd8" + segments)[0]:
        name = re.match(rb"[ -~]{0,24}", body)
        assert name is not None
        is_extended = marker == APP1 and body.startswith(EXTENDED_XMP)
        names.append("comment" if marker == COMMENT else "extended XMP" if is_extended
                     else f"APP{marker - APP0} ({name[0].decode()})")
    return names


def photoshop_segments(blocks: bytes) -> bytes:
    """Photoshop's image resources as segments of a JPEG."""
    size = MAX_SEGMENT_BYTES - len(photoshop.NAME)
    parts = (blocks[start : start + size] for start in range(0, len(blocks), size))
    return b"".join(Segment(APP13, photoshop.NAME + part).to_bytes() for part in parts)


def parts_of(content: bytes) -> list[Part]:
    """The parts of what follows a picture; zeros between them belong to none."""
    parts: list[Part] = []
    place = 0
    while content.startswith(PICTURE, place) and len(parts) < MAX_PICTURES:
        end = walk_jpeg(content, place)[1]
        parts.append(Part("picture", place, end))
        match = _NOT_ZERO.search(content, end)
        # A box of a video begins with its size, whose first bytes are zeros.
        place = len(content) if match is None else match.start()
        if not content.startswith(PICTURE, place):
            place = end
    if content[place:].strip(b"\0"):
        is_video = b"ftyp" in content[place : place + 256]
        parts.append(Part("video" if is_video else "data", place, len(content)))
    return parts


def appended_names(appended: Appended, xmp: bytes) -> list[str]:
    """What follows a picture, for a note: "gain map", "further pictures", "video", "data behind the picture"."""
    kinds = [part.kind for part in parts_of(appended.content)]
    has_gain_map = "picture" in kinds and (claims_gain_map(xmp) or bool(appended.segments))
    names = ["gain map"] if has_gain_map else []
    names += ["further pictures"] if kinds.count("picture") > len(names) else []
    names += ["video"] if "video" in kinds else []
    return names + (["data behind the picture"] if "data" in kinds else [])


def index_segments(appended: Appended) -> bytes:
    """The segments of the head that describe what follows; `append` completes the index."""
    index = Segment(APP2, MPF + appended.mp_index).to_bytes() if appended.mp_index else b""
    return index + appended.segments


def append(file: IO[bytes], appended: Appended) -> None:
    """Writes what follows a picture behind that in `file`, which has the `index_segments` in its head."""
    end = file.seek(0, io.SEEK_END)
    if appended.mp_index:
        file.seek(0)
        head = file.read()  # of the picture just written; a read, as a file of the writer's need not have a descriptor
        if (start := head.find(MPF + appended.mp_index) + len(MPF)) >= len(MPF):
            file.seek(start)
            file.write(_moved_index(appended, start, end))
            file.seek(end)
    file.write(appended.content)


def fits(appended: Appended) -> bool:
    """Whether the MP index can be read, and all pictures in it follow the first."""
    order, places = entries_of(appended.mp_index)
    for number, place in enumerate(places):
        _, size, offset, *_ = struct.unpack_from(order + MP_ENTRY, appended.mp_index, place)
        start = appended.mp_start + offset
        if number and not 0 <= start <= start + size <= len(appended.content):
            return False
    return len(places) > 1


def _moved_index(appended: Appended, start: int, end: int) -> bytes:
    """The MP index at `start` of a file whose first picture ends at `end` and is followed by what is appended."""
    index = bytearray(appended.mp_index)
    order, places = entries_of(appended.mp_index)
    for number, place in enumerate(places):
        attributes, size, offset, *dependent = struct.unpack_from(order + MP_ENTRY, index, place)
        if number == 0:
            size = end
        else:
            offset += appended.mp_start + end - start
        struct.pack_into(order + MP_ENTRY, index, place, attributes, size, offset, *dependent)
    return bytes(index)


def entries_of(index: bytes) -> tuple[str, range]:
    """The byte order of an MP index, and where its entries of 16 bytes are; none if it is damaged."""
    order = ">" if index.startswith(b"MM") else "<"
    try:
        start, = struct.unpack_from(order + "I", index, 4)
        num_tags, = struct.unpack_from(order + "H", index, start)
        for place in range(start + 2, start + 2 + 12 * num_tags, 12):
            tag, _, num_bytes, offset = struct.unpack_from(order + "HHII", index, place)
            if tag == MP_ENTRIES_TAG and offset + num_bytes <= len(index):
                return order, range(offset, offset + num_bytes - num_bytes % 16, 16)
    except struct.error:
        pass
    return order, range(0)
