"""The U-Net: its size, what a pixel depends on, its start, its weights on disk and in other programs, its tiles."""

import json

import numpy as np
import pytest
import torch
from messages import facts
from safetensors.torch import load_file, save_file
from small import random_photo
from test_model import check_saved_folded
from torch import nn

from srcnn.hub import from_pretrained
from srcnn.model import SRCNN, initialize, load_model, make_network, save_model
from srcnn.restore import restore_pixels
from srcnn.unet import UNet, UNetConfig


def some_unet(widths=(4, 6, 8), num_blocks=1, channels=1, centred=False, loud=True):
    """With `loud` its changes show, and every layer counts."""
    model = UNet(UNetConfig(widths, num_blocks, channels), centred)
    initialize(model, "kaiming", 0)
    if loud:
        nn.init.normal_(model.tail.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.eval()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 47), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_keeps_the_size_of_any_photo(size, channels):
    degraded = torch.rand(2, channels, *size)
    assert some_unet(channels=channels)(degraded).shape == degraded.shape


def test_its_parameters_by_hand():
    """Four scales of four blocks down and four up, the last of four: 3x3 and 2x2 kernels, and a bias for each map."""
    widths = (32, 64, 128, 256)
    convolutions = sum(blocks * 2 * (9 * width**2 + width) for width, blocks in zip(widths, (8, 8, 8, 4)))
    between = sum(2 * 4 * first * second + first + second for first, second in zip(widths, widths[1:]))
    ends = 2 * 9 * 32 + 32 + 1
    model = UNet(UNetConfig(widths))
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + between + ends == 8_166_145


@pytest.mark.parametrize("widths,num_blocks", [((3,), 1), ((2, 3), 1), ((2, 3), 2), ((2, 2, 3), 1), ((1, 2, 2, 2), 1)])
def test_an_output_pixel_sees_exactly_the_receptive_radius(widths, num_blocks):
    model = UNet(UNetConfig(widths, num_blocks)).double()
    for parameter in model.parameters():  # no sum cancels, no ReLU cuts
        nn.init.constant_(parameter, 0.1)
    radius, multiple = model.receptive_radius, model.multiple
    side = multiple * (2 * radius // multiple + 4)
    degraded = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    restored, furthest = model(degraded), 0
    middle = multiple * (side // 2 // multiple)
    for place in range(middle, middle + multiple):
        seen = torch.autograd.grad(restored[0, 0, place, place], degraded, retain_graph=True)[0][0, 0] != 0
        rows = seen.any(1).nonzero().flatten()
        assert 0 < rows.min() and rows.max() < side - 1
        furthest = max(furthest, place - int(rows.min()), int(rows.max()) - place)
    assert furthest == radius


def test_it_starts_as_nearly_the_identity_and_its_last_layer_learns_first():
    model = some_unet((8, 16, 32, 64), 2, centred=True, loud=False)
    degraded = torch.rand(1, 1, 48, 40)
    assert 1e-4 < (model(degraded) - degraded).abs().mean() < 0.02
    maps = []
    model.tail.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model(degraded)
    assert 0.02 < maps[0].std() < 2  # what reaches it neither fades nor grows on the way


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_centred_network_is_saved_folded_and_gives_the_same_output(tmp_path, suffix):
    model = some_unet(centred=True, channels=3)
    check_saved_folded(model, tmp_path / f"model{suffix}")
    with pytest.raises(ValueError, match=facts("ModelConfig", "UNetConfig")):
        model.load_folded(SRCNN())


def test_half_the_bytes_are_read_as_float32(tmp_path):
    model = some_unet((8, 16))
    for name, half in (("whole", False), ("half", True)):
        save_model(model, tmp_path / f"{name}.safetensors", half=half)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_model(tmp_path / "half.safetensors")
    for found, expected in zip(loaded.parameters(), model.parameters(), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2**-11, atol=1e-7)


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path):
    model = some_unet()
    nn.init.constant_(model.head.weight, 1e5)
    with pytest.raises(ValueError, match=facts("head.weight", "float16")):
        save_model(model, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


SPOILED = {
    "missing": (lambda it: {name: it[name] for name in it if name != "down.1.bias"}, ["down.1.bias", (8,)]),
    "more": (lambda it: it | {"before.7.weight": torch.ones(1)}, ["before.7.weight", (1,)]),
    "shape": (lambda it: it | {"up.0.bias": torch.ones(7)}, ["up.0.bias", (7,), (4,)]),
    "head": (lambda it: it | {"head.weight": torch.ones(4)}, [(4,)]),
    "empty": (lambda it: it | {"head.weight": torch.ones(4, 0, 3, 3)}, [(4, 0, 3, 3)]),
    "no blocks": (lambda it: {name: it[name] for name in it if not name.startswith("bottom")}, ["unet.num_blocks", 0]),
}


@pytest.mark.parametrize("spoil,told", SPOILED.values(), ids=SPOILED)
def test_other_weights_are_refused_by_name(tmp_path, spoil, told):
    path = tmp_path / "model.safetensors"
    save_model(some_unet(), path)
    save_file(spoil(load_file(path)), path)
    with pytest.raises(ValueError, match=facts(path, *told)):
        load_model(path)


def test_a_config_that_is_not_the_tensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(some_unet(), path)
    told = {"widths": [4, 6, 9], "num_blocks": 1, "channels": 1}
    save_file(load_file(path), path, {"srcnn": json.dumps(told)})
    with pytest.raises(ValueError, match=facts(path, "widths", [4, 6, 9], [4, 6, 8])):
        load_model(path)


def test_it_goes_through_a_folder_of_the_hub(tmp_path):
    model = some_unet(channels=3)
    model.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path)
    assert found.config == model.config and isinstance(UNet.from_pretrained(tmp_path), UNet)
    card = (tmp_path / "README.md").read_text()
    assert "# U-Net 4-6-8" in card and "UNet.from_pretrained" in card and "RGB" in card and "DRUNet" not in card
    with pytest.raises(ValueError, match=facts("UNet", "SRCNN")):
        SRCNN.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(90, 131), (41, 37, 3)])
