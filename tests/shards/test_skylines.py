from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.skylines import draw_skyline, write_skylines
from srcnn.photos.degradation import jpeg
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import luma_l

SMALL = (321, 257)


def test_the_same_seed_draws_the_same_photo_and_another_seed_another() -> None:
    first = draw_skyline(3, SMALL)
    assert first.shape == (257, 321, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw_skyline(3, SMALL))
    assert psnr(first, draw_skyline(4, SMALL)) < 25


@pytest.mark.parametrize("seed", range(6))
def test_a_skyline_loses_to_jpeg_about_what_a_photo_loses(seed: int) -> None:
    pixels = draw_skyline(seed, (640, 513))
    assert luma_l(pixels).std() > 20
    assert 24 < psnr(luma_l(pixels), luma_l(jpeg(pixels, 20))) < 36


def test_photos_that_exist_are_left_alone(tmp_path: Path) -> None:
    first = write_skylines(tmp_path / "sky", 2, seed=1, size=SMALL)
    assert [path.name for path in first] == ["skyline-000.png", "skyline-001.png"]
    times = [path.stat().st_mtime_ns for path in first]
    both = write_skylines(tmp_path / "sky", 3, seed=1, size=SMALL)
    assert [path.stat().st_mtime_ns for path in both[:2]] == times
    assert sorted(path.name for path in (tmp_path / "sky").iterdir()) == [path.name for path in both]
    np.testing.assert_array_equal(np.asarray(Image.open(both[2])), draw_skyline(100_002, SMALL))
    assert write_skylines(tmp_path / "sky", 3, seed=1, size=SMALL) == both
