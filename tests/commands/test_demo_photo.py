"""What `srcnn demo` computes: restored, enlarged, blended, looked at in parts, written."""

import shutil

import numpy as np
import pytest
import torch
from messages import facts
from PIL import Image
from small import draw_photo
from uploads import BAD, MAKER, MODEL, write_jpeg

from srcnn.commands.demo_photo import MAX_SIDE, PLACE_PIXELS, DemoPhoto, networks
from srcnn.models.device import restoring_device
from srcnn.models.pretrained import FAMILY, WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL
from srcnn.models.weights import load_model
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.reading import PhotoRefused
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile, UpscaleFile
from srcnn.restoration.tiled_inference import RestoreOptions
from srcnn.restoration.upscale import network_for_scale
from srcnn.runtime.errors import UserError


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def damaged(tmp_path):
    return DemoPhoto(write_jpeg(tmp_path / "photo.jpg", quality=10), "old photo.jpg")


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_file_written_is_that_of_srcnn_restore(damaged, tmp_path, strength):
    result = damaged.restore()
    assert (result["width"], result["height"], result["unchanged"]) == (331, 243, False)
    assert damaged.write(tmp_path / "page.png", strength) == ()
    restorer = JpegRestorer(WeightSelector(DEFAULT_MODEL, restoring_device()), RestoreOptions(strength=strength))
    RestoreFile(restorer)(damaged.path, tmp_path / "command.png")
    found, expected = (pixels_of(tmp_path / name).astype(int) for name in ("page.png", "command.png"))
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.99) <= (strength < 1)  # the page blends rounded pixels,
    assert difference.max() <= 8 * (strength < 1)  # and clipped ones
    assert (found != pixels_of(damaged.path)).any()

    damaged.write(tmp_path / "page.jpg")
    RestoreFile(JpegRestorer(WeightSelector(DEFAULT_MODEL, restoring_device())))(damaged.path, tmp_path / "command.jpg")
    assert (tmp_path / "page.jpg").read_bytes() == (tmp_path / "command.jpg").read_bytes()
    with Image.open(tmp_path / "page.jpg") as image:
        assert (image.getexif()[MAKER], image.getexif()[MODEL]) == ("Maker", "Model 7")


def test_the_enlarged_file_is_that_of_srcnn_upscale_and_is_compared_with_bicubic(damaged, tmp_path):
    done = []
    result = damaged.restore(scale=2, on_progress=done.append)
    assert (result["width"], result["height"]) == (662, 486)
    assert done == sorted(done) and 0 < done[0] <= 0.5 < done[-2] and done[-1] == 1
    damaged.write(tmp_path / "page.png")
    restorer = JpegRestorer(WeightSelector(DEFAULT_MODEL, restoring_device()))
    UpscaleFile(network_for_scale(None, 2), 2, restorer)(damaged.path, tmp_path / "command.png")
    assert np.array_equal(pixels_of(tmp_path / "page.png"), pixels_of(tmp_path / "command.png"))

    with Image.open(damaged.path) as image:
        bicubic = np.asarray(image.resize((662, 486), Image.Resampling.BICUBIC))
    part = slice(101, 235), slice(300, 662)
    shown = np.asarray(damaged.part("before", part)).astype(int)
    assert np.abs(shown - bicubic[part]).max() <= 2  # Pillow rounds 8 bits between rows and columns
    damaged.write(tmp_path / "page.png", strength=0)
    assert np.abs(pixels_of(tmp_path / "page.png").astype(int) - bicubic).max() <= 2


def test_sixteen_bits_and_transparency_are_kept_and_blended(tmp_path):
    deep = np.zeros((45, 61, 4), np.uint16)
    deep[..., :3], deep[..., 3] = 257 * draw_photo(3, 45, 61).astype(np.uint16) + 31, 9000
    write_photo_file(tmp_path / "deep.png", PhotoFile(deep))
    photo = DemoPhoto(tmp_path / "deep.png", "deep.png")
    photo.restore(network="srcnn-915-q10")
    written = []
    for strength in (0, 0.5, 1):
        photo.write(tmp_path / "out.png", strength)
        written.append(read_photo_file(tmp_path / "out.png").image.astype(int))
    assert np.array_equal(written[0], deep) and (written[2][..., 3] == 9000).all()
    assert (written[2] != written[0]).any()
    assert np.abs(2 * written[1] - written[0] - written[2]).max() <= 1


