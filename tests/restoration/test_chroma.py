"""Chroma smoothed along the luma's edges."""

import numpy as np
import pytest
import torch

from srcnn.photos.tiling import windows
from srcnn.restoration.chroma import LUMA_RIDGE, RADIUS, REACH, box_means, chroma_ridge, smooth_chroma

SIZES = [(1, 1), (1, 7), (6, 1), (5, 9), (31, 44)]


def planes(height, width, seed=0):
    """(chroma, luma)."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(2, height, width, generator=random) - 0.5, torch.rand(1, height, width, generator=random)


def window_mean(values, radius):
    padded = np.pad(values, radius, mode="edge")
    side = 2 * radius + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (side, side)).mean(axis=(2, 3))


def plainly(chroma, luma, quality):
    """One plane, float64: for each window the ridge regression itself, then the mean of what the windows say."""
    guides = [np.pad(plane, RADIUS, mode="edge") for plane in (luma, chroma)]
    height, width = luma.shape
    fitted = np.empty((3, height, width))
    ridges = np.diag([LUMA_RIDGE, chroma_ridge(quality)])
    for row in range(height):
        for column in range(width):
            part = slice(row, row + 2 * RADIUS + 1), slice(column, column + 2 * RADIUS + 1)
            seen = np.stack([guide[part].ravel() for guide in guides])
            spread = np.cov(seen, bias=True)
            slopes = np.linalg.solve(spread + ridges, spread[:, 1])
            fitted[:, row, column] = *slopes, seen[1].mean() - slopes @ seen.mean(axis=1)
    means = [window_mean(plane, RADIUS) for plane in fitted]
    return means[0] * luma + means[1] * chroma + means[2]


@pytest.mark.parametrize("height, width", SIZES)
def test_windows_average_as_numpy_says(height, width):
    chroma, _ = planes(height, width)
    expected = [window_mean(plane.double().numpy(), RADIUS) for plane in chroma]
    np.testing.assert_allclose(box_means(chroma).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("quality", [10, 80])
@pytest.mark.parametrize("height, width", SIZES)
def test_it_is_the_ridge_regression_in_every_window(height, width, quality):
    chroma, luma = planes(height, width)
    smooth = smooth_chroma(chroma, luma, quality)
    assert smooth.shape == chroma.shape and smooth.dtype == torch.float32
    for plane, before in zip(smooth.numpy(), chroma.double().numpy(), strict=True):
        np.testing.assert_allclose(plane, plainly(before, luma[0].double().numpy(), quality), atol=2e-5)


@pytest.mark.parametrize("tile_pixels", [13, 32])
def test_tiles_with_a_halo_of_its_reach_equal_the_whole_to_the_last_bit(tile_pixels):
    chroma, luma = planes(61, 83)
    whole = smooth_chroma(chroma, luma, 20)
    for window in windows(61, 83, tile_pixels, REACH):
        source, inner, target = ((slice(None), *part) for part in window)
        tile = smooth_chroma(chroma[source], luma[source], 20)[inner]
        assert torch.equal(tile, whole[target])


def test_reach_is_what_a_pixel_depends_on():
    chroma, luma = planes(41, 47)
    changed = luma.clone()
    changed[0, 20, 23] = 1 - changed[0, 20, 23]
    rows, columns = torch.nonzero((smooth_chroma(chroma, luma, 20) != smooth_chroma(chroma, changed, 20)).any(0)).T
    assert (rows.min(), rows.max()) == (20 - REACH, 20 + REACH)
    assert (columns.min(), columns.max()) == (23 - REACH, 23 + REACH)


def test_flat_colour_and_grey_stay_as_they_are():
    _, luma = planes(23, 29)
    flat = torch.tensor([0.21, -0.34])[:, None, None].expand(2, 23, 29)
    torch.testing.assert_close(smooth_chroma(flat, luma, 10), flat, atol=1e-6, rtol=0)
    assert not smooth_chroma(torch.zeros(2, 23, 29), luma, 10).any()


def test_noise_is_smoothed_but_an_edge_of_the_luma_stays_sharp():
    random = torch.Generator().manual_seed(0)
    step = (torch.arange(40) >= 20).float().expand(1, 30, 40)
    clean = torch.cat([0.2 * step, -0.1 * step])
    noisy = clean + 0.03 * torch.randn(2, 30, 40, generator=random)
    smooth = smooth_chroma(noisy, 0.3 + 0.4 * step, 10)
    assert (smooth - clean).square().mean() < (noisy - clean).square().mean() / 10
    beside = smooth[0, :, 20] - smooth[0, :, 19]
    assert beside.mean() > 0.18, "of 0.2"


@pytest.mark.parametrize("quality, kept", [(10, 0.7), (80, 0.98)])
def test_a_strong_edge_between_colours_of_equal_luma_stays(quality, kept):
    """With the luma as the only guide, windows of windows would leave a ninth of the step."""
    step = (torch.arange(40) >= 20).float().expand(2, 30, 40) * 0.4
    smooth = smooth_chroma(step, torch.full((1, 30, 40), 0.5), quality)
    assert (smooth[:, :, 20] - smooth[:, :, 19]).min() > kept * 0.4


def test_lower_qualities_are_smoothed_more():
    ridges = [chroma_ridge(quality) for quality in range(1, 101)]
    assert all(before > after for before, after in zip(ridges, ridges[1:], strict=False))
    assert chroma_ridge(50) == pytest.approx(5e-4 + 2e-4) and chroma_ridge(100) == pytest.approx(2e-4)
