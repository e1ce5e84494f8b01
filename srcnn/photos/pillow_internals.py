"""What srcnn takes from Pillow beside its documented interface; tested with Pillow 12.3.

tests/photos/test_pillow_internals.py fails where one of these means something else.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile


class JpegComponent(NamedTuple):
    """A component of a JPEG's frame header (ITU-T T.81, B.2.2): sampling factors, and the number of its table."""

    number: int
    across: int
    down: int
    table: int


def jpeg_components(image: Image.Image) -> list[JpegComponent]:
    """The components of an opened JPEG in their order; none of other files."""
    if not isinstance(image, JpegImageFile):
        return []
    return [JpegComponent(*component) for component in image.layer]


def forget_source(image: Image.Image) -> None:
    """Removes what Pillow read from an image's file beside the pixels, and would write again: comments, compression,
    the tags of a TIFF. Without the copy of the pixels that Image.copy makes.
    """
    image.info.clear()
    for name in ("tag", "tag_v2"):
        vars(image).pop(name, None)
