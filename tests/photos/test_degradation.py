from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import photo_pixels
from hypothesis import given
from hypothesis import strategies as st
from messages import facts
from PIL import Image

from srcnn.photos.degradation import Degradation, bicubic, bicubic_levels, crop_to_multiple, degrade, jpeg, to_uint8
from srcnn.photos.metrics import psnr


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [1, 20, 75, 100])
def test_jpeg_is_pillows_at_any_size(quality: int, subsampling: str) -> None:
    for width, height in ((1, 1), (7, 9), (101, 67)):
        pixels = photo_pixels(1, width, height)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        np.testing.assert_array_equal(jpeg(pixels, quality, subsampling), np.asarray(Image.open(buffer)))


def test_the_removed_key_jpeg_optimize_of_older_manifests_is_left_out() -> None:
    older = {"jpeg_quality": [5, 95], "jpeg_subsampling": "4:2:2", "jpeg_optimize": True, "scale": 2}
    assert Degradation.from_config(older) == Degradation([5, 95], "4:2:2", 2)


@pytest.mark.parametrize("quality", [20, 94, 95, 100])
def test_pure_noise_can_be_encoded(quality: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (301, 303, 3), dtype=np.uint8)
    assert jpeg(noise, quality, "4:4:4").shape == noise.shape


def test_greyscale_stays_greyscale() -> None:
    pixels = photo_pixels(3, 61, 45)[..., 0].copy()
    assert jpeg(pixels, 20).shape == (45, 61)
    assert bicubic(crop_to_multiple(pixels, 3), 3).shape == (45, 60)


def test_more_quality_is_more_psnr() -> None:
    pixels = photo_pixels(4)
    scores = [psnr(pixels, jpeg(pixels, quality)) for quality in (5, 10, 20, 40, 80)]
    assert scores == sorted(scores) and scores[-1] - scores[0] > 3


def test_subsampling_costs_colour() -> None:
    pixels = photo_pixels(5)
    pixels[..., 0] = pixels[::-1, :, 2]
    assert psnr(pixels, jpeg(pixels, 90, "4:4:4")) > psnr(pixels, jpeg(pixels, 90, "4:2:0")) + 1


def test_bicubic_keeps_flat_areas_and_slopes() -> None:
    flat = np.full((33, 45, 3), 77, np.uint8)
    np.testing.assert_array_equal(bicubic(flat, 3), flat)
    slope = np.tile(np.arange(20, 220, dtype=np.uint8), (9, 1))
    away_from_edges = bicubic(slope[:, :198], 3)[:, 12:-12].astype(int) - slope[:, 12:186]
    assert np.abs(away_from_edges).max() <= 1


def test_bicubic_takes_colours_one_by_one_and_clips() -> None:
    pixels = (np.random.default_rng(0).random((30, 42, 3)) < 0.5).astype(np.uint8) * 255
    spoiled = bicubic(pixels, 2)
    for band in range(3):
        np.testing.assert_array_equal(spoiled[..., band], bicubic(pixels[..., band].copy(), 2))
    assert spoiled.max() == 255 and spoiled.min() == 0


def matlabs_bicubic(length: int, out_length: int) -> np.ndarray:
    """(out_length, length): one side of imresize, after Keys 1981 with a = -0.5, widened where it shrinks."""
    step = length / out_length
    distance = np.abs((np.arange(out_length)[:, None] + 0.5) * step - (np.arange(length) + 0.5)) / max(step, 1)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_keys_kernel_with_antialiasing_on_unrounded_numbers(scale: int) -> None:
    pixels = crop_to_multiple(photo_pixels(7, 61, 49), scale)
    height, width = pixels.shape[:2]
    rows = matlabs_bicubic(height // scale, height) @ matlabs_bicubic(height, height // scale)
    columns = matlabs_bicubic(width // scale, width) @ matlabs_bicubic(width, width // scale)
    expected = np.einsum("yr,rcb,xc->yxb", rows, pixels.astype(float), columns)
    levels = bicubic_levels(pixels, scale)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(bicubic(pixels, scale), to_uint8(levels))


def test_levels_are_rounded_and_clipped() -> None:
    levels = np.array([[-3.2, 0.4, 0.6], [254.4, 254.6, 300.0]], np.float32)
    np.testing.assert_array_equal(to_uint8(levels), np.array([[0, 0, 1], [254, 255, 255]], np.uint8))


def test_sides_that_are_no_multiple_of_the_scale_are_an_error() -> None:
    with pytest.raises(ValueError, match=facts("31x30", 3)):
        bicubic(np.zeros((30, 31), np.uint8), 3)


@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.integers(1, 9))
def test_cropping_takes_away_less_than_the_multiple(height: int, width: int, multiple: int) -> None:
    cropped = crop_to_multiple(np.zeros((height, width, 3), np.uint8), multiple)
    assert all(side % multiple == 0 for side in cropped.shape[:2])
    assert 0 <= height - cropped.shape[0] < multiple and 0 <= width - cropped.shape[1] < multiple


def test_both_degradations_are_the_scale_then_the_jpeg() -> None:
    pixels = photo_pixels(6, 99, 66)
    both = degrade(pixels, Degradation(jpeg_quality=35, scale=3), 35)
    np.testing.assert_array_equal(both, jpeg(bicubic(pixels, 3), 35))
    only_scale = Degradation(jpeg_quality=[], scale=3)
    np.testing.assert_array_equal(
        degrade(pixels, only_scale, only_scale.quality("0" * 64)), bicubic(pixels, 3)
    )


def hashes(num: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(num)]


def test_a_range_of_qualities_is_drawn_evenly_from_the_content() -> None:
    degradation = Degradation(jpeg_quality=[10, 13])
    drawn = [degradation.quality(sha256) for sha256 in hashes(2000)]
    assert drawn == [degradation.quality(sha256) for sha256 in hashes(2000)]
    counts = np.bincount([quality for quality in drawn if quality is not None])
    assert counts[:10].sum() == 0 and len(counts) == 14
    assert np.abs(counts[10:] - 500).max() < 100  # 5 standard deviations


def test_one_quality_is_the_quality_of_every_photo() -> None:
    assert {Degradation(jpeg_quality=20).quality(sha256) for sha256 in hashes(50)} == {20}
    assert {Degradation(jpeg_quality=[], scale=2).quality(sha256) for sha256 in hashes(50)} == {None}


@pytest.mark.parametrize(
    "settings",
    [{"jpeg_quality": value} for value in (0, 101, [20], [30, 20], [1, 2, 3], [])] + [{"scale": 0}],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=facts(*settings, *settings.values())):
        Degradation(**settings)  # type: ignore[arg-type]


def test_live1_in_y_at_quality_20_has_the_published_psnr(shared_data: Path) -> None:
    photos = [np.asarray(Image.open(path)) for path in sorted((shared_data / "val/live1_y").glob("*.png"))]
    assert len(photos) == 29
    assert round(float(np.mean([psnr(photo, jpeg(photo, 20)) for photo in photos])), 2) == 30.07
