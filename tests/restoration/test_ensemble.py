"""The mean of what a network makes of a photo and of its mirror images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small import changing_network, draw_photo, random_photo

from srcnn import restore, upscale
from srcnn.__main__ import main
from srcnn.models.unet import UNet, UNetConfig
from srcnn.photos.degradation import Degradation
from srcnn.restoration.restore import restore_array
from srcnn.restoration.score import degraded_pair
from srcnn.restoration.tiled_inference import RestoreOptions, run_mirrored, run_network

MIRRORED = ((), (0,), (1,), (0, 1))  # axes of (H, W)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNet(UNetConfig((4, 6, 8), 1, channels=3, unshuffle=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def test_it_is_the_mean_over_the_mirror_images():
    model, pixels = changing_network(), random_photo(61, 83).astype(np.float32) / 255
    ones = [np.flip(restore(np.flip(pixels, axes), model, exact=True), axes) for axes in MIRRORED]
    ensemble = restore(pixels, model, exact=True, ensemble=True)
    unclipped = (np.min(ones, axis=0) > 0) & (np.max(ones, axis=0) < 1)  # the others are clipped in the mean only
    assert unclipped.mean() > 0.3
    assert np.allclose(ensemble[unclipped], np.mean(ones, axis=0)[unclipped], atol=1e-5)
    assert not np.allclose(ensemble, ones[0], atol=1e-2)


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (130, 45)])
def test_tiles_make_no_difference(unet, size):
    pixels = random_photo(*size, 3).astype(np.float32) / 255
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.inference_mode():
        at_once = run_mirrored(tensor, unet).clamp(0, 1).permute(1, 2, 0).numpy()
        alone = run_network(tensor, unet).clamp(0, 1).permute(1, 2, 0).numpy()
    tiled = restore_array(pixels, unet, RestoreOptions(32, exact=True, ensemble=True))
    assert np.allclose(tiled, at_once, atol=1e-4) and not np.allclose(tiled, alone, atol=1e-2)


def test_a_mirror_image_gives_the_mirror_image(unet):
    pixels = random_photo(64, 88, 3).astype(np.float32) / 255
    for axes in MIRRORED:
        mirrored = restore(np.flip(pixels, axes), unet, exact=True, ensemble=True)
        assert np.allclose(np.flip(mirrored, axes), restore(pixels, unet, exact=True, ensemble=True), atol=1e-5)


@pytest.mark.parametrize("name", ["srcnn-915-q20", "unet-jpeg"])
def test_shipped_networks_gain(tmp_path, name):
    Image.fromarray(draw_photo(3, 120, 150)).save(tmp_path / "clean.png")
    score, path = ["score", str(tmp_path), "--model", name, "--json"], tmp_path / "score.json"
    gains = []
    for options in ([], ["--ensemble"]):
        assert main([*score, str(path), *options]) == 0
        gains.append(json.loads(path.read_text())["mean"]["gain"])
    assert gains[1] > gains[0] + 0.02


def test_the_commands_take_it(tmp_path):
    clean, degraded = degraded_pair(draw_photo(1, 48, 72), "l", Degradation())
    Image.fromarray(degraded).save(tmp_path / "a.png")
    for command, options, expected in (
        ("restore", {"model": "srcnn-915-q20", "quality": 20}, restore), ("upscale", {"restore_first": False}, upscale)
    ):
        out = tmp_path / f"{command}.png"
        settings = ["--no-restore"] if command == "upscale" else ["--model", "srcnn-915-q20", "--no-consistency"]
        options = options | ({} if command == "upscale" else {"consistent": False})
        assert main([command, str(tmp_path / "a.png"), "-o", str(out), "--ensemble", *settings]) == 0
        written = np.asarray(Image.open(out))
        assert np.array_equal(written, np.asarray(expected(Image.fromarray(degraded), ensemble=True, **options)))
        assert not np.array_equal(written, np.asarray(expected(Image.fromarray(degraded), **options)))
