"""Decodes a photo into the clean picture that tiles are cut from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile

from srcnn.photos.jpeg_history import original_quality
from srcnn.photos.jpeg_quality import jpeg_save_of
from srcnn.photos.reading import (
    Resize,
    decode,
    eight_bit_image,
    open_image,
    orientation_of,
    over_white,
    upright_array,
    upright_size,
)

Decode = Literal["exact", "reduced"]
# A JPEG decoded at a reduced scale is at least this many times as large as needed, each way. With 1.4 the luma of real
# photographs is 45 dB from the exact one on average, with 1.0 it is 42 dB; 4000x3000 is decoded at 1/2 for 1024x1024.
MIN_REDUCED_SIZE = 1.4


def read_original(
    path: Path, rule: Resize, scale: Decode, max_megapixels: float, thorough: bool = False
) -> tuple[np.ndarray, int | None]:
    """Decodes a photo over white, upright, and resizes it (Lanczos).

    Returns:
        The clean picture, uint8 (H, W) or (H, W, 3); and the quality of the coarsest JPEG that the photo was, by
        `original_quality`, None if it was none. Where less than the whole photo is decoded, that of its file.

    With `scale` "reduced" a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is at least MIN_REDUCED_SIZE times
    as large as needed; all other photos are the same as with "exact".

    Raises:
        PhotoRefused: as `srcnn.photos.reading.read_photo`.
    """
    with open_image(path, max_megapixels) as image:
        file = jpeg_save_of(image)
        if scale == "reduced" and image.format in ("JPEG", "MPO"):
            size, orientation = rule.size(*upright_size(image)), orientation_of(image)
            stored_size = size[::-1] if orientation >= 5 else size  # before the rotation
            if extent := _draft(image, stored_size):
                # Rotated last: the picture is small then, and until then the photo is at the top left of the blocks.
                reduced = over_white(eight_bit_image(decode(image, turn=False)[0]))
                small = reduced.resize(stored_size, Image.Resampling.LANCZOS, (0, 0, *extent))
                return upright_array(np.asarray(small), orientation), file.quality if file else None
        upright = over_white(eight_bit_image(decode(image)[0]))
    quality = original_quality(np.asarray(upright), file, thorough)
    return np.asarray(upright.resize(rule.size(*upright.size), Image.Resampling.LANCZOS)), quality


def _draft(image: ImageFile.ImageFile, stored_size: tuple[int, int]) -> tuple[float, float] | None:
    """Makes Pillow decode a JPEG at a reduced scale; returns the photo's (width, height) then, None if unchanged."""
    before = image.size
    width, height = (math.ceil(MIN_REDUCED_SIZE * side) for side in stored_size)
    drafted = image.draft(None, (width, height))
    return drafted[1][2:] if drafted and image.size != before else None
