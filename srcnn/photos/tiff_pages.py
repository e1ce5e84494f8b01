"""Which page of a TIFF is the photo: others may be small copies of it, or masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from srcnn.runtime.untrusted import InvalidInput

REDUCED, MASK, OLD_REDUCED = 1, 4, 2  # TIFF 6.0: bits of NewSubfileType; SubfileType
MAX_PAGES = 20  # pyramids have some ten


def select_photo(image: TiffImageFile) -> None:
    """Makes the one page that is no reduced copy and no mask the current one. Raises InvalidInput if there are several.
    """
    if not image.is_animated:
        return
    chosen = None
    for number, is_photo in enumerate(_are_photos(image)):
        if number == MAX_PAGES or is_photo and chosen is not None:
            raise InvalidInput("has several frames; save one of them as a file")
        chosen = number if is_photo else chosen
    if chosen:
        image.seek(chosen)


def directories(file: IO[bytes]) -> Iterator[ImageFileDirectory_v2]:
    """The directory of each page of a TIFF; one object, loaded anew. Raises SyntaxError, ... if it is damaged."""
    file.seek(0)
    header = file.read(8)
    directory = ImageFileDirectory_v2(header + file.read(8) if b"+" in header[2:4] else header)  # BigTIFF
    position, seen = directory.next, set[int]()
    while position and position not in seen:
        seen.add(position)
        file.seek(position)
        directory.load(file)
        yield directory
        position = directory.next


def _are_photos(image: TiffImageFile) -> Iterator[bool]:
    assert image.fp is not None
    for directory in directories(image.fp):
        kind, old_kind = directory.get(Tag.NewSubfileType, 0), directory.get(Tag.SubfileType, 0)
        yield not (isinstance(kind, int) and kind & (REDUCED | MASK) or old_kind == OLD_REDUCED)
