"""PSNR, SSIM and PSNR-B of photos, PSNR and SSIM of batches of tiles.

Photos are NumPy arrays (levels 0..255), batches are torch tensors (range [0, 1]). Torch is imported inside the
functions that need it, because preprocessing, which must start fast, takes its PSNR from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

IDENTICAL_PSNR = 100.0  # dB for identical tiles or photos: the source project's convention, instead of infinity
BLOCK_PIXELS = 8


def psnr(clean: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two arrays of levels 0..255 of the same shape: 20 log10(255 / RMSE); identical ones: 100."""
    if clean.shape != other.shape:
        raise ValueError(f"shapes differ: {clean.shape} and {other.shape}")
    mean_square = float(np.mean((clean.astype(np.float64) - other) ** 2))
    return _psnr(mean_square, 255.0)


def _psnr(mean_square: float, peak: float) -> float:
    return float(10 * np.log10(peak**2 / mean_square)) if mean_square else IDENTICAL_PSNR


def psnr_b(clean: np.ndarray, other: np.ndarray) -> float:
    """PSNR-B in dB of two greyscale (H, W) arrays of levels 0..255: PSNR with the blocking of `other` added to its
    error, by Yim and Bovik, "Quality Assessment of Deblocked Images", IEEE TIP 20(1), 2011, eq. 2-9.
    """
    if clean.ndim != 2 or clean.shape != other.shape:
        raise ValueError(f"expected two greyscale arrays of one shape, found {clean.shape} and {other.shape}")
    error = float(np.mean((clean.astype(np.float64) - other) ** 2))
    return _psnr(error + blocking_effect(other), 255.0)


def blocking_effect(photo: np.ndarray) -> float:
    """The blocking effect factor BEF of a greyscale (H, W) photo, in squared levels, over blocks of 8x8."""
    pixels = photo.astype(np.float64)
    height, width = pixels.shape
    columns, rows = np.diff(pixels, axis=1) ** 2, np.diff(pixels, axis=0) ** 2
    at_column = np.arange(width - 1) % BLOCK_PIXELS == BLOCK_PIXELS - 1
    at_row = np.arange(height - 1) % BLOCK_PIXELS == BLOCK_PIXELS - 1
    boundary = columns[:, at_column].sum() + rows[at_row].sum()
    inside = columns[:, ~at_column].sum() + rows[~at_row].sum()
    # As the authors' code counts, also where 8 does not divide a side; the published tables come out with this only.
    num_boundary = height * (width / BLOCK_PIXELS - 1) + width * (height / BLOCK_PIXELS - 1)
    num_inside = height * (width - 1) + width * (height - 1) - num_boundary
    if num_boundary <= 0:
        return 0.0
    excess = boundary / num_boundary - inside / num_inside
    weight = np.log2(BLOCK_PIXELS) / np.log2(min(height, width))
    return float(weight * excess) if excess > 0 else 0.0


def tile_psnr(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in [0, 1] -> (N,) float64 PSNR in dB, 20 log10(1 / RMSE); identical tiles count as 100."""
    mean_square = (clean.double() - other.double()).square().mean(dim=(1, 2, 3))
    return (-10 * mean_square.log10()).clamp(max=IDENTICAL_PSNR)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) RGB -> (N, 1, H, W): Y of ITU-R BT.601, full range, which Pillow's "L" rounds. Linear."""
    return 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]


def ssim(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in [0, 1] -> (N,) mean SSIM; sides of at least 11 pixels.

    Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004: Gaussian window 11x11, sigma 1.5, K1 = 0.01,
    K2 = 0.03, only where the window lies inside ('valid').
    """
    import torch

    if min(clean.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs at least 11x11 pixels, found {tuple(clean.shape[-2:])}")
    offsets = torch.arange(11, dtype=clean.dtype, device=clean.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(0, 1).unsqueeze(1)
        rows = torch.nn.functional.conv2d(flat, window.view(1, 1, 11, 1))
        return torch.nn.functional.conv2d(rows, window.view(1, 1, 1, 11)).view(*values.shape[:2], *_valid(values))

    mean_a, mean_b = blur(clean), blur(other)
    variance_a = blur(clean * clean) - mean_a**2
    variance_b = blur(other * other) - mean_b**2
    covariance = blur(clean * other) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _valid(values: torch.Tensor) -> tuple[int, int]:
    return values.shape[-2] - 10, values.shape[-1] - 10
