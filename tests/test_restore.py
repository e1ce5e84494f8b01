"""Restored photos: as in one piece at any tile size, colours and metadata kept, nothing overwritten."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from srcnn.metrics import psnr
from srcnn.model import SRCNN, ModelConfig, initialize, load_model
from srcnn.photo import Photo
from srcnn.restore import output_paths, restore, restore_file, restore_pixels


@pytest.fixture(scope="module")
def model():
    network = SRCNN(ModelConfig(kernels=(9, 5, 5), filters=(8, 4), residual=True), centred=True)
    initialize(network, "pytorch", 0)
    torch.nn.init.normal_(network.conv3.weight, std=0.05)  # changes that show
    return network.folded().eval()


def random_photo(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def whole(pixels, model):
    """The network on the whole greyscale photo at once, rounded."""
    with torch.no_grad():
        restored = model(torch.from_numpy(pixels.astype(np.float32) / 255)[None, None])[0, 0].numpy()
    return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(61, 83), (200, 77), (17, 16), (64, 96)])
@pytest.mark.parametrize("tile_pixels", [16, 33, 64, 1000])
def test_tiled_restore_equals_whole_photo(model, size, tile_pixels):
    pixels = random_photo(*size)
    tiled, at_once = restore_pixels(pixels, model, tile_pixels), whole(pixels, model)
    difference = np.abs(tiled.astype(int) - at_once)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # rounding at .5 only
    assert (tiled != pixels).mean() > 0.5


def test_a_large_photo_has_fewer_than_one_pixel_in_100000_off(model):
    pixels = random_photo(700, 1100)
    difference = np.abs(restore_pixels(pixels, model, 128).astype(int) - whole(pixels, model))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (4, 300), (9, 9)])
def test_the_smallest_photos_keep_their_size(model, size):
    assert restore_pixels(random_photo(*size), model).shape == size
    assert restore_pixels(random_photo(*size, 3), model).shape == (*size, 3)


def test_colour_restores_the_luma_and_keeps_the_chroma(model):
    # levels away from 0 and 255, so that clipping does not mix the channels
    pixels = 100 + random_photo(45, 51, 3) // 8
    restored = restore_pixels(pixels, model, 32).astype(float)
    images = [Image.fromarray(photo.astype(np.uint8)) for photo in (pixels, restored)]
    before, after = (np.asarray(image.convert("YCbCr"), float) for image in images)
    assert np.abs(before[..., 1:] - after[..., 1:]).max() <= 1.5
    luma = (pixels @ np.array([0.299, 0.587, 0.114])).astype(np.float32) / 255
    with torch.no_grad():
        expected = model(torch.from_numpy(luma)[None, None])[0, 0].numpy() * 255
    assert np.abs(after[..., 0] - expected).max() <= 1.5


def test_an_rgb_network_restores_all_channels():
    network = SRCNN(ModelConfig(channels=3, filters=(4, 4), residual=True))
    initialize(network, "pytorch", 0)
    pixels = random_photo(40, 37, 3)  # 37: the last tile is narrower than the halo
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None])[0] * 255
    expected = expected.permute(1, 2, 0).numpy().round().clip(0, 255)
    assert np.abs(restore_pixels(pixels, network, 16) - expected).max() <= 1
    with pytest.raises(ValueError, match="restores RGB"):
        restore_pixels(pixels[..., 0], network)


def test_pil_numpy_and_photo_come_back_as_their_kind(model):
    pixels = random_photo(30, 41, 3)
    restored = restore(pixels, model)
    assert np.array_equal(np.asarray(restore(Image.fromarray(pixels), model)), restored)
    assert np.array_equal(restore(Photo(pixels), model).pixels, restored)
    alpha = random_photo(30, 41, seed=1)
    image = Image.fromarray(np.dstack([pixels, alpha]), "RGBA")
    assert np.array_equal(np.asarray(restore(image, model).getchannel("A")), alpha)


def test_pixels_of_another_kind_are_refused(model):
    for pixels in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            restore_pixels(pixels, model)


def jpeg_with_metadata(path, orientation=1):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", orientation
    profile = b"profile" * 20
    Image.fromarray(random_photo(24, 40, 3)).save(path, quality=20, exif=exif, icc_profile=profile, dpi=(300, 300))
    return profile


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_metadata_is_kept_and_the_orientation_applied_once(tmp_path, model, suffix):
    profile = jpeg_with_metadata(tmp_path / "old.jpg", orientation=6)
    restore_file(tmp_path / "old.jpg", tmp_path / f"new{suffix}", model)
    with Image.open(tmp_path / f"new{suffix}") as image:
        assert image.size == (24, 40)  # turned by 90 degrees
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010F] == "Camera"
        assert image.info["icc_profile"] == profile
        if suffix != ".webp":
            assert tuple(map(round, map(float, image.info["dpi"]))) == (300, 300)


def test_nothing_is_written_over_a_source_photo(tmp_path, model):
    jpeg_with_metadata(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="would overwrite a source photo"):
        output_paths(tmp_path / "photo.jpg", tmp_path)
    with pytest.raises(ValueError, match="would overwrite a source photo"):
        output_paths(tmp_path, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="would overwrite a source photo"):
        output_paths(tmp_path / "photo.jpg", tmp_path / "link")


def test_folders_keep_their_structure_and_clashes_are_named(tmp_path):
    for name in ("a/x.jpg", "b/x.png", "b/y.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "in" / name)
    targets = output_paths(tmp_path / "in", tmp_path / "out")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in targets.values()) == [
        "a/x.jpg", "b/x.png", "b/y.jpg",
    ]
    Image.new("L", (8, 8)).save(tmp_path / "in/b/x.jpg")
    with pytest.raises(ValueError, match="would both become"):
        output_paths(tmp_path / "in", tmp_path / "out", ".png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        output_paths(tmp_path / "nowhere", tmp_path / "out")


def test_an_interrupted_write_leaves_no_file(tmp_path, model, monkeypatch):
    jpeg_with_metadata(tmp_path / "old.jpg")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space"):
        restore_file(tmp_path / "old.jpg", tmp_path / "out" / "new.jpg", model)
    assert list((tmp_path / "out").iterdir()) == []


def test_restoring_undoes_some_of_a_jpegs_damage(shared_data):
    with Image.open(shared_data / "val/classic5/1.png") as image:
        clean = np.asarray(image.convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=20)
    degraded = np.asarray(Image.open(buffer))
    assert psnr(clean, restore_pixels(degraded, load_model())) > psnr(clean, degraded) + 0.5
