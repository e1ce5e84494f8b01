"""Which page of a TIFF is the photo: others may be small copies of it, or masks."""

from __future__ import annotations

from collections.abc import Iterator

from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from srcnn.runtime.untrusted import InvalidInput

KIND_TAG, OLD_KIND_TAG = 254, 255  # TIFF 6.0: NewSubfileType; SubfileType
REDUCED, MASK, OLD_REDUCED = 1, 4, 2
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


def _are_photos(image: TiffImageFile) -> Iterator[bool]:
    file = image.fp
    assert file is not None
    file.seek(0)
    header = file.read(8)
    header += file.read(8) if header[2:3] == b"+" or header[3:4] == b"+" else b""  # BigTIFF
    directory, seen, position = ImageFileDirectory_v2(header), set[int](), 0
    position = directory.next
    while position and position not in seen:
        seen.add(position)
        file.seek(position)
        directory.load(file)
        kind, old_kind = directory.get(KIND_TAG, 0), directory.get(OLD_KIND_TAG, 0)
        yield not (isinstance(kind, int) and kind & (REDUCED | MASK) or old_kind == OLD_REDUCED)
        position = directory.next
