"""HEIC for Pillow's Image class, by pillow-heif, an extra: tested with pillow-heif 1.8.1 (libheif 1.23.6).

libheif turns the picture as the file says, and its EXIF then says upright.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from PIL import ImageFile

from srcnn.runtime.untrusted import InvalidInput

BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))  # of files that have brands of HEIF, too
MISSING = "HEIC, for which pillow-heif is needed: pip install 'srcnn[heic]'"


def brands_of(head: bytes) -> frozenset[bytes]:
    """The brands in the first box of an ISO base media file; none of another file."""
    brands = head[8 : int.from_bytes(head[:4], "big")] if head[4:8] == b"ftyp" else b""
    return frozenset(brands[start : start + 4] for start in range(0, len(brands), 4))


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so is a HEIC."""
    return bool(BRANDS & brands_of(head)) and not AVIF_BRANDS & brands_of(head)


def open_heic(file: IO[bytes]) -> ImageFile.ImageFile:
    """The main picture of a HEIC, not decoded yet. Raises InvalidInput without pillow-heif."""
    try:
        import pillow_heif
    except ImportError as error:
        raise InvalidInput(MISSING) from error
    open_file: Any = pillow_heif.HeifImageFile  # not registered: that would be for the whole process
    image: ImageFile.ImageFile = open_file(file)
    return image


def decode(file: Any, index: int) -> np.ndarray:
    """The upright pixels of more than 8 bits as stored, uint16 (H, W) or (H, W, C)."""
    import pillow_heif

    file.seek(0)
    return np.asarray(pillow_heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)[index])
