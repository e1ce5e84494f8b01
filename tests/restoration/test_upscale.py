"""Enlarged photos: bicubic as Pillow's of the whole photo, luma by the network, any size, 8 and 16 bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import facts
from PIL import ExifTags, Image
from small import draw_photo, identity_network

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.unet import LUMA_WEIGHTS
from srcnn.models.weights import load_model
from srcnn.photos.photo_file import PhotoFile, read_photo_file
from srcnn.photos.reading import read_photo
from srcnn.restoration.restore_files import UpscaleFile
from srcnn.restoration.tiled_inference import PixelAccess, RestoreOptions, run_network
from srcnn.restoration.upscale import upscale, upscale_photo_file, upscaled_part, weights_for_scale


@pytest.fixture
def identity():
    return identity_network()


@pytest.fixture
def network():
    """One that changes every pixel by some levels."""
    torch.manual_seed(3)
    model = SRCNN(ModelConfig(filters=(8, 4), residual=True))
    with torch.no_grad():
        model.conv3.bias += 0.06
    return model.eval()


def pillows(pixels, scale):
    """The whole photo enlarged at once, float32 levels."""
    size = pixels.shape[1] * scale, pixels.shape[0] * scale
    bands = [np.asarray(Image.fromarray(band.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
             for band in np.moveaxis(np.atleast_3d(pixels), -1, 0)]
    return np.stack(bands, -1).reshape(size[1], size[0], *pixels.shape[2:])


def reader_of(pixels):
    return PixelAccess(*pixels.shape[:2], pixels.__getitem__, lambda part, tile: None)


@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), scale=st.sampled_from((2, 3, 4)),
       shape=st.sampled_from(((), (3,))))
def test_any_part_is_that_part_of_the_whole_photo_enlarged(data, height, width, scale, shape):
    pixels = np.random.default_rng(height).integers(0, 65536, (height, width, *shape)).astype(np.uint16)
    part = []
    for side in (height * scale, width * scale):
        start = data.draw(st.integers(0, side - 1))
        part.append(slice(start, data.draw(st.integers(start + 1, side))))
    found = upscaled_part(reader_of(pixels), tuple(part), scale)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pillows(pixels, scale)[tuple(part)], rtol=0, atol=0.05)  # of 65535 levels


def test_a_part_far_from_the_corner_is_as_exact_as_one_near_it():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 30_001), dtype=np.uint8)
    part = slice(2, 14), slice(89_500, 90_003)
    np.testing.assert_allclose(upscaled_part(reader_of(pixels), part, 3), pillows(pixels, 3)[part], rtol=0, atol=1e-4)


def test_a_part_reads_little_more_than_it_needs():
    asked = []
    pixels = np.zeros((100, 200), np.uint8)

    def read(part):
        asked.append(part)
        return pixels[part]

    upscaled_part(PixelAccess(100, 200, read, print), (slice(61, 119), slice(300, 400)), 3)
    assert asked == [(slice(18, 42), slice(98, 136))]


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (41, 1), (2, 3), (53, 67)])
@pytest.mark.parametrize("colour", [(), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_network_that_does_nothing_gives_pillows_bicubic(identity, size, colour, dtype, scale):
    most = np.iinfo(dtype).max
    pixels = np.random.default_rng(1).integers(0, most + 1, (*size, *colour)).astype(dtype)
    enlarged = upscale(pixels, identity, scale, 32, exact=True)
    assert enlarged.dtype == dtype
    expected = np.clip(np.rint(pillows(pixels, scale)), 0, most)
    difference = np.abs(enlarged.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # halves, and float32's 24 bits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_luma_is_the_networks_and_the_chroma_is_bicubic(network, dtype):
    most = np.iinfo(dtype).max
    pixels = (draw_photo(4, 31, 45).astype(float) / 255 * (most * 0.6) + most * 0.2).astype(dtype)
    enlarged = upscale(pixels, network, 3, exact=True)
    bicubic = pillows(pixels, 3) / most
    luma = bicubic @ np.array(LUMA_WEIGHTS)
    with torch.inference_mode():
        restored = run_network(torch.from_numpy(luma[None].astype(np.float32)), network)[0].numpy()
    assert np.abs(restored - luma).mean() > 0.01
    assert np.abs(enlarged - most * (bicubic + (restored - luma)[..., None])).max() <= 0.6 + most / 1e5


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_leave_no_seam(network, scale):
    pixels = draw_photo(5, 45, 59)
    whole = upscale(pixels, network, scale, 1024, exact=True)
    tiled = upscale(pixels, network, scale, 29, exact=True)
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 1 and np.count_nonzero(difference) <= 2


def test_a_wide_range_photo_is_the_same_in_8_and_16_bits(network):
    pixels = draw_photo(6, 33, 21)
    wide = upscale(pixels.astype(np.uint16) * 257, network, 2, exact=True)
    assert np.abs(wide / 257 - upscale(pixels, network, 2, exact=True)).max() <= 0.51
    assert np.unique(wide % 257).size > 100  # more than 8 bits' worth of levels


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_images_are_enlarged_as_arrays_and_their_transparency_is_bicubic(network, mode):
    image = Image.fromarray(draw_photo(7, 23, 35)).convert(mode)
    bands = np.asarray(image).copy()
    if mode.endswith("A"):
        bands[..., -1] = draw_photo(8, 23, 35)[..., 0]
        image = Image.fromarray(bands)
    image.info["dpi"] = (300, 300)
    enlarged = upscale(image, network, 3, 30, exact=True)
    assert (enlarged.mode, enlarged.size, enlarged.info["dpi"]) == (mode, (105, 69), (300, 300))
    colours = {"LA": bands[..., 0], "RGBA": bands[..., :3]}.get(mode, bands)
    found = np.asarray(enlarged)
    own = {"LA": found[..., 0], "RGBA": found[..., :3]}.get(mode, found)
    assert np.array_equal(own, upscale(np.ascontiguousarray(colours), network, 3, 30, exact=True))
    if mode.endswith("A"):
        assert np.array_equal(found[..., -1], np.clip(np.rint(pillows(bands[..., -1], 3)), 0, 255))


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_grey_images_of_16_bits_keep_them(network, dtype):
    levels = draw_photo(9, 19, 27)[..., 0].astype(dtype) * 201
    enlarged = upscale(Image.fromarray(levels), network, 2, exact=True)
    assert enlarged.mode == "I;16"
    assert np.array_equal(np.asarray(enlarged), upscale(levels.astype(np.uint16), network, 2, exact=True))


def test_a_file_keeps_its_metadata_and_tells_its_new_size(network, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Zenit"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.ExifImageWidth: 41, ExifTags.Base.ExifImageHeight: 27})
    Image.fromarray(draw_photo(10, 27, 41)).save(tmp_path / "a.png", exif=exif, dpi=(72, 72), icc_profile=b"profile")
    assert UpscaleFile(network, 3)(tmp_path / "a.png", tmp_path / "b.png") == ()
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (81, 123)  # upright
        assert image.getexif()[ExifTags.Base.Make] == "Zenit" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        inner = image.getexif().get_ifd(ExifTags.IFD.Exif)
        assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == (81, 123)
        assert image.info["icc_profile"] == b"profile"
    upright = read_photo(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "b.png"), upscale(upright, network, 3))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_of_16_bits_stay_so(network, channels):
    levels = np.random.default_rng(2).integers(0, 65536, (14, 17, channels)).astype(np.uint16)
    colours = levels[..., : 1 if channels < 3 else 3]
    photo = PhotoFile(levels if channels > 1 else levels[..., 0])
    canvas = upscale_photo_file(photo, network, 3, RestoreOptions(exact=True))
    assert canvas.image.dtype == np.uint16 and canvas.size == (42, 51)
    found = np.atleast_3d(canvas.image)
    expected = upscale(np.ascontiguousarray(colours.squeeze()), network, 3, exact=True)
    assert np.array_equal(found[..., : colours.shape[2]], np.atleast_3d(expected))
    if channels in (2, 4):
        alpha = np.clip(np.rint(pillows(levels[..., -1], 3)), 0, 65535)
        assert np.abs(found[..., -1] - alpha).max() <= 1


def test_a_png_of_16_bits_becomes_one(network, tmp_path):
    levels = draw_photo(11, 15, 22)[..., 1].astype(np.uint16) * 250
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert UpscaleFile(network, 2, options=RestoreOptions(exact=True))(tmp_path / "a.png", tmp_path / "b.png") == ()
    assert np.array_equal(read_photo_file(tmp_path / "b.png").image, upscale(levels, network, 2, exact=True))


def test_tensors_and_floats_are_enlarged_as_arrays(network):
    photos = [draw_photo(seed, 13, 21) for seed in (12, 13)]
    expected = [upscale(photo, network, 2, exact=True) for photo in photos]
    batch = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    found = upscale(batch, network, 2, exact=True)
    assert found.shape == (2, 3, 26, 42) and np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    grey = upscale(batch[0, :1], network, 2, exact=True)
    assert np.array_equal(grey[0].numpy(), upscale(photos[0][..., 0], network, 2, exact=True))
    floats = upscale(np.float32(photos[0] / 255), network, 2, exact=True)
    assert floats.dtype == np.float32 and np.abs(255 * floats - expected[0]).max() < 0.51
    with pytest.raises(ValueError, match=facts(torch.float32, (2, 4, 4))):
        upscale(torch.zeros(2, 4, 4), network, 2)


def test_what_would_be_too_large_is_refused_before_the_work(network, monkeypatch):
    monkeypatch.setattr("srcnn.restoration.upscale.MAX_MEGAPIXELS", 0.1)
    monkeypatch.setattr("srcnn.restoration.upscale.restore_tiles", lambda *arguments: pytest.fail("begun"))
    with pytest.raises(ValueError, match=facts("1203x84", "scale")):
        upscale_photo_file(PhotoFile(Image.new("L", (401, 28))), network, 3)


def test_what_cannot_be_enlarged_is_named(network):
    with pytest.raises(ValueError, match=facts("scale", 5, 2, 3, 4)):
        upscale(np.zeros((4, 4), np.uint8), network, 5)
    with pytest.raises(ValueError, match=facts("scale", 1, 2, 3, 4)):
        weights_for_scale(1)
    with pytest.raises(ValueError, match=facts("float64", (4, 4))):
        upscale(np.zeros((4, 4)), network, 2)
    with pytest.raises(ValueError, match=facts("uint8", (4, 4, 4))):
        upscale(np.zeros((4, 4, 4), np.uint8), network, 2)
    with pytest.raises(ValueError, match=facts(5)):
        upscale(np.zeros((4, 4), np.uint8), SRCNN(ModelConfig(filters=(1, 1), channels=5)), 2)
    assert weights_for_scale(3) == "srcnn-915-x3"


def test_weights_are_found_by_name_and_photos_by_path(tmp_path):
    Image.fromarray(draw_photo(1, 15, 21)).save(tmp_path / "small.png")
    expected = upscale(draw_photo(1, 15, 21), load_model(weights_for_scale(3)), 3)
    for model in ("srcnn-915-x3", None):
        assert np.array_equal(upscale(draw_photo(1, 15, 21), model, 3), expected)
        enlarged = upscale(str(tmp_path / "small.png"), model, 3)
        assert enlarged.size == (63, 45) and np.array_equal(np.asarray(enlarged), expected)
    with pytest.raises(ValueError, match="srcnn-915-x3"):
        upscale(tmp_path / "small.png", "srcnn-915", 3)
    with pytest.raises(FileNotFoundError, match="nothing"):
        upscale(tmp_path / "small.png", "nothing", 3)
