"""The quality a JPEG was saved with, and the condition vector of a network, from its quantization tables.

Does not import torch.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from srcnn.photos.pillow_internals import jpeg_components
from srcnn.runtime.errors import UserError

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
# Table K.2: chroma; 99 from the fifth row and column on.
ANNEX_K_CHROMA = np.pad(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]], (0, 4), constant_values=99
).reshape(-1)
# (8 frequencies, 8 pixels) float32, orthonormal: the DCT of ITU-T T.81, A.3.3, in one dimension.
DCT = (np.cos(np.outer(np.arange(8), np.arange(1, 16, 2)) * np.pi / 16) / 2).astype(np.float32)
DCT[0] = 8**-0.5
# Indices of the first ten frequencies, in zigzag order, in such a table.
LOW_FREQUENCIES = (0, 1, 8, 16, 9, 2, 3, 10, 17, 24)
TRANSPOSED = [LOW_FREQUENCIES.index(8 * (index % 8) + index // 8) for index in LOW_FREQUENCIES]
CONDITION_SIZE = 2 + 2 * len(LOW_FREQUENCIES)


class JpegSave(NamedTuple):
    """A JPEG compression that a photo went through.

    Attributes:
        quality: 1..100 on libjpeg's scale, as `jpeg_save_of` computes it.
        condition: float32 (CONDITION_SIZE,), as `condition_of` computes it.
        offset: (row, column), each 0..7, of the first whole 8x8 block in the photo.
        luma_steps: (8, 8) quantization steps by vertical and horizontal frequency; None: unknown.
    """

    quality: int
    condition: np.ndarray
    offset: tuple[int, int] = (0, 0)
    luma_steps: np.ndarray | None = None

    def upright(self, orientation: int, height: int, width: int) -> JpegSave:
        """For the photo turned by an orientation 1..8 (EXIF 2.32, tag 0x0112), whose size is then height x width."""
        condition, steps = self.condition, self.luma_steps
        if orientation >= 5:  # rows become columns
            luma, chroma = condition[2:].reshape(2, -1)[:, TRANSPOSED]
            condition = np.concatenate([condition[:2], luma, chroma])
            steps = None if steps is None else steps.T
        rows = height % 8 if orientation in (3, 4, 7, 8) else 0  # the incomplete blocks come first
        columns = width % 8 if orientation in (2, 3, 6, 7) else 0
        return JpegSave(self.quality, condition, (rows, columns), steps)


def jpeg_save(quality: int, subsampled: bool = True, grey: bool = False) -> JpegSave:
    """The compression by libjpeg's tables of a quality. Raises UserError unless it is in 1..100."""
    if not 1 <= quality <= 100:
        raise UserError(f"quality {quality:g}: expected a JPEG quality, 1..100")
    quality = round(quality)
    steps = _TABLES[quality - 1].reshape(8, 8)
    return JpegSave(quality, condition_of_quality(quality, subsampled, grey), luma_steps=steps)


def jpeg_save_of(image: Image.Image) -> JpegSave | None:
    """The compression of an opened JPEG by its luma quantization table; None without a valid one.

    The quality is exact for libjpeg's own tables. For others (Photoshop, cameras, mozjpeg) it is that with the nearest
    table, by the mean square of the logarithms of the ratios of steps: the damage is proportional to the step, and
    plain differences would be dominated by the coarse steps of the highest frequencies, where photos have little. It is
    within some 3 of the quality with equal PSNR on average, and up to 17 off for flat or very coarse tables.

    The table is that of the last JPEG: a photo saved at a low and then at a high quality counts as good.

    The condition is that of the quality: networks are trained on libjpeg's tables. Told others, such as those of
    cameras, they restore up to 0.7 dB worse.

    Args:
        image: as Image.open returns it; copies and converted or rotated images have lost the tables.
    """
    components = jpeg_components(image)
    if not isinstance(image, JpegImageFile) or not components:
        return None
    table = image.quantization.get(components[0].table)  # of Y or grey, or of R or C in files without chroma
    if table is None or len(table) != ANNEX_K_LUMA.size or min(table) < 1:
        return None
    luma = np.asarray(table)
    ratios = np.log(_TABLES / np.minimum(luma, MAX_STEP))
    quality = 1 + int(np.square(ratios).mean(axis=1).argmin())
    sampling = {(component.across, component.down) for component in components}
    condition = condition_of_quality(quality, subsampled=len(sampling) > 1, grey=len(components) == 1)
    return JpegSave(quality, condition, luma_steps=luma.reshape(8, 8))


def condition_of(luma: np.ndarray, chroma: np.ndarray | None, subsampled: bool) -> np.ndarray:
    """The condition vector of a JPEG, an input of a conditioned network: float32 (CONDITION_SIZE,) in [0, 1].

    Its elements: 1 for "known"; 1 if the chroma has half the resolution, else 0; log2(step) / 8 of the first ten
    frequencies (zigzag) of the luma table, then of the chroma table. All zeros mean that the JPEG is unknown; zeros
    after the first element, which are steps of 1, mean that nothing was quantized.

    Args:
        luma, chroma: (64,) quantization steps from 1, rows of rising vertical frequency; chroma None for greyscale.
    """
    both = np.stack([luma, np.ones_like(luma) if chroma is None else chroma])
    steps = both[:, LOW_FREQUENCIES].reshape(-1)
    return np.array([1, subsampled, *np.log2(np.clip(steps, 1, MAX_STEP)) / 8], np.float32)


def condition_of_quality(quality: int, subsampled: bool = True, grey: bool = False) -> np.ndarray:
    """The condition vector of libjpeg's own tables of a quality 1..100."""
    return condition_of(_TABLES[quality - 1], None if grey else _CHROMA_TABLES[quality - 1], subsampled and not grey)


@cache
def conditions_of_qualities(subsampled: bool = True, grey: bool = False) -> np.ndarray:
    """Read-only float32 (101, CONDITION_SIZE): the condition vector of each quality 0..100, where 0 is unknown."""
    known = [condition_of_quality(quality, subsampled, grey) for quality in range(1, 101)]
    conditions = np.stack([np.zeros(CONDITION_SIZE, np.float32), *known])
    conditions.flags.writeable = False
    return conditions


def quality_tables(base: np.ndarray) -> np.ndarray:
    """(100, 64): libjpeg's table of each quality 1..100, from the table of quality 50, as jpeg_quality_scaling and
    jpeg_add_quant_table (with force_baseline) in libjpeg's jcparam.c compute it.
    """
    qualities = np.arange(1, 101)
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((base * percent[:, None] + 50) // 100, 1, MAX_STEP)


_TABLES = quality_tables(ANNEX_K_LUMA)
_CHROMA_TABLES = quality_tables(ANNEX_K_CHROMA)
