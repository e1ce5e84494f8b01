"""The U-Net: its size, what a pixel depends on, its start, its weights on disk and in other programs, its tiles; its
colours and what it is told of a JPEG.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import facts
from PIL import Image
from safetensors.torch import load_file, save_file
from small import random_photo
from test_networks import check_saved_folded
from torch import nn

from srcnn.models.base import make_network
from srcnn.models.srcnn import SRCNN
from srcnn.models.unet import UNet, UNetConfig, to_rgb, to_ycbcr
from srcnn.models.weights import initialize, load_model, save_model
from srcnn.photos.jpeg_quality import CONDITION_SIZE, condition_of_quality
from srcnn.restoration.restore import restore
from srcnn.training.benchmark import training_flop

COLOUR = {"channels": 3, "unshuffle": 2, "ycbcr": True}
KINDS = [{}, {"channels": 3}, {"unshuffle": 2}, {"channels": 3, "unshuffle": 4}, COLOUR, COLOUR | {"condition": True}]


def some_unet(widths=(4, 6, 8), num_blocks=1, channels=1, centred=False, loud=True, **kind):
    """With `loud` its changes show, and every layer counts."""
    model = UNet(UNetConfig(widths, num_blocks, channels, **kind), centred)
    initialize(model, "kaiming", 0)
    if loud:
        nn.init.normal_(model.tail.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    if loud and model.conditioned:
        nn.init.normal_(model.modulation[2].weight, std=0.2, generator=torch.Generator().manual_seed(2))
    return model.eval()


def conditions(*qualities):
    return torch.from_numpy(np.stack([condition_of_quality(quality) for quality in qualities]))


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 47), (64, 64)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_keeps_the_size_of_any_photo(size, kind):
    model = some_unet(**kind)
    degraded = torch.rand(2, model.config.channels, *size)
    restored = model(degraded)
    assert restored.shape == degraded.shape and (restored - degraded).abs().max() > 1e-3


def test_its_parameters_by_hand():
    """Four scales of four blocks down and four up, the last of four: 3x3 and 2x2 kernels, and a bias for each map."""
    widths = (32, 64, 128, 256)
    convolutions = sum(blocks * 2 * (9 * width**2 + width) for width, blocks in zip(widths, (8, 8, 8, 4)))
    between = sum(2 * 4 * first * second + first + second for first, second in zip(widths, widths[1:]))
    ends = 2 * 9 * 32 + 32 + 1
    model = UNet(UNetConfig(widths))
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + between + ends == 8_166_145


def test_the_network_of_the_budget_by_hand():
    """Four scales from half the resolution down, luma and chroma; a multiplication with its addition counts as two."""
    config = UNetConfig((24, 48, 96, 192), 2, **COLOUR, condition=True)
    places = [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    convolutions = list(zip((4, 4, 4, 2), config.widths, places))  # blocks, width, places for each pixel
    between = [(first, second, place / 4) for first, second, place in zip(config.widths, config.widths[1:], places)]
    weights = sum(blocks * 2 * (9 * width**2 + width) for blocks, width, _ in convolutions)
    weights += sum(2 * 4 * first * second + first + second for first, second, _ in between)
    weights += 2 * 9 * 12 * 24 + 12 + 24
    modulations = sum(2 * width * blocks for blocks, width, _ in convolutions)
    weights += 64 * (CONDITION_SIZE + 1) + 65 * modulations
    model = UNet(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    flop = sum(2 * blocks * 2 * 9 * width**2 * place for blocks, width, place in convolutions)
    flop += sum(2 * 2 * 4 * first * second * place for first, second, place in between)
    flop += 2 * 2 * 9 * 12 * 24 * places[0]
    assert model.multiple == 16 and 75e3 < flop < 80e3
    # Training: each layer thrice, but the first twice; the border of the first and the condition are a little more.
    assert training_flop(config, 96) / 96**2 == pytest.approx(3 * flop - 2 * 9 * 12 * 24 * places[0], rel=0.01)


@pytest.mark.parametrize("widths,num_blocks,unshuffle", [
    ((3,), 1, 1), ((2, 3), 1, 1), ((2, 3), 2, 1), ((2, 2, 3), 1, 1), ((1, 2, 2, 2), 1, 1), ((3,), 1, 2), ((2, 3), 1, 2),
    ((1, 2, 2), 1, 2), ((2, 3), 1, 4)])
def test_an_output_pixel_sees_exactly_the_receptive_radius(widths, num_blocks, unshuffle):
    model = UNet(UNetConfig(widths, num_blocks, unshuffle=unshuffle)).double()
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


@pytest.mark.parametrize("kind", [{}, COLOUR | {"condition": True}], ids=str)
def test_it_starts_as_nearly_the_identity_and_its_last_layer_learns_first(kind):
    model = some_unet((8, 16, 32, 64), 2, centred=True, loud=False, **kind)
    degraded = torch.rand(1, model.config.channels, 48, 40)
    assert 1e-4 < (model(degraded) - degraded).abs().mean() < 0.02
    maps = []
    model.tail.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model(degraded)
    assert 0.02 < maps[0].std() < 2  # what reaches it neither fades nor grows on the way


@pytest.mark.parametrize("initialization", ["kaiming", "pytorch"])
def test_a_conditioned_network_starts_as_the_plain_one(initialization):
    """Layer by layer, with the same random numbers; and yet its condition learns at once."""
    plain, conditioned = (UNet(UNetConfig((4, 6), 2, condition=condition)) for condition in (False, True))
    for model in (plain, conditioned):
        initialize(model, initialization, 5)
    degraded = torch.rand(2, 1, 21, 13)
    restored = conditioned(degraded, conditions(10, 90))
    assert torch.equal(restored, plain(degraded))
    restored.square().mean().backward()
    assert conditioned.modulation[2].weight.grad.abs().max() > 0


def test_ycbcr_is_that_of_pillow():
    levels = random_photo(31, 43, 3)
    rgb = torch.from_numpy(levels).permute(2, 0, 1)[None].double() / 255
    expected = np.asarray(Image.fromarray(levels).convert("YCbCr"), float).transpose(2, 0, 1)
    found = 255 * to_ycbcr(rgb)[0].numpy() + np.array([0, 128, 128])[:, None, None]
    assert np.abs(found - expected).max() < 1.01  # libjpeg rounds
    torch.testing.assert_close(to_rgb(to_ycbcr(rgb)), rgb, rtol=0, atol=1e-14)


def test_with_ycbcr_it_is_the_same_network_between_two_conversions():
    """Also under autocast, whose bfloat16 the conversions are kept out of."""
    model = some_unet(**COLOUR)
    inner = UNet(replace(model.config, ycbcr=False))
    inner.load_state_dict(model.state_dict())
    degraded = torch.rand(2, 3, 23, 37)
    change = inner(to_ycbcr(degraded)) - to_ycbcr(degraded)
    torch.testing.assert_close(model(degraded) - degraded, to_rgb(change), rtol=1e-4, atol=1e-5)
    grey = torch.rand(1, 1, 19, 21).expand(-1, 3, -1, -1)
    assert to_ycbcr(grey)[:, 1:].abs().max() < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert to_ycbcr(degraded).dtype == torch.float32


def test_the_condition_changes_what_each_tile_becomes_and_none_means_unknown():
    model = some_unet(**COLOUR, condition=True)
    degraded = torch.rand(1, 3, 33, 18).expand(3, -1, -1, -1)
    told = torch.cat([conditions(10, 90), torch.zeros(1, CONDITION_SIZE)])
    restored = model(degraded, told)
    assert (restored[0] - restored[1]).abs().max() > 0.01
    for number in range(3):
        torch.testing.assert_close(restored[number : number + 1], model(degraded[:1], told[number : number + 1]))
    torch.testing.assert_close(restored[2:], model(degraded[:1]))
    for plain in (some_unet(), SRCNN()):
        assert not plain.conditioned and plain.with_condition(condition_of_quality(20)) is plain
        assert torch.equal(plain(degraded[:1, :1], told[:1]), plain(degraded[:1, :1]))


@pytest.mark.parametrize("condition", [None, condition_of_quality(10), condition_of_quality(95, subsampled=False)])
@pytest.mark.parametrize("centred", [False, True])
def test_a_condition_folds_into_the_weights(condition, centred):
    model = some_unet((4, 6, 8), 2, centred=centred, **COLOUR, condition=True)
    model.to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = model.with_condition(condition)
    assert folded.config == replace(model.config, condition=False) and not folded.conditioned and not folded.training
    assert folded.head.weight.is_contiguous(memory_format=torch.channels_last)
    degraded = torch.rand(2, 3, 45, 29)
    told = None if condition is None else torch.from_numpy(condition).expand(2, -1)
    torch.testing.assert_close(folded(degraded), model(degraded, told), rtol=1e-4, atol=1e-5)
    nn.init.zeros_(folded.head.weight)  # its own
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", [{"channels": 3}, COLOUR | {"condition": True}, {"unshuffle": 4}], ids=str)
def test_a_centred_network_is_saved_folded_and_gives_the_same_output(tmp_path, suffix, kind):
    model = some_unet(centred=True, **kind)
    check_saved_folded(model, tmp_path / f"model{suffix}")
    with pytest.raises(ValueError, match=facts("ModelConfig", "UNetConfig")):
        model.load_without_centering(SRCNN())


def test_a_conditioned_network_takes_plain_weights_and_the_condition_changes_nothing_yet():
    plain = some_unet(**COLOUR).without_centering()
    model = some_unet(centred=True, **COLOUR, condition=True)
    model.load_without_centering(plain)
    degraded, condition = torch.rand(1, 3, 21, 30), torch.rand(1, CONDITION_SIZE)
    torch.testing.assert_close(model(degraded, condition), plain(degraded), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=facts("UNetConfig")):
        plain.load_without_centering(model)


@pytest.mark.parametrize("kind", [{}, COLOUR | {"condition": True}], ids=str)
def test_half_the_bytes_are_read_as_float32(tmp_path, kind):
    model = some_unet((8, 16), **kind)
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
    "planes": (lambda it: it | {"head.weight": torch.ones(4, 12, 3, 3)}, ["tail.bias", (1,), (12,)]),
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


def test_what_the_tensors_do_not_show_comes_from_the_file_and_is_checked(tmp_path):
    """Twelve planes are RGB in squares of two pixels, unless they are told to be twelve channels."""
    path = tmp_path / "model.safetensors"
    for kind in ({"channels": 12}, {"channels": 4, "unshuffle": 2}, {"channels": 3, "unshuffle": 2}, COLOUR):
        save_model(some_unet(**kind), path)
        assert load_model(path).config == UNetConfig((4, 6, 8), 1, **kind)
    state = load_file(path)
    save_file(state, path)
    assert load_model(path).config == UNetConfig((4, 6, 8), 1, **COLOUR)  # told by its mark
    save_file({name: tensor for name, tensor in state.items() if name != "ycbcr"}, path)
    assert load_model(path).config == UNetConfig((4, 6, 8), 1, channels=3, unshuffle=2)
    for key, value in (("unshuffle", 1), ("channels", 12.0), ("ycbcr", 1), ("condition", True), ("channels", 5)):
        save_file(state, path, {"srcnn": json.dumps(COLOUR | {"condition": False} | {key: value})})
        with pytest.raises(ValueError, match=facts(path, key)):
            load_model(path)
    save_model(some_unet(unshuffle=2), path)
    save_file(load_file(path), path, {"srcnn": json.dumps({"ycbcr": True})})
    with pytest.raises(ValueError, match=facts(path, "unet.ycbcr", "unet.channels", 1)):
        load_model(path)


@pytest.mark.parametrize("kind", [{"channels": 3}, COLOUR | {"condition": True}], ids=str)
def test_it_goes_through_a_folder_of_the_hub(tmp_path, kind):
    model = some_unet(**kind)
    model.save_pretrained(tmp_path)
    found = UNet.from_pretrained(tmp_path)
    assert found.config == model.config and isinstance(found, UNet)
    card, told = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "config.json").read_text())
    assert "# U-Net 4-6-8" in card and "UNet.from_pretrained" in card and "RGB" in card and "DRUNet" not in card
    assert ("YCbCr" in card) == ("1/2 of the resolution" in card) == ("quantization" in card) == model.conditioned
    assert {key: told[key] for key in kind} == kind
    (tmp_path / "config.json").write_text(json.dumps(told | {"condition": not model.conditioned}))
    with pytest.raises(ValueError, match=facts("config.json", "condition")):
        UNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=facts(tmp_path, "SRCNN", "load_model")):
        SRCNN.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(90, 131), (41, 37, 3)])
@pytest.mark.parametrize("tile", [16, 30])
def test_tiles_with_the_whole_radius_around_them_equal_the_whole_photo(monkeypatch, shape, tile):
    """Also where the tile asked for is no multiple of the smallest maps' pixels."""
    model = some_unet(channels=1)
    monkeypatch.setattr("srcnn.models.unet.HALO_PIXELS", 1000)
    photo = random_photo(*shape)
    whole, tiled = (restore(photo, model, side, exact=True) for side in (1000, tile))
    assert not np.array_equal(whole, photo)
    differs = np.abs(whole.astype(int) - tiled)
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3  # the order of sums decides a rounding, rarely


