"""The restored luma stays within what the JPEG's quantization allows."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small import changing_network, draw_photo

from srcnn import restore
from srcnn.__main__ import main
from srcnn.models.pretrained import FAMILY, WeightSelector
from srcnn.models.wrapped import wrap
from srcnn.photos.jpeg_quality import jpeg_save, jpeg_save_of
from srcnn.photos.metrics import psnr
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.quantization import BOUND, bound_change
from srcnn.restoration.restore import access_to_array, restore_array
from srcnn.restoration.score import NETWORK_ALONE, Degradation, score_photo
from srcnn.restoration.tiled_inference import RestoreOptions, run_network

LUMA = np.array([0.299, 0.587, 0.114])
CPU = torch.device("cpu")


def dct_of_blocks(plane, offset=(0, 0)):
    """(rows, columns, 8, 8) float64: the sum of ITU-T T.81, A.3.3, for every whole block."""
    plane = plane[offset[0] :, offset[1] :]
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8)
    waves = np.array([[np.cos((2 * x + 1) * u * np.pi / 16) * (0.5 if u else 0.125**0.5) for x in range(8)]
                      for u in range(8)])
    return np.einsum("ux,rxcy,vy->rcuv", waves, blocks, waves)


def saved(pixels, quality, **options):
    """The opened JPEG, its pixels, and its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    image = Image.open(buffer)
    return image, np.asarray(image), buffer.getvalue()


def as_luma(pixels):
    return (pixels @ LUMA if pixels.ndim == 3 else pixels).astype(np.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return changing_network()


@pytest.fixture(scope="module")
def clean():
    """Grey levels 60 to 190, so that nothing is clipped."""
    noise = np.random.default_rng(0).normal(0, 5, (181, 235, 3))
    return (60 + 0.5 * draw_photo(3, 181, 235) + noise).round().astype(np.uint8)


@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (5, 23), (64, 8), (77, 90)])
def test_coefficients_are_clipped_and_what_is_within_stays(height, width):
    change = torch.randn(1, height, width, generator=torch.Generator().manual_seed(1))
    steps = torch.arange(1, 65).view(8, 8) / 16
    bounded = bound_change(change, steps)
    assert bounded.shape == change.shape and bounded.dtype == torch.float32
    padded = np.pad(change[0].double().numpy(), ((0, -height % 8), (0, -width % 8)), "edge")
    expected = dct_of_blocks(padded).clip(*(sign * BOUND * steps.double().numpy() for sign in (-1, 1)))
    again = np.pad(bounded[0].double().numpy(), ((0, -height % 8), (0, -width % 8)), "edge")
    whole = np.s_[: height // 8, : width // 8]
    np.testing.assert_allclose(dct_of_blocks(again)[whole], expected[whole], atol=1e-5)
    torch.testing.assert_close(bound_change(change, steps * 1000), change, atol=1e-5, rtol=0)
    assert not bound_change(change, steps * 0).any()


@pytest.mark.parametrize("quality", [20, 60, 85])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_coefficient_of_the_restored_luma_lies_where_the_file_says(clean, network, colour, quality, dtype):
    image, pixels, _ = saved(clean if colour else clean[..., 1], quality)
    damage = jpeg_save_of(image)
    levels = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}[np.dtype(dtype).name]
    source = (pixels * levels).astype(dtype)
    for tile_pixels in (0, 20):
        free, restored = (
            as_luma(restore_array(source, network, RestoreOptions(tile_pixels, damage=damage, consistent=consistent)))
            / levels for consistent in (False, True))
        steps = np.reshape(image.quantization[0], (8, 8))
        centres = steps * np.rint(dct_of_blocks(as_luma(pixels) - 128) / steps)
        rounding = 4  # of 64 pixels by half a level, all the same way
        assert (np.abs(dct_of_blocks(free - 128) - centres) - steps / 2).max() > 2 * rounding
        assert (np.abs(dct_of_blocks(restored - 128) - centres) - BOUND * steps).max() < rounding


@pytest.mark.parametrize("name", ["unet-jpeg", "small"])
@pytest.mark.parametrize("rows, columns", [(3, 6), (0, 1), (7, 7)])
def test_tiles_of_a_crop_are_bounded_on_the_blocks_of_its_jpeg(clean, network, name, rows, columns):
    model = WeightSelector(name, CPU).load(name) if name == "unet-jpeg" else network
    _, pixels, _ = saved(clean[:120, :136], 10, subsampling=0)
    pixels = np.ascontiguousarray(pixels[rows:, columns:]).astype(np.float32) / 255
    offset = -rows % 8, -columns % 8
    damage = jpeg_save(10, subsampled=False)._replace(offset=offset)
    whole, *tiled = (restore_array(pixels, model, RestoreOptions(side, damage=damage)) for side in (1000, 96, 9))
    change = dct_of_blocks(as_luma(whole) - as_luma(pixels), offset)
    assert (np.abs(change) <= BOUND * damage.luma_steps / 255 + 1e-4).all()
    assert (np.abs(change) > 0.99 * BOUND * damage.luma_steps / 255).any()
    for each in tiled if name == "small" else tiled[:1]:
        np.testing.assert_allclose(each, whole, atol=1e-5 if name == "small" else 2e-3)


