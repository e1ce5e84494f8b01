"""Networks of other programs: any module of PyTorch, and files that spandrel knows, with our tiles and metadata."""

import sys
import warnings

import numpy as np
import pytest
import torch
from messages import facts, says
from PIL import Image
from torch import nn

import srcnn
from srcnn.__main__ import main
from srcnn.models.weights import load_model, save_model
from srcnn.models.wrapped import WrappedNetwork, measure_tiling


def blur(side, channels=3):
    """A convolution whose output depends on side // 2 pixels to each side, with the edge repeated."""
    layer = nn.Conv2d(channels, channels, side, padding="same", padding_mode="replicate", groups=channels, bias=False)
    nn.init.constant_(layer.weight, 1 / side**2)
    return layer.requires_grad_(False)


def photo(height=83, width=120, channels=3):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def test_any_module_restores_a_photo_of_any_type_tile_by_tile():
    module, pixels = blur(9), photo()
    whole = module(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    network = srcnn.wrap(module, halo=4)
    np.testing.assert_array_equal(srcnn.restore(pixels, network, 32), np.rint(255 * whole).astype(np.uint8))
    deep = pixels.astype(np.uint16) * 257
    assert np.abs(srcnn.restore(deep, network, 32).astype(int) - np.rint(65535 * whole)).max() <= 1
    assert srcnn.restore(Image.fromarray(pixels), network, 32).tobytes() == srcnn.restore(pixels, network).tobytes()
    grey = srcnn.restore(pixels[..., 0], network, 32)
    np.testing.assert_array_equal(grey, srcnn.restore(pixels[..., 0], network))
    assert srcnn.restore(pixels[:1, :1], network).shape == (1, 1, 3)


def test_a_module_of_one_channel_restores_the_luma():
    pixels = photo()
    restored = srcnn.restore(pixels, srcnn.wrap(blur(5, 1), halo=2, channels=1), strength=1).astype(float)
    inside = pixels.min(-1) > 99, pixels.max(-1) < 155
    change = (restored - pixels)[inside[0] & inside[1]]
    assert len(change) > 50 and np.ptp(change, axis=-1).max() <= 1 and np.abs(change).max() > 5


def test_attributes_of_a_module_say_how_it_is_used():
    module, pixels = blur(5, 1), photo()
    module.halo, module.channels = 2, 1
    expected = srcnn.restore(pixels, srcnn.wrap(blur(5, 1), halo=2, channels=1))
    np.testing.assert_array_equal(srcnn.restore(pixels, module, 16), expected)
    assert srcnn.upscale(pixels, module, 2, restore_first=False).shape == (166, 240, 3)


def test_a_module_without_parameters_is_a_network():
    class Negative(nn.Module):
        halo = 0

        def forward(self, pixels):
            return 1 - pixels

    np.testing.assert_array_equal(srcnn.restore(photo(), Negative()), 255 - photo())


@pytest.mark.parametrize("settings,values", [
    ({}, ("Conv2d", "halo", "srcnn.wrap")), ({"halo": -1}, ("halo", -1)), ({"halo": 2.5}, ("halo", 2.5)),
    ({"halo": 2, "channels": 4}, ("channels", 4)), ({"halo": 2, "multiple": 0}, ("multiple", 0)),
    ({"halo": True}, ("halo", True)),
])
def test_what_cannot_be_is_refused(settings, values):
    with pytest.raises(ValueError, match=facts(*values)):
        srcnn.wrap(blur(5), **settings)


def test_a_module_that_changes_the_size_is_named():
    with pytest.raises(ValueError, match=facts("MaxPool2d", "(1, 3, 84, 120)", "(1, 3, 42, 60)")):
        srcnn.restore(photo(84), srcnn.wrap(nn.MaxPool2d(2), halo=2))


def test_a_wrapped_network_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=facts("Conv2d")):
        save_model(srcnn.wrap(blur(5), halo=2), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side,expected", [(1, 8), (17, 8), (19, 16), (65, 32)])
def test_the_measured_halo_is_enough(side, expected):
    network = WrappedNetwork(blur(side), None, 3, measures=True)
    multiple, halo, difference = measure_tiling(network)
    assert (multiple, halo) == (1, expected) and difference < 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network.halo == expected
    assert says(network.about_halo(), expected)


def test_where_tiles_may_begin_is_measured():
    class Blocks(nn.Module):
        """The mean of each block, as of a network that sees a photo in windows."""

        def forward(self, pixels):
            height, width = pixels.shape[-2:]
            padded = nn.functional.pad(pixels, (0, -width % 4, 0, -height % 4), mode="replicate")
            means = nn.functional.avg_pool2d(padded, 4)
            return means.repeat_interleave(4, -1).repeat_interleave(4, -2)[..., :height, :width]

    network = WrappedNetwork(Blocks(), None, 3, measures=True)
    assert network.multiple == 4 and network.halo == 8
    np.testing.assert_array_equal(srcnn.restore(photo(), network, 18), srcnn.restore(photo(), network, 512))


def test_a_network_that_sees_the_whole_photo_is_told():
    class Whitened(nn.Module):
        def forward(self, pixels):
            return pixels - pixels.mean((2, 3), keepdim=True)

    network = WrappedNetwork(Whitened(), None, 3, name="Whitened", measures=True)
    with pytest.warns(UserWarning, match=facts("Whitened", 96)):
        assert network.halo == 96


# ---- files of weights, by spandrel

def dncnn(channels):
    from spandrel.architectures.DnCNN import DnCNN
    return DnCNN(in_nc=channels, out_nc=channels, nc=8, nb=8, act_mode="R")


def compact():
    from spandrel.architectures.Compact import Compact
    return Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=4, upscale=1, act_type="prelu")