@pytest.mark.parametrize("tile", [16, 30])
def test_tiles_with_the_whole_radius_around_them_equal_the_whole_photo(monkeypatch, shape, tile):
    """Also where the tile asked for is no multiple of the smallest maps' pixels."""
    model = some_unet(channels=1)
    monkeypatch.setattr("srcnn.unet.HALO_PIXELS", 1000)
    photo = random_photo(*shape)
    whole, tiled = (restore_pixels(photo, model, side, exact=True) for side in (1000, tile))
    assert not np.array_equal(whole, photo)
    differs = np.abs(whole.astype(int) - tiled)
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3  # the order of sums decides a rounding, rarely


def test_tiles_that_the_memory_halves_equal_the_whole_photo(monkeypatch):
    model = some_unet()
    monkeypatch.setattr("srcnn.unet.HALO_PIXELS", 1000)
    photo = random_photo(101, 120)
    expected = restore_pixels(photo, model, 1000, exact=True)
    forward = UNet.forward

    def small_memory(network, degraded):
        if degraded.shape[-1] > 100:
            raise MemoryError
        return forward(network, degraded)

    monkeypatch.setattr(UNet, "forward", small_memory)
    differs = np.abs(expected.astype(int) - restore_pixels(photo, model, 1000, exact=True))
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3


def test_a_config_makes_its_network():
    assert isinstance(make_network(UNetConfig((2, 3))), UNet)
    with pytest.raises(ValueError, match="unet.widths"):
        UNet(UNetConfig())
    for wrong in ({"widths": (0,)}, {"widths": (1,) * 9}, {"widths": (2,), "num_blocks": 0}):
        with pytest.raises(ValueError, match="unet.widths"):
            UNetConfig(**wrong)


@pytest.mark.slow
def test_compiled_it_gives_the_same_output_and_gradients():
    model = some_unet(centred=True).to(memory_format=torch.channels_last)
    degraded = torch.rand(2, 1, 24, 32).to(memory_format=torch.channels_last)
    results = []
    for network in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        restored = network(degraded)
        restored.square().mean().backward()
        results.append((restored.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
