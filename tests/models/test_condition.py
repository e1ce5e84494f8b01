"""What each way of restoring tells a network of the JPEG, and greyscale through a network for RGB."""

import io

import numpy as np
import pytest
import torch
from messages import facts
from PIL import Image
from small import draw_photo, random_photo
from test_unet import COLOUR, some_unet

from srcnn.__main__ import main
from srcnn.models.device import to_device
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize, save_model
from srcnn.photos.degradation import Degradation, degrade
from srcnn.photos.jpeg_quality import JpegSave, condition_of_quality, jpeg_save, jpeg_save_of
from srcnn.photos.metrics import psnr
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import restore, restore_array
from srcnn.restoration.restore_files import RestoreFile
from srcnn.restoration.score import score_photo
from srcnn.restoration.tiled_inference import RestoreOptions
from srcnn.restoration.upscale import upscale


@pytest.fixture(scope="module")
def model():
    return to_device(some_unet(**COLOUR, condition=True), torch.device("cpu"))  # as commands compute it, to the bit


@pytest.fixture(scope="module", params=["SRCNN", "U-Net"])
def rgb_network(request):
    if request.param == "U-Net":
        return some_unet(**COLOUR)
    network = SRCNN(ModelConfig(channels=3, filters=(8, 4), residual=True))
    initialize(network, "pytorch", 0)
    return network.eval()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (61, 83)])
@pytest.mark.parametrize("tile_pixels", [16, 1000])
def test_greyscale_through_a_network_for_rgb_is_the_luma_of_its_result(monkeypatch, rgb_network, size, tile_pixels):
    monkeypatch.setattr("srcnn.models.unet.HALO_PIXELS", 1000)
    grey = random_photo(*size)
    side = rgb_network.min_pixels
    padded = np.pad(grey, [(0, max(0, side - length)) for length in size], mode="edge")
    with torch.no_grad():
        rgb = rgb_network(torch.from_numpy(padded / np.float32(255)).expand(1, 3, -1, -1))[0].numpy()
    expected = np.tensordot([0.299, 0.587, 0.114], rgb, 1)[: size[0], : size[1]] * 255
    restored = restore(grey, rgb_network, tile_pixels, exact=True)
    assert restored.shape == size and np.abs(restored - expected.clip(0, 255)).max() < 0.51
    assert size == (1, 1) or (restored != grey).any()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_images_stay_grey(model, mode):
    grey = Image.fromarray(random_photo(23, 31))
    image = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    restored = restore(image, model)
    assert restored.size == image.size and restored.mode == ("L" if mode == "1" else mode)
    levels = np.asarray(restored.getchannel(0) if mode != "I;16" else restored)
    expected = restore(np.asarray(image if mode == "I;16" else image.convert("L")), model)
    assert np.array_equal(levels, expected)


def test_a_network_of_other_channels_is_refused():
    network = SRCNN(ModelConfig(channels=4, filters=(4, 4), residual=True))
    with pytest.raises(ValueError, match=facts("channels", 4)):
        restore(random_photo(20, 20, 3), network)


