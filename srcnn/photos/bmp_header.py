"""The colour space of a BMP, which Pillow does not read (BITMAPV4HEADER and BITMAPV5HEADER of Windows)."""

from __future__ import annotations

import struct

from srcnn.photos.tiff_tags import Content

FILE_HEADER_BYTES, COLOUR_SPACE, PROFILE = 14, 56, 112  # the latter two within the header
V4_BYTES, V5_BYTES = 108, 124
CALIBRATED, EMBEDDED, LINKED = b"\0\0\0\0", b"DEBM", b"KNIL"
MAX_PROFILE_BYTES = 64 << 20


def read_profile(content: Content) -> tuple[bytes, tuple[str, ...]]:
    """The ICC profile that is embedded, b"" without one; and names of what is left out."""
    header = content[FILE_HEADER_BYTES : FILE_HEADER_BYTES + V5_BYTES]
    size = int.from_bytes(header[:4], "little")
    space = header[COLOUR_SPACE : COLOUR_SPACE + 4] if size >= V4_BYTES else b""
    if space == EMBEDDED and size >= V5_BYTES:
        start, length = struct.unpack_from("<II", header, PROFILE)
        start += FILE_HEADER_BYTES
        if length <= MAX_PROFILE_BYTES and start + length <= len(content):
            return bytes(content[start : start + length]), ()
        return b"", ("damaged ICC profile",)
    if space == LINKED:
        return b"", ("ICC profile in another file",)
    has_primaries = space == CALIBRATED and any(header[COLOUR_SPACE + 4 : V4_BYTES])
    return b"", ("primaries and gamma",) if has_primaries else ()
