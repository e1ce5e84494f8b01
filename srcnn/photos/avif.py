"""AVIF beside what Pillow does, which decodes it with 8 bits a channel: tested with Pillow 12.3 (libavif 1.4.2).

Pillow leaves the pixels as stored and puts the turn that the file asks for (irot, imir) into the EXIF, in place of the
orientation there, which has no meaning in an AVIF.
"""

from __future__ import annotations

import re

CONFIG = re.compile(rb"av1C\x81.(.)", re.DOTALL)  # AV1 in ISO base media files, section 2.3.3
HIGH, TWELVE = 0x40, 0x20  # bits of its third byte
COLOURS = re.compile(rb"colrnclx(..)(..)", re.DOTALL)  # ISO/IEC 14496-12, section 12.1.5: primaries, transfer
SRGB_PRIMARIES = (1, 2)  # ITU-T H.273: those of BT.709 and sRGB; unspecified
SRGB_CURVES = (1, 2, 6, 13, 14, 15)  # of sRGB; BT.709 and the like, which viewers show as sRGB; unspecified


def bits_of(head: bytes) -> int:
    """The bits a channel of an AVIF that begins so."""
    found = [match[1][0] for match in CONFIG.finditer(head)]
    return max((12 if flags & TWELVE else 10 if flags & HIGH else 8 for flags in found), default=8)


def colour_space(head: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of an AVIF or HEIC that begins so, by their numbers in ITU-T H.273; None of sRGB."""
    for match in COLOURS.finditer(head):
        primaries, curve = (int.from_bytes(number, "big") for number in match.groups())
        if primaries not in SRGB_PRIMARIES or curve not in SRGB_CURVES:
            return primaries, curve
    return None


def colour_note(head: bytes) -> tuple[str, ...]:
    """A note on colours that are not those of sRGB, told by numbers instead of an ICC profile."""
    space = colour_space(head)
    return (f"colours of another space (CICP {space[0]}/{space[1]}) treated as if of sRGB",) if space else ()
