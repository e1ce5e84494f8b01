"""PSNR, SSIM and PSNR-B against numbers known by heart and other people's code."""

import numpy as np
import pytest
import torch
from messages import facts
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srcnn.photos.metrics import IDENTICAL_PSNR, blocking_effect, psnr, psnr_b, ssim, tile_psnr


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    clean = random.integers(0, 256, (37, 53), np.uint8)
    return clean, np.clip(clean + random.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)


def test_an_error_of_one_level_everywhere_is_48_13_db():
    clean = np.full((7, 9), 100, np.uint8)
    assert psnr(clean, clean + 1) == pytest.approx(48.1308, abs=1e-4)
    tiles = torch.full((2, 1, 7, 9), 0.4)
    torch.testing.assert_close(tile_psnr(tiles, tiles + 1 / 255), torch.full((2,), 48.1308, dtype=torch.float64),
                               atol=1e-3, rtol=0)


def test_psnr_does_not_wrap_around_in_uint8():
    assert psnr(np.zeros((3, 5), np.uint8), np.full((3, 5), 255, np.uint8)) == 0.0


def test_identical_photos_and_tiles_count_as_100_db(pair):
    assert psnr(pair[0], pair[0]) == IDENTICAL_PSNR == 100.0
    tiles = torch.rand(3, 1, 5, 5)
    assert tile_psnr(tiles, tiles).tolist() == [100.0] * 3


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-9)
    theirs = structural_similarity(*pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)[1]
    tensors = [torch.from_numpy(photo / 255.0)[None, None] for photo in pair]
    # scikit-image pads: its map without 5 pixels at each edge is the 'valid' one (truncate 3.5 * 1.5 = radius 5)
    assert float(ssim(*tensors)) == pytest.approx(theirs[5:-5, 5:-5].mean(), abs=1e-7)


def test_tile_psnr_is_of_each_tile_by_itself(pair):
    tiles = torch.stack([torch.from_numpy(photo / 255.0) for photo in pair])[:, None]
    scores = tile_psnr(tiles[[0, 0]], tiles[[1, 0]])
    assert scores.tolist() == pytest.approx([psnr(*pair), 100.0])


def written_out_psnr_b(clean, other, block=8):
    """PSNR-B pixel by pixel, as the paper's sums stand."""
    height, width = other.shape
    pixels = other.astype(float)
    boundary, inside = [], []
    num_boundary = height * (width / block - 1) + width * (height / block - 1)  # as the authors' code counts
    for y in range(height):
        for x in range(width - 1):
            (boundary if (x + 1) % block == 0 else inside).append((pixels[y, x] - pixels[y, x + 1]) ** 2)
    for y in range(height - 1):
        for x in range(width):
            (boundary if (y + 1) % block == 0 else inside).append((pixels[y, x] - pixels[y + 1, x]) ** 2)
    on = np.sum(boundary) / num_boundary
    off = np.sum(inside) / (len(boundary) + len(inside) - num_boundary)
    effect = np.log2(block) / np.log2(min(height, width)) * (on - off) if on > off else 0.0
    return 10 * np.log10(255**2 / (np.mean((clean.astype(float) - other) ** 2) + effect))


def test_psnr_b_equals_the_written_out_sums(pair):
    clean, other = pair
    rows, columns = np.indices(other.shape)
    blocky = (100 + 40 * ((rows // 8 + columns // 8) % 2)).astype(np.uint8)
    for photo in (other, blocky):
        assert psnr_b(clean, photo) == pytest.approx(written_out_psnr_b(clean, photo), abs=1e-9)
    assert psnr_b(clean, blocky) < psnr(clean, blocky)


def test_a_smooth_photo_has_no_blocking_and_blocks_have():
    rows, columns = np.indices((40, 64))
    ramp = (rows + columns).astype(np.uint8)
    assert blocking_effect(ramp) == 0.0
    assert blocking_effect(ramp // 8 * 8 + (columns // 8).astype(np.uint8)) > 0.0
    assert blocking_effect(np.zeros((3, 4), np.uint8)) == 0.0


def test_unequal_shapes_and_too_small_photos_are_named(pair):
    with pytest.raises(ValueError, match=facts(pair[0].shape, pair[1][:-1].shape)):
        psnr(pair[0], pair[1][:-1])
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.rand(1, 1, 10, 40), torch.rand(1, 1, 10, 40))
