"""The quality that a JPEG was saved with, from its own quantization tables. Does not import torch."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

MAX_STEP = 255  # of a baseline JPEG
# ITU-T T.81, Annex K, table K.1: luma, rows of rising vertical frequency, as Pillow orders `quantization`.
ANNEX_K_LUMA = np.array([
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def quality_of(image: Image.Image) -> int | None:
    """The quality 1..100, on libjpeg's scale, that the luma table of an opened JPEG tells; None where it tells none.

    Exact for libjpeg's own tables. Of others (Photoshop, cameras, mozjpeg) the quality whose table is nearest: the
    least mean square of the logarithms of the steps' ratios. Damage goes with the step's size, so ratios count; plain
    differences would see the coarse steps of the highest frequencies only, where photos hold little. The quality with
    the same PSNR is met within some 3 on average, and missed by up to 17 for flat or very coarse tables.

    The tables tell of the last time it was saved: a photo that was saved badly, and well after that, counts as good.

    Args:
        image: as Image.open gives it; a copy, or what was converted or rotated, has no tables any more.
    """
    if not isinstance(image, JpegImageFile) or not image.layer:
        return None
    table = image.quantization.get(image.layer[0][3])  # component 0: Y, or grey; or R, C of files without chroma
    if table is None or len(table) != ANNEX_K_LUMA.size or min(table) < 1:
        return None
    ratios = np.log(_TABLES / np.minimum(table, MAX_STEP))
    return 1 + int(np.argmin(np.square(ratios).mean(axis=1)))


def luma_tables() -> np.ndarray:
    """(100, 64): libjpeg's luma table of each quality 1..100; jpeg_quality_scaling and jpeg_add_quant_table, with
    force_baseline, of libjpeg's jcparam.c.
    """
    qualities = np.arange(1, 101)
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((ANNEX_K_LUMA * percent[:, None] + 50) // 100, 1, MAX_STEP)


_TABLES = luma_tables()
