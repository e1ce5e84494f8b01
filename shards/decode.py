"""Photo file -> clean picture at the size its tiles are cut at."""

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
# How much larger than wanted, each way, a JPEG decoded at a reduced scale is at least. At 1.4 the luma of real
# photographs is 45 dB from the exact one on average, 42 dB at 1.0; 4000x3000 still becomes 1024x1024 by way of a half.
LEAST_MARGIN = 1.4


def read_clean(path: Path, rule: Resize, decode: Decode, max_megapixels: float) -> np.ndarray:
    """Decodes a photo, lays it over white and resizes it (Lanczos): uint8 (H, W) or (H, W, 3), upright.

    With `decode` "reduced" a JPEG is decoded at a half, a quarter or an eighth of its size where that is still
    LEAST_MARGIN times as large as wanted; any other photo comes out as with "exact".

    Raises:
        PhotoRefused: as `srcnn.photos.reading.read_photo`.
    """
    with open_image(path, max_megapixels) as image:
        size = rule.size(*upright_size(image))
        orientation = orientation_of(image)
        stored_size = size[::-1] if orientation >= 5 else size  # before the photo is turned upright
        extent = _draft(image, stored_size) if decode == "reduced" else None
        image.load()
        if extent is None:
            upright = over_white(turn_upright(image), path)
            return np.asarray(upright.resize(size, Image.Resampling.LANCZOS))
        # Turned when it is small, and so late that what the photo fills is still at the top left.
        small = over_white(image, path).resize(stored_size, Image.Resampling.LANCZOS, (0, 0, *extent))
    return np.asarray(small.transpose(TURNS[orientation]) if orientation in TURNS else small)


def _draft(image: Image.Image, stored_size: tuple[int, int]) -> tuple[float, float] | None:
    """Has a JPEG decoded smaller: (width, height) of what the photo will fill then. None where it stays as it is."""
    before = image.size
    width, height = (math.ceil(LEAST_MARGIN * side) for side in stored_size)
    drafted = image.draft(None, (width, height)) if image.format in ("JPEG", "MPO") else None
    return drafted[1][2:] if drafted and image.size != before else None