def test_tiles_equal_the_whole_photo(monkeypatch, model):
    monkeypatch.setattr("srcnn.models.unet.HALO_PIXELS", 1000)
    photo = random_photo(101, 67, 3)
    whole, tiled = (restore_array(photo, model, RestoreOptions(side, True, damage=jpeg_save(10)))
                    for side in (1000, 20))
    differs = np.abs(whole.astype(int) - tiled)
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3
    halo = model.halo
    assert halo % model.multiple == 0 and halo >= model.receptive_radius


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0", None])
def test_a_jpeg_tells_the_network_its_tables(tmp_path, model, subsampling):
    """In memory, as a file, and by the command; None: greyscale."""
    path, photo = tmp_path / "photo.jpg", Image.fromarray(draw_photo(0, 61, 83))
    if subsampling:
        photo.save(path, quality=15, subsampling=subsampling)
    else:
        photo.convert("L").save(path, quality=15)
    with Image.open(path) as image:
        told, pixels = jpeg_save_of(image).condition, np.asarray(image)
        restored = np.asarray(restore(image, model, exact=True))
    assert np.array_equal(told, condition_of_quality(15, subsampling == "4:2:0", grey=subsampling is None))
    steps = jpeg_save(15).luma_steps
    expected = restore_array(pixels, model, RestoreOptions(exact=True, damage=JpegSave(15, told, luma_steps=steps)))
    assert (expected != restore_array(pixels, model, RestoreOptions(exact=True))).mean() > 0.1
    assert np.array_equal(restored, expected)
    for smooth in (True, False):  # the chroma is the network's
        restorer = JpegRestorer(model, RestoreOptions(exact=True, smooth_chroma=smooth))
        RestoreFile(restorer)(path, tmp_path / "file.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "file.png")), expected)
    save_model(model, tmp_path / "model.safetensors")
    arguments = ["restore", str(path), "-o", str(tmp_path / "command.png"), "--exact"]
    assert main([*arguments, "--model", str(tmp_path / "model.safetensors")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "command.png")), expected)


@pytest.mark.parametrize("channels", [None, 3])
def test_a_quality_that_is_given_stands_for_its_tables(model, channels):
    pixels = random_photo(37, 29, channels)
    expected = restore_array(pixels, model, RestoreOptions(damage=jpeg_save(40, grey=channels is None)))
    assert (expected != restore(pixels, model)).mean() > 0.1
    assert np.array_equal(restore(pixels, model, quality=40), expected)
    assert np.array_equal(restore(pixels, model, quality=40), expected)
    assert np.array_equal(np.asarray(restore(Image.fromarray(pixels), model, quality=40)), expected)
    tensor = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
    assert np.array_equal(restore(tensor, model, quality=40).permute(1, 2, 0).reshape(pixels.shape).numpy(), expected)
    with pytest.raises(ValueError, match=facts("quality", 0)):
        restore(pixels, model, quality=0)


@pytest.mark.parametrize("luma", ["l", "y"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_scores_are_of_the_network_that_knows_the_quality(model, luma, subsampling):
    """L of the restored colour photo; Y is degraded and restored as greyscale."""
    clean = draw_photo(2, 45, 70)
    degradation = Degradation(jpeg_quality=25, jpeg_subsampling=subsampling)
    if luma == "y":
        clean = np.rint(16 + clean @ np.array([65.481, 128.553, 24.966]) / 255).astype(np.uint8)
    damage = jpeg_save(25, subsampling == "4:2:0", grey=luma == "y")
    degraded = degrade(clean, degradation, 25)
    restored = restore_array(degraded, model, RestoreOptions(exact=True, damage=damage, consistent=False))
    levels = [np.asarray(Image.fromarray(pixels).convert("L")) for pixels in (clean, degraded, restored)]
    score = score_photo("photo", clean, model, luma, degradation)
    assert score.psnr_in == psnr(*levels[:2]) and score.psnr == psnr(levels[0], levels[2])


def test_enlarging_takes_networks_for_rgb_too(rgb_network):
    assert upscale(random_photo(9, 14), rgb_network, 2).shape == (18, 28)
    assert upscale(random_photo(9, 14, 3), rgb_network, 3).shape == (27, 42, 3)


def test_tables_that_are_not_libjpegs_tell_the_network_the_nearest_quality():
    """It was trained on libjpeg's; told a camera's flat table, it restored a photo to less than it was."""
    camera = [[5 + row * column // 4 for row in range(8) for column in range(8)]] * 2
    Image.fromarray(draw_photo(0, 64, 64)).save(buffer := io.BytesIO(), "JPEG", qtables=camera)
    with Image.open(buffer) as image:
        save = jpeg_save_of(image)
    assert np.array_equal(save.condition, condition_of_quality(save.quality))
    assert np.array_equal(save.luma_steps, np.reshape(camera[0], (8, 8)))
