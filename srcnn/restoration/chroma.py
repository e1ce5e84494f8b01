"""Smooths degraded chroma along the edges of the restored luma, with a guided filter.

He, Sun and Tang, "Guided Image Filtering", IEEE TPAMI 35(6), 2013. In every window a chroma plane is modelled as a
linear function of its guides (eq. 4), fitted by ridge regression (eq. 14, guides of several channels); a pixel gets the
mean over the windows that contain it (eq. 16). The guides are the restored luma and the chroma plane itself: luma alone
would blur edges between two colours of equal brightness, and is worse than nothing above quality 50.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# pixels; measured on training photos: 2 is worse at low qualities, 6 at high ones and for 4:4:4
RADIUS = 4
REACH = 2 * RADIUS  # pixels to each side that an output pixel depends on: two box filters
LUMA_RIDGE = 1e-4  # squared luma of [0, 1]


def smooth_chroma(chroma: torch.Tensor, luma: torch.Tensor, quality: float) -> torch.Tensor:
    """(2, H, W): the chroma planes without local deviations from a linear function of the luma.

    An output pixel depends on the pixels within REACH only, to the last bit; edges are padded by replication.

    Args:
        chroma: (2, H, W) float32, B - Y and R - Y of the damaged photo, levels / 255; any size from 1x1.
        luma: (1, H, W) float32, the restored luma in [0, 1].
        quality: of the JPEG, 1..100 on libjpeg's scale; the lower, the smoother. A value that is too high loses a part
            of the gain; one that is too low does harm: 10 instead of 80 costs 0.2 dB of RGB, instead of 95 0.8 dB.
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
    """The regularization of a chroma plane's variance, in squared levels / 255.

    The variance of the error grows with the square of the quantization step, which libjpeg scales like this
    (jcparam.c); the two constants fit the best values for qualities 10, 20, 40 and 80.
    """
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    return 5e-4 * scale**2 + 2e-4


def box_means(planes: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> the same shape: means over windows of side 2 RADIUS + 1, with replicate padding.

    Sums of 2, 4, 8 pixels are built by doubling; running sums would round differently in another tile.
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
