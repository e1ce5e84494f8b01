"""Damaged chroma smoothed along the edges of the restored luma, by a guided filter.

He, Sun and Tang, "Guided Image Filtering", IEEE TPAMI 35(6), 2013. In every window a chroma plane is taken for a linear
function of its guides (eq. 4), fitted by ridge regression (eq. 14 of the paper's guide of several channels); a pixel
gets the mean of what the windows around it say (eq. 16). The guides are the restored luma and the chroma plane itself:
luma alone would wash out edges between two colours of equal brightness, and loses above quality 50.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# By measurement on training photos: 2 is worse at low qualities, 6 at high ones and for 4:4:4.
RADIUS = 4
REACH = 2 * RADIUS  # pixels to each side that an output pixel depends on: windows of windows
LUMA_RIDGE = 1e-4  # squared luma of [0, 1]


def smooth_chroma(chroma: torch.Tensor, luma: torch.Tensor, quality: float) -> torch.Tensor:
    """The chroma planes, with what differs from a linear function of the luma nearby smoothed away.

    An output pixel depends on the pixels within REACH and on nothing else, to the last bit; where the photo ends, its
    edge is repeated.

    Args:
        chroma: (2, H, W) float32, B - Y and R - Y of the damaged photo, levels / 255; any size from 1x1.
        luma: (1, H, W) float32, the restored luma in [0, 1].
        quality: of the JPEG, 1..100 on libjpeg's scale; the lower, the smoother. Too high a one loses part of the gain,
            too low a one loses more than there is: 0.2 dB of RGB where 10 is told of 80, 0.8 dB of 95.
    """
    ridge = chroma_ridge(quality)
    guide = luma - 0.5  # squares of smaller numbers: variances keep more digits
    moments = torch.cat([guide, chroma, guide * guide, guide * chroma, chroma * chroma])
    mean_luma, mean, square_luma, product, square = torch.split(box_means(moments), [1, 2, 1, 2, 2])
    luma_variance = (square_luma - mean_luma * mean_luma).clamp_(min=0)
    variance = (square - mean * mean).clamp_(min=0)
    covariance = product - mean_luma * mean
    # (luma_variance + LUMA_RIDGE, covariance; covariance, variance + ridge) (slope, own) = (covariance, variance)
    damped = luma_variance + LUMA_RIDGE
    determinant = damped * (variance + ridge) - covariance * covariance
    slope = covariance * ridge / determinant
    own = (damped * variance - covariance * covariance) / determinant
    offset = mean - slope * mean_luma - own * mean
    slope, own, offset = box_means(torch.cat([slope, own, offset])).chunk(3)
    return slope * guide + own * chroma + offset


def chroma_ridge(quality: float) -> float:
    """What a chroma plane's variance in a window is held against, in squared levels / 255.

    The error's variance grows as the square of the quantization step, which libjpeg scales so (jcparam.c); the two
    constants fit what was best for quality 10, 20, 40 and 80.
    """
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    return 5e-4 * scale**2 + 2e-4


def box_means(planes: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> the same shape: means over windows of 2 RADIUS + 1, the photo's edges repeated.

    Windows are added by doubling. Running sums would round differently in another tile.
    """
    side = 2 * RADIUS + 1
    sums = functional.pad(planes[None], (RADIUS,) * 4, mode="replicate")[0]
    for axis in (1, 2):
        length = sums.shape[axis] - side + 1
        last = sums.narrow(axis, side - 1, length)
        for shift in (1, 2, 4):
            left = sums.shape[axis] - shift
            sums = sums.narrow(axis, 0, left) + sums.narrow(axis, shift, left)
        sums = sums.narrow(axis, 0, length) + last
    return sums / side**2
