"""What `srcnn demo` computes: degraded, restored, measured; details and previews."""

import numpy as np
import pytest
import torch
from messages import facts
from PIL import Image
from small import draw_photo
from uploads import BAD, MODEL, write_jpeg

from srcnn.commands.demo import (
    DETAIL_PIXELS,
    changed_most,
    detail_at,
    mean_ssim,
    process,
    shipped_weights,
    visible,
)
from srcnn.models.weights import load_model
from srcnn.photos.photo_file import PhotoFile
from srcnn.photos.reading import PhotoRefused
from srcnn.restoration.figures import DETAIL_ZOOM, magnify


@pytest.mark.parametrize("middle", [(0, 0), (242, 330), (120, 5), (40, 290)])
def test_a_detail_lies_in_the_photo_and_holds_the_pixel(middle):
    rows, columns = detail_at(middle, (243, 331, 3))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (DETAIL_PIXELS, DETAIL_PIXELS)
    assert rows.start <= middle[0] < rows.stop <= 243 and columns.start <= middle[1] < columns.stop <= 331
    assert min(rows.start, columns.start) >= 0


def test_a_photo_smaller_than_a_detail_is_its_own_detail():
    small = draw_photo(1, 31, 17)
    assert detail_at(changed_most(small, small), small.shape) == (slice(0, 31), slice(0, 17))


def test_the_detail_shown_first_is_where_it_changed_most():
    before = draw_photo(2, 3 * DETAIL_PIXELS + 7, 4 * DETAIL_PIXELS + 5)
    after = before.copy()
    place = np.s_[DETAIL_PIXELS + 9 : DETAIL_PIXELS + 30, 2 * DETAIL_PIXELS + 3 : 2 * DETAIL_PIXELS + 20]
    after[place] ^= 64
    rows, columns = detail_at(changed_most(before, after), before.shape)
    assert (rows.start, columns.start) == (DETAIL_PIXELS, 2 * DETAIL_PIXELS)


def test_a_detail_is_enlarged_by_whole_pixels():
    pixels = draw_photo(3, 5, 7)
    squares = np.stack([np.kron(pixels[..., c], np.ones((DETAIL_ZOOM, DETAIL_ZOOM), np.uint8)) for c in range(3)], -1)
    assert np.array_equal(magnify(pixels, DETAIL_ZOOM), squares)


@pytest.mark.parametrize("height", [11, 521, 1045])
def test_ssim_by_strips_is_that_of_the_whole_photo(height):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    clean = draw_photo(4, height, 61)[..., 0]
    noise = np.random.default_rng(1).normal(0, 9, clean.shape)
    other = np.clip(clean + noise, 0, 255).astype(np.uint8)
    _, similarity = structural_similarity(clean, other, win_size=11, gaussian_weights=True, sigma=1.5,
                                          use_sample_covariance=False, data_range=255, full=True)
    assert mean_ssim(clean, other) == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-4)


def test_what_is_shown_has_eight_bits_and_lies_over_white():
    deep = np.zeros((3, 5, 4), np.uint16)
    deep[..., :3], deep[..., 3] = 257 * 100, 65535
    deep[1, 2, 3] = 0
    shown = visible(PhotoFile(deep))
    assert shown.dtype == np.uint8 and shown.shape == (3, 5, 3)
    assert (shown[1, 2] == 255).all() and (shown[0] == 100).all()


def test_the_networks_offered_can_be_loaded_and_keep_the_size():
    names = shipped_weights()
    assert "srcnn-915-q20" in names and not any("-x" in name for name in names)
    for name in names:
        model = load_model(name)
        pixels = torch.zeros(1, model.config.channels, 9, 13)
        assert model(pixels).shape == pixels.shape


def test_the_result_is_named_after_the_upload_and_its_content(tmp_path):
    upload = write_jpeg(tmp_path / "photo.png")  # a JPEG, whatever it says
    (tmp_path / "out").mkdir()
    result = process(upload, tmp_path / "out", strength=0.5)
    assert result.file.name == "photo-restored.jpg"
    with Image.open(result.file) as image:
        assert image.format == "JPEG" and image.getexif()[MODEL] == "Model 7"


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photo_is_refused_by_name(tmp_path, name):
    make, reason = BAD[name]
    with pytest.raises(PhotoRefused, match=facts(name, reason)):
        process(make(tmp_path / name), tmp_path)
