"""The chunks of a PNG file besides its pixels: read, sorted by what they are, written around other pixels.

Portable Network Graphics, third edition: a chunk is a length, a type of four letters, content and a checksum.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from srcnn.photos.tiff_tags import Content
from srcnn.runtime.untrusted import InvalidInput

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END, END_BYTES = 8 + 25, 12  # behind the chunk IHDR; of the chunk IEND
MAX_CHUNKS = 1_000_000  # writers put 8 KiB and more of the pixels into each
MAX_CHUNK_BYTES = 256 << 20
MAX_TEXT_BYTES = 64 << 20  # decompressed
PALETTE = 3  # a colour type
Chunk = tuple[bytes, bytes]  # type, content
# How pixels are stored, or fields of `Metadata`; iDOT is Apple's table of where the pixels are.
STORAGE = {b"IHDR", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iDOT", b"eXIf", b"iCCP"}
# Known ones that hold for other pixels of the same kind, though the letters of some say that they must not be copied.
KEPT = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"mDCv", b"cLLI", b"cLLi", b"sPLT", b"tIME", b"oFFs", b"pCAL",
        b"sCAL", b"sTER", b"gIFg", b"gIFx", b"tEXt", b"zTXt", b"iTXt"}
UNFIT = {b"caBX": "C2PA signature (of the picture as it was)", b"dSIG": "digital signature (of the picture as it was)",
         b"PLTE": "suggested palette", b"hIST": "histogram of the palette"}
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
SRGB = {b"gAMA": struct.pack(">I", 45455),
        b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)}
MEANINGS = {b"cICP": "colour space", b"mDCV": "HDR mastering display", b"mDCv": "HDR mastering display",
            b"cLLI": "HDR light level", b"cLLi": "HDR light level", b"gAMA": "gamma", b"cHRM": "primaries"}
XMP_KEY = b"XML:com.adobe.xmp"
RAW_PROFILE = b"Raw profile type "  # ImageMagick's: hexadecimal digits in a text


class PngParts(NamedTuple):
    """`before` and `after` the pixels: chunks kept as they are. `profiles`: by name, as ImageMagick stores them."""

    before: tuple[Chunk, ...] = ()
    after: tuple[Chunk, ...] = ()
    profiles: dict[str, bytes] = {}
    lost: tuple[str, ...] = ()


def read_chunks(content: Content) -> PngParts:
    """Everything in a PNG file besides pixels and how they are stored, EXIF, ICC profile and XMP."""
    before: list[Chunk] = []
    after: list[Chunk] = []
    lost: list[str] = []
    profiles: dict[str, bytes] = {}
    kept = before
    has_alpha_key = False
    bits, colours = content[24], content[25]
    for kind, start, stop in walk_chunks(content):
        end = stop + 4  # of the checksum
        if end > len(content):
            lost += ["chunks behind a damaged one"] if kind not in (b"IDAT", b"IEND") else []  # or a cut file
            break
        if kind == b"IDAT":
            kept = after
        elif kind == b"IEND":
            lost += ["bytes behind the picture"] if content[end : end + 64].strip(b"\0") else []
            break
        has_alpha_key |= kind == b"tRNS"
        is_palette = kind == b"PLTE" and colours == PALETTE
        if kind not in STORAGE and not is_palette:
            is_short = stop - start <= MAX_CHUNK_BYTES
            body = bytes(content[start:stop]) if is_short else b""
            if (profile := _raw_profile(kind, body)) is not None:
                profiles[profile[0]] = profile[1]
            elif is_short and _is_kept(kind, body, bits, colours, has_alpha_key):
                kept.append((kind, body))
            elif not (kind == b"iTXt" and body.startswith(XMP_KEY + b"\0")):
                lost.append(UNFIT.get(kind) or f"chunk {_printable(kind)}")
    if has_alpha_key:  # which becomes a channel that has no such bits
        lost += ["chunk sBIT" for kind, _ in before if kind == b"sBIT"]
        before = [chunk for chunk in before if chunk[0] != b"sBIT"]
    return PngParts(tuple(before), tuple(after), profiles, tuple(dict.fromkeys(lost)))


def walk_chunks(content: Content) -> Iterator[tuple[bytes, int, int]]:
    """The type of each chunk of a PNG, and where its content begins and ends; the last one may be cut.

    Raises:
        InvalidInput: more than MAX_CHUNKS.
    """
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return
        length, kind = struct.unpack_from(">I4s", content, position)
        yield kind, position + 8, position + 8 + length
        position += 12 + length
    raise InvalidInput(f"a PNG with more than {MAX_CHUNKS} chunks")


def _is_kept(kind: bytes, body: bytes, bits: int, colours: int, has_alpha_key: bool) -> bool:
    if kind in TEXTS:
        return not body.startswith(XMP_KEY + b"\0")
    if kind in (b"bKGD", b"sBIT"):  # in levels of these pixels
        return colours != PALETTE and bits >= 8
    return kind in KEPT or kind not in UNFIT and kind[3:].islower() and kind[:1].islower()  # safe to copy


def _raw_profile(kind: bytes, body: bytes) -> tuple[str, bytes] | None:
    """(name, content) of a profile that ImageMagick stored as a text; None for anything else."""
    if kind not in (b"tEXt", b"zTXt") or not body.startswith(RAW_PROFILE):
        return None
    key, _, text = body.partition(b"\0")
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], MAX_TEXT_BYTES)
        digits = re.fullmatch(rb"\s*\S+\s+(\d{1,10})\s([0-9a-fA-F\s]*)", text)
        profile = bytes.fromhex(digits[2].decode()) if digits else b""
    except (zlib.error, ValueError):
        return None
    return (key[len(RAW_PROFILE) :].decode("latin-1").lower(), profile) if profile else None


def _printable(kind: bytes) -> str:
    return kind.decode("latin-1") if kind.isalpha() else kind.hex()


def chunk_names(chunks: Iterable[Chunk], has_profile: bool) -> list[str]:
    """What chunks say, for a note; not what is the same as in sRGB, or what a profile says better."""
    names, keys = [], []
    for kind, body in chunks:
        if kind in TEXTS:
            keys.append(body.partition(b"\0")[0].decode("latin-1"))
        elif kind != b"sRGB" and body != SRGB.get(kind) and not (kind in SRGB and has_profile):
            names.append(f"{MEANINGS[kind]} ({kind.decode()})" if kind in MEANINGS else f"chunk {_printable(kind)}")
    texts = [f"texts of the PNG ({', '.join(dict.fromkeys(keys))})"] if keys else []
    return [*texts, *dict.fromkeys(names)]


def chunk_bytes(kind: bytes, body: bytes) -> bytes:
    """A whole chunk, with length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def raw_profile_chunk(name: bytes, profile: bytes) -> Chunk:
    """A profile as ImageMagick stores it, which other programs read, too."""
    text = b"\n%s\n%8d\n%s\n" % (name, len(profile), re.sub(b"(.{72})", rb"\1\n", profile.hex().encode()))
    return b"zTXt", RAW_PROFILE + name + b"\0\0" + zlib.compress(text)


class InsertingFile:
    """Writes a PNG into `file`, with chunks inserted before its pixels."""

    def __init__(self, file: IO[bytes], chunks: bytes) -> None:
        self.file, self.chunks, self.num_bytes = file, chunks, 0

    def write(self, content: bytes | memoryview) -> int:
        """Writes a part of the PNG."""
        split = max(0, HEADER_END - self.num_bytes)
        if self.num_bytes <= HEADER_END < self.num_bytes + len(content):
            self.file.write(content[:split])
            self.file.write(self.chunks)
            self.file.write(content[split:])
        else:
            self.file.write(content)
        self.num_bytes += len(content)
        return len(content)

    def flush(self) -> None:
        self.file.flush()


def append_chunks(file: IO[bytes], chunks: bytes) -> None:
    """Inserts chunks behind the pixels of a PNG that was just written."""
    if chunks:
        file.seek(-END_BYTES, 2)
        file.write(chunks + chunk_bytes(b"IEND", b""))
