"""Whether a photo was once a JPEG, by its pixels."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, JpegPresets
from small import draw_photo, random_photo

from benchmarks.damages import draw_screen
from srcnn.photos import jpeg_history
from srcnn.photos.jpeg_history import estimate_history, original_quality
from srcnn.photos.jpeg_quality import ANNEX_K_LUMA, jpeg_save, jpeg_save_of, quality_tables

HEIGHT, WIDTH = 213, 307


def saved(pixels, file_format="JPEG", **options):
    """The pixels of a photo after it was saved and read again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module")
def photo():
    """A drawn photo with the noise of a camera, without which too few coefficients differ from zero."""
    noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 3))
    return (40 + 0.6 * draw_photo(1, HEIGHT, WIDTH) + noise).round().astype(np.uint8)


@pytest.mark.parametrize("quality", [10, 60, 90])
def test_steps_and_quality_of_a_former_jpeg_are_exact(photo, quality):
    history = estimate_history(saved(photo, quality=quality))
    assert (history.quality, history.offset, history.is_last) == (quality, (0, 0), True)
    table = quality_tables(ANNEX_K_LUMA)[quality - 1].reshape(8, 8)
    known = history.steps > 0
    assert known.sum() >= 4 and np.array_equal(history.steps[known], table[known])


def test_grid_is_found_after_cropping_and_flipping(photo):
    former = saved(photo, quality=40, subsampling="4:4:4")
    cropped = estimate_history(former[2:, 3:])
    assert (cropped.quality, cropped.offset) == (40, (6, 5))
    flipped = estimate_history(former[:, ::-1])  # 307 columns: three beyond the last whole block
    assert (flipped.quality, flipped.offset) == (40, (0, 3))


def test_a_greyscale_photo_is_recognised(photo):
    assert estimate_history(saved(photo[..., 1], quality=30)).quality == 30


def test_tables_that_are_not_those_of_libjpeg_are_found(photo):
    preset = "low"
    former = saved(photo, quality=preset)
    history = estimate_history(former)
    known = history.steps > 0
    table = np.reshape(JpegPresets.presets[preset]["quantization"][0], (8, 8))
    assert known.sum() >= 4 and np.array_equal(history.steps[known], table[known])
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=preset)
    quality = jpeg_save_of(Image.open(file)).quality
    assert estimate_history(former, quality) is None, "the file itself is no earlier save"


@pytest.mark.parametrize("last, file_quality", [(75, 75), (85, None), (98, 98)])
def test_the_coarser_save_is_found_under_a_later_one_of_the_same_grid(photo, last, file_quality):
    history = estimate_history(saved(saved(photo, quality=30), quality=last), file_quality)
    assert (history.quality, history.offset) == (30, (0, 0))
    assert not history.is_last or last == 98


@pytest.mark.parametrize("first, last", [(20, 75), (20, 90), (10, 30), (10, 50)])
def test_the_coarser_save_is_found_under_a_later_one_of_another_grid(photo, first, last):
    again = saved(saved(photo, quality=first)[3:, 3:], quality=last)
    history = estimate_history(again, last)
    assert abs(history.quality - first) <= 1 and history.offset == (5, 5) and not history.is_last


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_a_jpeg_saved_once_has_no_earlier_save(photo, quality):
    assert estimate_history(saved(photo, quality=quality), quality) is None


def nothing_to_find(photo):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    former = Image.fromarray(saved(photo, quality=30))
    smaller = former.resize((WIDTH * 3 // 4, HEIGHT * 3 // 4), Image.Resampling.BICUBIC)
    blocks = np.random.default_rng(0).integers(30, 220, (40, 50), np.uint8)
    return {
        "clean": photo,
        "drawing": draw_photo(2, HEIGHT, WIDTH),
        "screenshot": np.asarray(draw_screen(27)),  # everything on a grid of 8 pixels
        "WebP": saved(photo, "WEBP", quality=40),
        "scaled": np.asarray(smaller),
        "gradient": (120 + 60 * np.sin(columns / 90) + 50 * np.cos(rows / 70)).round().astype(np.uint8),
        "few levels": photo // 16 * 16 + 8,
        "pixels enlarged 8 times": np.kron(blocks, np.ones((8, 8), np.uint8)),
        "pattern repeated every 8 pixels": np.tile(random_photo(8, 8), (40, 50)),
        "noise": random_photo(HEIGHT, WIDTH),
        "flat": np.full((HEIGHT, WIDTH), 90, np.uint8),
        "tiny": photo[:20, :20],
        "a pixel": photo[:1, :1],
        "a column": photo[:, :1],
    }


def test_nothing_is_found_where_there_was_no_jpeg(photo):
    found = {name: estimate_history(pixels) for name, pixels in nothing_to_find(photo).items()}
    assert found == dict.fromkeys(found)


def originals(photo):
    """Name: (pixels, quality of the file, quality of the coarsest JPEG)."""
    poor, turned = saved(photo, quality=40), saved(photo, quality=40).swapaxes(0, 1)
    return {
        "clean": (photo, None, None),
        "a good JPEG": (saved(photo, quality=90), 90, 90),
        "a fair JPEG": (saved(photo, quality=75), 75, 75),
        "a poor JPEG": (poor, 40, 40),
        "a poor JPEG as PNG": (poor, None, 40),
        "grey": (saved(photo[..., 1], quality=30), None, 30),
        "turned": (turned, None, pytest.approx(40, abs=2)),
        "cropped": (poor[3:, 5:], None, 40),
        "saved again": (saved(poor, quality=92), 92, 40),
        "cropped and saved again": (saved(poor[3:, 5:], quality=95), 95, 40),
    }


def test_the_quality_of_an_original_is_that_of_its_coarsest_save(photo):
    cases = originals(photo)
    for is_thorough in (False, True):
        found = {name: original_quality(pixels, quality and jpeg_save(quality), is_thorough)
                 for name, (pixels, quality, _) in cases.items()}
        assert found == {name: expected for name, (*_, expected) in cases.items()}


def test_photos_without_a_poor_jpeg_are_not_searched(photo, monkeypatch):
    searched = []
    monkeypatch.setattr(jpeg_history, "worst_save", lambda pixels, file: searched.append(pixels.shape) or file)
    for pixels in (photo, *nothing_to_find(photo).values(), *(saved(photo, quality=each) for each in (75, 85, 95))):
        original_quality(pixels, None, thorough=False)
    assert not searched


def test_other_shapes_and_types_are_refused():
    for pixels in (np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9), np.uint16), np.zeros(9, np.uint8)):
        with pytest.raises(ValueError):
            estimate_history(pixels)


def test_torch_is_not_imported():
    code = "import sys, srcnn.photos.jpeg_history; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_real_photo(shared_data):
    clean = np.asarray(Image.open(shared_data / "val" / "city20" / "008H.png"))
    assert estimate_history(clean) is None
    history = estimate_history(saved(saved(clean, quality=60), quality=85), 85)
    assert (history.quality, history.offset) == (60, (0, 0))