def test_tiles_that_the_memory_halves_equal_the_whole_photo(monkeypatch):
    model = some_unet()
    monkeypatch.setattr("srcnn.models.unet.HALO_PIXELS", 1000)
    photo = random_photo(101, 120)
    expected = restore(photo, model, 1000, exact=True)
    forward = UNet.forward

    def small_memory(network, degraded):
        if degraded.shape[-1] > 100:
            raise MemoryError
        return forward(network, degraded)

    monkeypatch.setattr(UNet, "forward", small_memory)
    differs = np.abs(expected.astype(int) - restore(photo, model, 1000, exact=True))
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3


def test_a_config_makes_its_network():
    assert isinstance(make_network(UNetConfig((2, 3))), UNet)
    with pytest.raises(ValueError, match="unet.widths"):
        UNet(UNetConfig())
    for wrong in ({"widths": (0,)}, {"widths": (1,) * 9}, {"widths": (2,), "num_blocks": 0}):
        with pytest.raises(ValueError, match="unet.widths"):
            UNetConfig(**wrong)
    with pytest.raises(ValueError, match=facts("unet.unshuffle", 3)):
        UNetConfig((2,), unshuffle=3)
    with pytest.raises(ValueError, match=facts("unet.ycbcr", 1)):
        UNetConfig((2,), ycbcr=True)


@pytest.mark.slow
def test_compiled_it_gives_the_same_output_and_gradients():
    model = some_unet(centred=True, **COLOUR, condition=True).to(memory_format=torch.channels_last)
    degraded = torch.rand(2, 3, 24, 32).to(memory_format=torch.channels_last)
    results = []
    for network in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        restored = network(degraded, conditions(15, 70))
        restored.square().mean().backward()
        results.append((restored.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