def test_tiles_halved_as_memory_runs_out_are_bounded_as_the_whole(clean, network, monkeypatch):
    pixels, options = clean.astype(np.float32) / 255, RestoreOptions(200, damage=jpeg_save(30))
    expected = restore_array(pixels, network, options)

    def scarce(planes, *options):
        if max(planes.shape[1:]) > 60:
            raise torch.OutOfMemoryError("no more")
        return run_network(planes, *options)

    monkeypatch.setattr("srcnn.restoration.tiled_inference.run_network", scarce)
    np.testing.assert_allclose(restore_array(pixels, network, options), expected, atol=1e-5)


@pytest.mark.parametrize("model", ["unet-jpeg", FAMILY])
@pytest.mark.parametrize("quality", [10, 40, 80])
def test_the_luma_gains_in_8_bits(shared_data, model, quality):
    clean = np.asarray(Image.open(shared_data / "val" / "city20" / "033H.png").convert("RGB"))[:240, :320]
    image, *_ = saved(clean, quality)
    free, bounded = (np.asarray(restore(image, model, consistent=consistent)) for consistent in (False, True))
    before, after = (np.mean((as_luma(each) - as_luma(clean)) ** 2) for each in (free, bounded))
    assert after < before * 10 ** (-0.01 / 10)  # 0.01 dB


@pytest.mark.parametrize("last", [75, 98])
def test_a_photo_saved_again_is_bounded_by_its_worst_save(shared_data, last):
    """By the steps of the last save, what the first one did could not be undone: -0.4 to -1.3 dB."""
    clean = np.asarray(Image.open(shared_data / "val" / "city20" / "033H.png").convert("RGB"))[:240, :320]
    _, once, _ = saved(clean, 15)
    image, *_ = saved(np.ascontiguousarray(once[3:, 5:]), last)
    free, bounded = (np.asarray(restore(image, consistent=consistent)) for consistent in (False, True))
    assert psnr(clean[3:, 5:], bounded) > psnr(clean[3:, 5:], free)


def test_only_networks_for_jpegs_are_bounded(clean, network):
    """What removes noise or blur, too, must leave what the JPEG allows."""
    image, pixels, _ = saved(clean, 60)
    for model in (network, wrap(torch.nn.AvgPool2d(3, 1, 1), halo=1, channels=1), "srcnn-915-q40"):
        free, bounded = (np.asarray(restore(image, model, consistent=consistent)) for consistent in (False, True))
        assert np.array_equal(free, bounded)
    free, bounded = pixels.copy(), pixels.copy()
    for consistent, restored in ((False, free), (True, bounded)):
        options = RestoreOptions(consistent=consistent)
        JpegRestorer(WeightSelector(FAMILY, CPU), options)(access_to_array(restored), jpeg_save_of(image))
    assert not np.array_equal(free, bounded)


def test_a_photo_without_known_damage_is_not_bounded(network, clean):
    free, bounded = (restore_array(clean, network, RestoreOptions(consistent=each)) for each in (False, True))
    assert np.array_equal(free, bounded)


def test_the_commands_bound_and_do_not(tmp_path, clean, capsys):
    image, _, content = saved(clean, 15)
    (tmp_path / "a.jpg").write_bytes(content)
    for name, options, consistent in (("bounded.png", [], True), ("free.png", ["--no-consistency"], False)):
        assert main(["restore", str(tmp_path / "a.jpg"), "-o", str(tmp_path / name), *options]) == 0
        expected = np.asarray(restore(image, consistent=consistent))
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), expected)
    (tmp_path / "photos").mkdir()
    Image.fromarray(clean).save(tmp_path / "photos" / "clean.png")
    network, printed = WeightSelector("unet-jpeg", CPU).load("unet-jpeg"), []
    for options, consistent in (([], False), (["--consistent"], True)):
        capsys.readouterr()
        score = ["score", str(tmp_path / "photos"), "--model", "unet-jpeg", "--json", str(tmp_path / "score.json")]
        assert main([*score, *options]) == 0
        printed.append((tmp_path / "score.json").read_text())
        expected = score_photo("clean.png", clean, network, "l", Degradation(jpeg_quality=20),
                               options=replace(NETWORK_ALONE, consistent=consistent))
        assert str(expected.psnr) in printed[-1]
    assert printed[0] != printed[1]
