"""AVIF and HEIC, which have brands, boxes and colours in common, beside what their decoders do.

AVIF: Pillow decodes it with 8 bits a channel. It leaves the pixels as stored and puts the turn that the file asks for
(irot, imir) into the EXIF, in place of the orientation there, which has no meaning in an AVIF. Tested with Pillow 12.3
(libavif 1.4.2).

HEIC: pillow-heif, an extra, decodes it for Pillow's Image class. libheif turns the picture as the file says, and its
EXIF then says upright. Tested with pillow-heif 1.8.1 (libheif 1.23.6).
"""

from __future__ import annotations

import re
from typing import IO, Any

import numpy as np
from PIL import ImageFile

from srcnn.runtime.untrusted import InvalidInput

BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))  # of files that have brands of HEIF, too
CONFIG = re.compile(rb"av1C\x81.(.)", re.DOTALL)  # AV1 in ISO base media files, section 2.3.3
HIGH, TWELVE = 0x40, 0x20  # bits of its third byte
COLOURS = re.compile(rb"colrnclx(..)(..)", re.DOTALL)  # ISO/IEC 14496-12, section 12.1.5: primaries, transfer
SRGB_PRIMARIES = (1, 2)  # ITU-T H.273: those of BT.709 and sRGB; unspecified
SRGB_CURVES = (1, 2, 6, 13, 14, 15)  # of sRGB; BT.709 and the like, which viewers show as sRGB; unspecified
MISSING = "HEIC, for which pillow-heif is needed: pip install 'srcnn[heic]'"


def brands_of(head: bytes) -> frozenset[bytes]:
    """The brands in the first box of an ISO base media file; none of another file."""
    brands = head[8 : int.from_bytes(head[:4], "big")] if head[4:8] == b"ftyp" else b""
    return frozenset(brands[start : start + 4] for start in range(0, len(brands), 4))


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so is a HEIC."""
    return bool(BRANDS & brands_of(head)) and not AVIF_BRANDS & brands_of(head)


def avif_bits(head: bytes) -> int:
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


def open_heic(file: IO[bytes]) -> ImageFile.ImageFile:
    """The main picture of a HEIC, not decoded yet. Raises InvalidInput without pillow-heif."""
    try:
        import pillow_heif
    except ImportError as error:
        raise InvalidInput(MISSING) from error
    open_file: Any = pillow_heif.HeifImageFile  # not registered: that would be for the whole process
    image: ImageFile.ImageFile = open_file(file)
    return image


def decode_heic(file: Any, index: int) -> np.ndarray:
    """The upright pixels of more than 8 bits as stored, uint16 (H, W) or (H, W, C)."""
    import pillow_heif

    file.seek(0)
    return np.asarray(pillow_heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)[index])