def swinir():
    from spandrel.architectures.SwinIR import SwinIR
    return SwinIR(img_size=126, window_size=7, embed_dim=12, depths=[2], num_heads=[2], mlp_ratio=2, upsampler="",
                  resi_connection="1conv", img_range=255.0, in_chans=3, upscale=1)


def nafnet():
    from spandrel.architectures.NAFNet import NAFNet
    return NAFNet(width=8, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])


@pytest.fixture
def weights(tmp_path):
    """Writes a .pth as other programs do."""
    pytest.importorskip("spandrel")

    def write(make, *values):
        torch.manual_seed(0)
        module = make(*values).eval()
        torch.save({"params": module.state_dict()}, tmp_path / "theirs.pth")
        return tmp_path / "theirs.pth", module

    return write


@pytest.mark.parametrize("make,values,halo", [
    (dncnn, (3,), 8), (dncnn, (1,), 8), (compact, (), 6), (swinir, (), 42),
])
def test_tiles_of_a_network_of_spandrel_are_those_of_the_whole_photo(weights, make, values, halo):
    path, _ = weights(make, *values)
    network, pixels = load_model(path, halo), photo(85, 151)
    assert network.halo == halo and network.config.channels == (values or (3,))[0]
    whole, tiles = srcnn.restore(pixels, network, 512), srcnn.restore(pixels, network, 24)
    assert np.abs(whole.astype(int) - pixels).max() > 3
    np.testing.assert_array_equal(tiles, whole)


def test_a_network_of_spandrel_gives_what_its_own_program_gives(weights):
    import spandrel
    path, _ = weights(swinir)
    image = torch.rand(1, 3, 45, 66, generator=torch.Generator().manual_seed(2))
    theirs = spandrel.ModelLoader().load_from_file(path)(image)
    np.testing.assert_allclose(srcnn.restore(image, load_model(path, 64)), theirs.numpy(), atol=1e-6, rtol=0)


def test_the_halo_of_weights_is_measured_where_none_is_given(weights):
    path, _ = weights(dncnn, 3)
    assert load_model(path).halo == 8
    with pytest.warns(UserWarning, match=facts("DnCNN", 1)):
        assert load_model(path, 1).halo == 1  # as given, and said to be too small


def test_the_command_restores_with_them_and_keeps_metadata_and_16_bits(weights, tmp_path, capsys):
    path, module = weights(dncnn, 3)
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x010E] = "a river"
    image.save(tmp_path / "photo.png", exif=exif, dpi=(300, 300))
    arguments = ["restore", str(tmp_path / "photo.png"), "--model", str(path), "--tile", "40"]
    assert main(arguments) == 0
    assert says(capsys.readouterr().err, "theirs.pth", "DnCNN", 8, "measured")
    with Image.open(tmp_path / "photo_restored.png") as restored:
        assert restored.getexif()[0x010E] == "a river" and round(restored.info["dpi"][0]) == 300
        pixels = torch.from_numpy(photo() / np.float32(255)).permute(2, 0, 1)[None]
        expected = module(pixels).detach()[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
        assert np.abs(np.asarray(restored) - expected).max() <= 0.51
    assert main([*arguments, "--halo", "8", "--overwrite"]) == 0
    assert says(capsys.readouterr().err, "DnCNN", 8)
    assert main([*arguments, "--halo", "-5", "--overwrite"]) == 1
    assert main(["restore", str(tmp_path / "photo.png"), "--model", "srcnn-915-q20", "--halo", "5", "--overwrite"]) == 1
    assert main(["export", str(path), "--torch", str(tmp_path / "theirs.pt2")]) == 1
    assert not (tmp_path / "theirs.pt2").exists()


def test_a_network_that_looks_at_the_whole_photo_says_so(weights):
    path, _ = weights(nafnet)
    network = load_model(path)
    assert network.halo in (8, 16, 32, 48, 64, 96) and srcnn.restore(photo(), network, 24).shape == photo().shape


def test_weights_that_nobody_knows_and_networks_that_enlarge_are_refused(weights, tmp_path):
    def enlarging():
        from spandrel.architectures.Compact import Compact
        return Compact(num_feat=8, num_conv=2, upscale=2)

    with pytest.raises(ValueError, match=facts("theirs.pth", "Compact", 2)):
        load_model(weights(enlarging)[0])
    for module in (nn.Conv2d(3, 5, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))):
        with pytest.raises(ValueError, match=facts("theirs.pth", "weight")):
            load_model(weights(lambda module=module: module)[0])
    path, module = weights(dncnn, 3)
    torch.save({name: tensor for name, tensor in module.state_dict().items() if "4" not in name}, path)
    with pytest.raises(ValueError, match=facts("theirs.pth")):
        load_model(path)


def test_without_spandrel_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save(nn.Sequential(nn.Conv2d(3, 3, 3)).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=facts("theirs.pth", "pip install 'srcnn[models]'")):
        load_model(tmp_path / "theirs.pth")
