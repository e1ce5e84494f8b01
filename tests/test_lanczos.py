"""Pillow is the oracle: every byte of its Lanczos."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import photo_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import lanczos

SIDES = st.integers(1, 300)


def pillows(image: Image.Image, size: tuple[int, int], extent: tuple[float, float] | None = None) -> np.ndarray:
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, (0, 0, *(extent or image.size))))



@given(width=SIDES, height=SIDES, new_width=SIDES, new_height=SIDES, seed=st.integers(0, 99), grey=st.booleans())
def test_any_size_becomes_any_other_as_pillow_does_it(
    width: int, height: int, new_width: int, new_height: int, seed: int, grey: bool
) -> None:
    shape = (height, width) if grey else (height, width, 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    found = lanczos.resize(image, (new_width, new_height))
    np.testing.assert_array_equal(found, pillows(image, (new_width, new_height)))
    assert found.dtype == np.uint8


@pytest.mark.parametrize("size", [(1024, 1024), (501, 333), (97, 53), (1201, 900), (1200, 450), (300, 901)])
def test_a_photo_is_resized_as_pillow_does_it(size: tuple[int, int]) -> None:
    image = Image.fromarray(photo_pixels(1, 1200, 901))
    np.testing.assert_array_equal(lanczos.resize(image, size), pillows(image, size))


def test_a_part_of_a_pixel_may_be_left_out_at_the_right_and_at_the_bottom() -> None:
    image = Image.fromarray(photo_pixels(2, 401, 303))
    for extent in ((400.125, 302.875), (400.3, 302.7), (401, 302.5)):
        np.testing.assert_array_equal(lanczos.resize(image, (200, 150), extent), pillows(image, (200, 150), extent))


@pytest.mark.parametrize("factor", [2, 4])
def test_stripes_whose_sums_are_all_halves(factor: int) -> None:
    x, y = np.meshgrid(np.arange(400), np.arange(304))
    for stripes in (x % 2, y % 2, (x + y) % 2, x // 2 % 2):
        image = Image.fromarray((stripes * 255).astype(np.uint8))
        size = (400 // factor, 304 // factor)
        np.testing.assert_array_equal(lanczos.resize(image, size), pillows(image, size))


def test_sums_near_a_half_are_done_again_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sums as wrong as the bound allows, the result stays what it is."""
    image = Image.fromarray(photo_pixels(3, 503, 401))
    rng, product = np.random.default_rng(0), np.matmul

    def wrong(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        product(left, right, out=out)
        error = lanczos._axis(503, 503.0, 205).error
        out += rng.choice(np.array([-0.9, 0.9], np.float32) * np.float32(error), out.shape)

    monkeypatch.setattr(np, "matmul", wrong)
    np.testing.assert_array_equal(lanczos.resize(image, (205, 163)), pillows(image, (205, 163)))


def test_the_same_size_is_the_same_picture() -> None:
    pixels = photo_pixels(4, 67, 45)
    np.testing.assert_array_equal(lanczos.resize(Image.fromarray(pixels), (67, 45)), pixels)
