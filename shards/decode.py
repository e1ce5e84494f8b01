"""Decodes a photo into the clean picture that tiles are cut from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from srcnn.photos.reading import (
    TURNS,
    Resize,
    open_image,
    orientation_of,
    over_white,
    turn_upright,
    upright_size,
)

Decode = Literal["exact", "reduced"]
# A JPEG decoded at a reduced scale is at least this many times as large as needed, each way. With 1.4 the luma of real
# photographs is 45 dB from the exact one on average, with 1.0 it is 42 dB; 4000x3000 is decoded at 1/2 for 1024x1024.
MIN_REDUCED_SIZE = 1.4


def read_clean(path: Path, rule: Resize, decode: Decode, max_megapixels: float) -> np.ndarray:
    """Decodes a photo over white, upright, and resizes it (Lanczos): uint8 (H, W) or (H, W, 3).

    With `decode` "reduced" a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is at least MIN_REDUCED_SIZE times
    as large as needed; all other photos are the same as with "exact".

    Raises:
        PhotoRefused: as `srcnn.photos.reading.read_photo`.
    """
    with open_image(path, max_megapixels) as image:
        size = rule.size(*upright_size(image))
        orientation = orientation_of(image)
        stored_size = size[::-1] if orientation >= 5 else size  # before the rotation
        extent = _draft(image, stored_size) if decode == "reduced" else None
        image.load()
        if extent is None:
            upright = over_white(turn_upright(image), path)
            return np.asarray(upright.resize(size, Image.Resampling.LANCZOS))
        # Rotated last: the picture is small then, and until then the photo is at the top left of the decoded blocks.
        small = over_white(image, path).resize(stored_size, Image.Resampling.LANCZOS, (0, 0, *extent))
    return np.asarray(small.transpose(TURNS[orientation]) if orientation in TURNS else small)


def _draft(image: Image.Image, stored_size: tuple[int, int]) -> tuple[float, float] | None:
    """Makes Pillow decode a JPEG at a reduced scale; returns the photo's (width, height) then, None if unchanged."""
    before = image.size
    width, height = (math.ceil(MIN_REDUCED_SIZE * side) for side in stored_size)
    drafted = image.draft(None, (width, height)) if image.format in ("JPEG", "MPO") else None
    return drafted[1][2:] if drafted and image.size != before else None
