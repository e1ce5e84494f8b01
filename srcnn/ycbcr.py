"""RGB and the YCbCr of a JPEG, as tensors: ITU-R BT.601 luma and chroma, full range (JFIF; ITU-T T.871, section 7).

Linear: chroma lies around 0, not around 128 / 255. Kept out of autocast, by being neither products nor convolutions:
chroma is a small difference of large numbers, of which bfloat16 would leave little.
"""

from __future__ import annotations

import torch

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in Y; as in Pillow's L
RED_RANGE, BLUE_RANGE = 2 * (1 - LUMA_WEIGHTS[0]), 2 * (1 - LUMA_WEIGHTS[2])  # 1.402, 1.772


def to_luma(rgb: torch.Tensor) -> torch.Tensor:
    """(..., 3, H, W) -> (..., 1, H, W): Y."""
    red, green, blue = rgb.chunk(3, -3)
    return LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue


def to_ycbcr(rgb: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) R, G, B in [0, 1] -> the same shape: Y in [0, 1], Cb and Cr in [-0.5, 0.5]."""
    luma, (red, _, blue) = to_luma(rgb), rgb.chunk(3, 1)
    return torch.cat([luma, (blue - luma) / BLUE_RANGE, (red - luma) / RED_RANGE], 1)


def to_rgb(ycbcr: torch.Tensor) -> torch.Tensor:
    """The reverse of `to_ycbcr`; of a difference of two photos as of a photo."""
    luma, by_blue, by_red = ycbcr.chunk(3, 1)
    by_blue, by_red = BLUE_RANGE * by_blue, RED_RANGE * by_red  # B - Y, R - Y
    by_green = -(LUMA_WEIGHTS[0] * by_red + LUMA_WEIGHTS[2] * by_blue) / LUMA_WEIGHTS[1]
    return torch.cat([luma + by_red, luma + by_green, luma + by_blue], 1)
