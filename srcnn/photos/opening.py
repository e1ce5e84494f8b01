"""Opens photos, files or bytes in memory, and checks what their headers claim before anything is decoded."""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from srcnn.photos import jpeg2000
from srcnn.photos.file_kinds import FORMATS, HEAD_BYTES, content_problem, pillow_formats, unidentified
from srcnn.photos.heif import is_heic, open_heic
from srcnn.photos.jpegxl import JpegXlImage, is_jpegxl
from srcnn.photos.tiff_pages import select_photo
from srcnn.photos.tiff_tags import Content
from srcnn.photos.truncated import completed
from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, InvalidInput, check_size, open_regular, without_pillow_limit

WITH_SEVERAL = ("TIFF", "MPO", "HEIF")  # formats of which one of several pictures may be the photo
MAX_MEGAPIXELS = 250.0  # which take 750 MB as RGB; a file that claims more is taken for a decompression bomb


class PhotoRefused(UserError):
    """A photo that cannot be used; the message names the file and the reason."""


@contextmanager
def open_image(
    source: Path | bytes | memoryview, max_megapixels: float = MAX_MEGAPIXELS, allow_truncated: bool = False,
    formats: tuple[str, ...] = FORMATS,
) -> Iterator[ImageFile.ImageFile]:
    """Opens a photo, a file or its bytes, and checks its header; `decode` decodes it.

    With `allow_truncated` a JPEG or PNG that is cut off is decoded as far as it goes.

    Raises:
        PhotoRefused: every error here and in the `with` block, naming the file.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    try:
        with without_pillow_limit(), _content(source) as (file, content):
            if not len(content):
                raise InvalidInput("is empty (0 bytes)")
            if cut := completed(content, max_megapixels * 1e6):
                cut.is_allowed, file = allow_truncated, cut
            with _open_format(file, formats) as image:
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    select_photo(image)
                check_header(image, content, max_megapixels * 1e6)
                if image.format == "JPEG2000":
                    jpeg2000.add_metadata(image, content)
                if getattr(image, "is_animated", False) and image.format not in WITH_SEVERAL:
                    raise InvalidInput("has several frames; save one of them as a file")
                yield image
    except (PhotoRefused, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise PhotoRefused(f"{name}{_reason(source, error, formats)}") from error


@contextmanager
def _content(source: Path | bytes | memoryview) -> Iterator[tuple[IO[bytes], Content]]:
    """A photo as a file and as bytes, which are memory-mapped."""
    if not isinstance(source, Path):
        content = bytes(source)
        yield io.BytesIO(content), content
        return
    # Not by path: Pillow (11 to 13) would memory-map a TIFF, and scramble the pixels of a sideways one, whose width and
    # height it swaps.
    with open_regular(source, MAX_PHOTO_BYTES) as file:
        if not os.fstat(file.fileno()).st_size:
            yield file, b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield file, mapped


def _open_format(file: IO[bytes], formats: tuple[str, ...]) -> ImageFile.ImageFile:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if "JXL" in formats and is_jpegxl(head):
        return JpegXlImage(file)
    if "HEIF" in formats and is_heic(head):
        return open_heic(file)
    return Image.open(file, formats=[name for name in formats if name in pillow_formats()])


def check_header(image: ImageFile.ImageFile, content: Content, max_pixels: float) -> None:
    """Raises InvalidInput if an opened photo, whose file's bytes are `content`, is too expensive to decode."""
    check_size(image.size, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, length = (image.tag_v2.get(tag, 0) for tag in (Tag.TileWidth, Tag.TileLength))
        if image.tile and image.tile[0][0] == "libtiff" and width and length:
            check_size((width, length), max_pixels)  # it decodes whole tiles, however small the picture
    elif image.format == "JPEG2000":
        jpeg2000.check_codestream(content, max_pixels)


def _reason(source: Path | bytes | memoryview, error: Exception, formats: tuple[str, ...]) -> str:
    if isinstance(error, InvalidInput):
        return str(error)
    if isinstance(source, Path) and (reason := content_problem(source)):
        return reason
    if isinstance(error, UnidentifiedImageError):
        if isinstance(source, Path):
            return unidentified(source)
        return f"not a picture in one of the formats {', '.join(formats)}, or damaged"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if text == "Truncated File Read":
        return "is cut off before its pixels"
    return "cannot be read: " + re.sub(r"<_io\.[^>]*>", "the file", text)