def test_a_photo_without_damage_is_copied_as_it_is_and_its_degraded_copy_is_measured(tmp_path):
    original = tmp_path / "photo.png"
    Image.fromarray(draw_photo(6, 149, 203)).save(original)
    photo = DemoPhoto(original, "photo.png")
    assert "no JPEG damage" in photo.about()["found"]
    result = photo.restore()
    assert result["unchanged"] and result["gain"] is None
    photo.write(tmp_path / "copy.png", strength=0.3)
    assert (tmp_path / "copy.png").read_bytes() == original.read_bytes()
    photo.write(tmp_path / "copy.webp")
    assert np.array_equal(pixels_of(tmp_path / "copy.webp"), draw_photo(6, 149, 203))

    result = photo.restore(degrade_quality=10)
    assert not result["unchanged"] and result["gain"][1] > result["gain"][0] + 0.2
    buffered = tmp_path / "expected.jpg"
    Image.fromarray(draw_photo(6, 149, 203)).save(buffered, quality=10, subsampling="4:2:0")
    whole = slice(0, 149), slice(0, 203)
    assert np.array_equal(np.asarray(photo.part("before", whole)), pixels_of(buffered))
    assert photo.result_name("") == "photo_restored.jpg"


def test_the_place_shown_first_is_where_it_changed_most(damaged):
    damaged.restore()
    before, after = (np.asarray(damaged.part(which, (slice(0, 243), slice(0, 331))).convert("L")).astype(int)
                     for which in ("before", "after"))
    change = np.abs(after - before)
    sums = {(row, column): change[row : row + PLACE_PIXELS, column : column + PLACE_PIXELS].sum()
            for row in range(0, 243, PLACE_PIXELS) for column in range(0, 331, PLACE_PIXELS)}
    row, column = max(sums, key=sums.get)
    middle = (column + min(331, column + PLACE_PIXELS)) // 2, (row + min(243, row + PLACE_PIXELS)) // 2
    assert damaged.changed_most() == middle


@pytest.mark.parametrize("part", [(slice(0, 244), slice(0, 5)), (slice(9, 9), slice(0, 5)),
                                  (slice(300, 310), slice(0, 5)), (slice(0, MAX_SIDE + 1), slice(0, 1))])
def test_a_part_outside_the_photo_is_refused(damaged, part):
    with pytest.raises(UserError, match="part"):
        damaged.part("before", part)


def test_a_whole_photo_is_reduced_for_the_browser(damaged):
    damaged.restore(scale=2)
    assert damaged.whole("after", 100).size == (100, 73) and damaged.whole("before", 9999).size == (331, 243)


def test_what_is_shown_has_eight_bits_and_lies_over_white():
    deep = np.zeros((3, 5, 4), np.uint16)
    deep[..., :3], deep[..., 3] = 257 * 100, 65535
    deep[1, 2, 3] = 0
    shown = PhotoFile(deep).visible()
    assert shown.dtype == np.uint8 and shown.shape == (3, 5, 3)
    assert (shown[1, 2] == 255).all() and (shown[0] == 100).all()


def test_the_networks_offered_can_be_loaded_and_keep_the_size():
    best, family, *names = networks()
    assert (best, family) == (DEFAULT_MODEL, FAMILY)
    assert "srcnn-915-q20" in names and not any("-x" in name for name in names)
    for name in (best, *names):
        model = load_model(name)
        pixels = torch.zeros(1, model.config.channels, 9, 13)
        assert model(pixels).shape == pixels.shape


def test_the_result_is_named_after_the_upload_and_its_content(tmp_path):
    photo = DemoPhoto(write_jpeg(tmp_path / "photo.png", quality=30), "photo.png")  # a JPEG, whatever it says
    photo.restore()
    assert photo.result_name("") == "photo_restored.jpg" and photo.result_name("webp") == "photo_restored.webp"


def test_only_shipped_networks_known_scales_and_formats_are_taken(damaged, tmp_path, monkeypatch):
    shutil.copy(damaged.path, tmp_path / "weights.pth")
    for asked in ({"network": str(tmp_path / "weights.pth")}, {"network": "srcnn-915-x2"}, {"scale": 5}, {"scale": 0},
                  {"scale": -1}, {"degrade_quality": 0}):
        with pytest.raises(UserError):
            damaged.restore(**asked)
    with pytest.raises(UserError, match=facts("old photo.jpg", "not restored")):
        damaged.write(tmp_path / "out.png")
    damaged.restore()
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="strength"):
            damaged.write(tmp_path / "out.png", strength)
    with pytest.raises(UserError, match=facts("exe", "png")):
        damaged.result_name("exe")
    monkeypatch.setattr("srcnn.commands.demo_photo.MAX_MEGAPIXELS", 0.5)
    with pytest.raises(UserError, match=facts("993", "729", "smaller")):
        damaged.restore(scale=3)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photo_is_refused_by_name(tmp_path, name):
    make, reason = BAD[name]
    with pytest.raises(PhotoRefused, match=facts(name, reason)):
        DemoPhoto(make(tmp_path / name), name)
