"""The chunks of a WebP file besides its pixels (RFC 9649): those that are not known are kept behind the others."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from srcnn.photos.tiff_tags import Content

MAX_CHUNKS = 10_000
MAX_CHUNK_BYTES = 256 << 20
HEADER_BYTES = 12
STORAGE = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "}
UNFIT = {b"C2PA": "C2PA signature (of the picture as it was)"}
ALPHA_FLAG = 0x10  # in VP8X
Chunk = tuple[bytes, bytes]  # type, content


class WebpParts(NamedTuple):
    """`chunks`: kept as they are. `lost`: names."""

    chunks: tuple[Chunk, ...] = ()
    lost: tuple[str, ...] = ()


def read_chunks(content: Content) -> WebpParts:
    """Everything in a WebP file besides pixels, EXIF, ICC profile and XMP."""
    chunks: list[Chunk] = []
    lost: list[str] = []
    file_end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    if content[file_end : file_end + 64].strip(b"\0"):
        lost.append("bytes behind the picture")
    end = file_end
    for kind, start, end in walk_chunks(content, file_end):
        size = end - start
        if end > file_end:
            lost.append("a damaged chunk")
            break
        if kind in UNFIT or kind not in STORAGE and size > MAX_CHUNK_BYTES:
            lost.append(UNFIT.get(kind) or chunk_name(kind))
        elif kind not in STORAGE:
            chunks.append((kind, bytes(content[start:end])))
    if end + 9 <= file_end:  # one more, behind a byte of padding
        lost.append(f"chunks behind the first {MAX_CHUNKS} of the WebP")
    return WebpParts(tuple(chunks), tuple(dict.fromkeys(lost)))


def walk_chunks(content: Content, file_end: int) -> Iterator[tuple[bytes, int, int]]:
    """The type of each chunk, and where its content begins and ends: of a damaged one behind `file_end`."""
    place = HEADER_BYTES
    for _ in range(MAX_CHUNKS):
        if place + 8 > file_end:
            return
        size, start = int.from_bytes(content[place + 4 : place + 8], "little"), place + 8
        yield bytes(content[place : place + 4]), start, start + size
        place = start + size + size % 2


def is_lossless(content: Content) -> bool:
    """Whether the first chunk of pixels is VP8L, without loss (RFC 9649, section 2.7.1.2)."""
    kinds = (kind for kind, _, _ in walk_chunks(content, len(content)))
    return next((kind for kind in kinds if kind in (b"VP8 ", b"VP8L")), b"") == b"VP8L"


def chunk_name(kind: bytes) -> str:
    """For a note."""
    return f"chunk {kind.decode('latin-1')!r} of the WebP"


def append_chunks(file: IO[bytes], chunks: tuple[Chunk, ...], width: int, height: int, has_alpha: bool) -> None:
    """Adds chunks to a WebP that was just written, as a file of the extended format, which may have them."""
    file.seek(0)
    content = file.read()
    body = content[HEADER_BYTES:]
    if not body.startswith(b"VP8X"):
        flags = ALPHA_FLAG if has_alpha else 0
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<II", 10, flags) + size + body
    for kind, part in chunks:
        body += kind + struct.pack("<I", len(part)) + part + bytes(len(part) % 2)
    file.seek(0)
    file.write(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
    file.seek(0, io.SEEK_END)
