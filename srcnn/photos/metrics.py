"""PSNR, PSNR-B and SSIM.

Photos are NumPy arrays with levels 0..255, batches torch tensors with range [0, 1]. Torch is not imported, because
preprocessing uses `psnr` and must start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from srcnn.photos.tiling import JPEG_BLOCK_PIXELS as BLOCK_PIXELS

if TYPE_CHECKING:
    import torch

IDENTICAL_PSNR = 100.0  # dB of identical tiles or photos, instead of infinity: the source project's convention
SSIM_WINDOW = 11  # pixels a side
_GAUSSIAN = np.exp(-((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) ** 2) / (2 * 1.5**2))
SSIM_WEIGHTS: list[float] = (_GAUSSIAN / _GAUSSIAN.sum()).tolist()


def psnr(clean: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two arrays of the same shape with levels 0..255, 20 log10(255 / RMSE); 100 if they are equal.

    Raises ValueError if the shapes differ.
    """
    return _decibels(_mean_square_error(clean, other))


def _mean_square_error(clean: np.ndarray, other: np.ndarray) -> float:
    if clean.shape != other.shape:
        raise ValueError(f"shapes differ: {clean.shape} and {other.shape}")
    return float(np.mean((clean.astype(np.float64) - other) ** 2))


def _decibels(mean_square_error: float) -> float:
    return float(10 * np.log10(255.0**2 / mean_square_error)) if mean_square_error else IDENTICAL_PSNR


def psnr_b(clean: np.ndarray, other: np.ndarray) -> float:
    """PSNR-B in dB of two greyscale (H, W) arrays with levels 0..255: the blocking effect of `other` is added to the
    error. Yim and Bovik, "Quality Assessment of Deblocked Images", IEEE TIP 20(1), 2011, eq. 2-9.

    Raises ValueError if they are not greyscale, or their shapes differ.
    """
    if clean.ndim != 2:
        raise ValueError(f"expected two greyscale (H, W) arrays, found {clean.shape}")
    return _decibels(_mean_square_error(clean, other) + blocking_effect(other))


def blocking_effect(photo: np.ndarray) -> float:
    """The blocking effect factor (BEF) of a greyscale (H, W) photo for blocks of 8x8, in squared levels."""
    pixels = photo.astype(np.float64)
    height, width = pixels.shape
    columns, rows = np.diff(pixels, axis=1) ** 2, np.diff(pixels, axis=0) ** 2
    at_column = np.arange(width - 1) % BLOCK_PIXELS == BLOCK_PIXELS - 1
    at_row = np.arange(height - 1) % BLOCK_PIXELS == BLOCK_PIXELS - 1
    boundary = columns[:, at_column].sum() + rows[at_row].sum()
    inside = columns[:, ~at_column].sum() + rows[~at_row].sum()
    # As the authors' code does, also if 8 does not divide a side: only this reproduces the published tables.
    num_boundary = height * (width / BLOCK_PIXELS - 1) + width * (height / BLOCK_PIXELS - 1)
    num_inside = height * (width - 1) + width * (height - 1) - num_boundary
    if num_boundary <= 0:
        return 0.0
    excess = boundary / num_boundary - inside / num_inside
    weight = np.log2(BLOCK_PIXELS) / np.log2(min(height, width))
    return float(weight * excess) if excess > 0 else 0.0


def tile_psnr(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in [0, 1] -> (N,) float64: PSNR in dB, 20 log10(1 / RMSE), at most 100."""
    mean_square = (clean.double() - other.double()).square().mean(dim=(1, 2, 3))
    return (-10 * mean_square.log10()).clamp(max=IDENTICAL_PSNR)


def ssim(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in [0, 1] -> (N,) float64: mean SSIM. Raises ValueError if a side is below 11 pixels.

    Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004: Gaussian window 11x11, sigma 1.5, K1 = 0.01,
    K2 = 0.03, without padding ('valid'). In float64 whatever the input, as variances are small differences of squares.
    """
    if min(clean.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least 11x11 pixels, found {tuple(clean.shape[-2:])}")
    clean, other = clean.double(), other.double()
    mean_a, mean_b = _gaussian_blur(clean), _gaussian_blur(other)
    variance_a = _gaussian_blur(clean * clean) - mean_a**2
    variance_b = _gaussian_blur(other * other) - mean_b**2
    covariance = _gaussian_blur(clean * other) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _gaussian_blur(values: torch.Tensor) -> torch.Tensor:
    """(..., H, W) -> (..., H - 10, W - 10). As sums of shifted pixels: in float64 on a CPU twice as fast as conv2d."""
    first, *weights = SSIM_WEIGHTS
    for dimension in (-2, -1):
        size = values.shape[dimension] - SSIM_WINDOW + 1
        blurred = values.narrow(dimension, 0, size) * first
        for shift, weight in enumerate(weights, 1):
            blurred = blurred.add_(values.narrow(dimension, shift, size), alpha=weight)
        values = blurred
    return values
