"""The scores of validation: in full precision, whatever the process computes in."""

import numpy as np
import pytest
import torch
from small import changing_network, draw_photo, identity_network

from srcnn.data.loader import Batch
from srcnn.data.transforms import to_float_batch
from srcnn.models.device import to_device
from srcnn.photos.degradation import Degradation
from srcnn.photos.metrics import ssim
from srcnn.photos.reading import luma_l
from srcnn.restoration.score import degraded_pair, score_photo
from srcnn.training.validation import SCORES, score_sums

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.fixture
def coarse():
    """The least precision that PyTorch computes float32 in, where the hardware has it: TF32 and bfloat16."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def flat_photos():
    """Grey photos of little contrast, whose variances are small beside the squares of their levels."""
    return [200 + luma_l(draw_photo(seed, 64, 72)) // 24 for seed in range(4)]


def batch_of(photos, device):
    """Their (clean, degraded) as tiles on a device, float32 (N, 1, H, W) in [0, 1]."""
    pairs = [degraded_pair(photo, "l", Degradation(jpeg_quality=20)) for photo in photos]
    clean, degraded = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*pairs, strict=True))
    return to_float_batch(Batch(clean, degraded, samples=None, symmetries=None))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("coarse")
def test_the_scores_are_those_of_srcnn_score(flat_photos, device):
    network = identity_network()
    expected = [score_photo("", photo, network, "l", Degradation(jpeg_quality=20)) for photo in flat_photos]
    sums = score_sums(to_device(network, torch.device(device)), *batch_of(flat_photos, device))
    found = dict(zip(SCORES, (sums / len(flat_photos)).tolist(), strict=False))
    for name in ("psnr_in", "psnr", "ssim_in", "ssim"):
        mean = sum(getattr(score, name) for score in expected) / len(expected)
        assert found[name] == pytest.approx(mean, abs=1e-6), name


@pytest.mark.parametrize("device", DEVICES)
def test_the_precision_of_the_process_changes_no_score(flat_photos, device, request):
    network, batch = to_device(changing_network(), torch.device(device)), batch_of(flat_photos, device)
    with torch.inference_mode():
        expected = score_sums(network, *batch)
        request.getfixturevalue("coarse")
        torch.testing.assert_close(score_sums(network, *batch), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ssim_is_computed_in_float64(flat_photos, dtype):
    clean, degraded = (part.to(dtype) for part in batch_of(flat_photos, "cpu"))
    score = ssim(clean, degraded)
    assert score.dtype == torch.float64 and torch.equal(score, ssim(clean.double(), degraded.double()))
    assert (ssim(clean, clean) <= 1).all()


def test_perceptual_distances_are_summed_over_the_tiles(flat_photos):
    def distance(clean, other):
        return (clean - other).abs().mean()

    clean, degraded = batch = batch_of(flat_photos, "cpu")
    sums = score_sums(identity_network(), *batch, distances={"lpips": distance})
    assert len(sums) == len(SCORES) + 3
    assert sums[-3:].tolist() == pytest.approx([4 * float(distance(clean, degraded))] * 2 + [4])
