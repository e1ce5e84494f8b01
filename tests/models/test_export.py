"""The network in files for other programs, read by these: ONNX Runtime, ONNX's own reference, bare PyTorch."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from messages import facts, says
from torch import nn
from torch.nn import functional

from srcnn.__main__ import main
from srcnn.models import base, export
from srcnn.models.base import Network, register_network
from srcnn.models.export import PhotoNetwork, export_onnx, export_torch
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.unet import UNet, UNetConfig
from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import initialize, load_model, save_model
from srcnn.models.wrapped import check_network
from srcnn.photos.jpeg_quality import CONDITION_SIZE, condition_of_quality
from srcnn.restoration.restore import restore_array
from srcnn.restoration.tiled_inference import RestoreOptions
from srcnn.restoration.upscale import upscale

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS = [
    {"residual": True, "filters": (64, 32)}, {"kernels": (9, 5, 5)}, {"channels": 3, "residual": True},
    {"kernels": (9, 5, 5), "channels": 3}, {"kernels": (11, 3, 7), "residual": True},
]
WITHOUT_SRCNN = """
import sys
sys.modules["srcnn"] = None  # importing it is an error
import numpy, torch
network = torch.export.load(sys.argv[1], extra_files=(notes := {"srcnn.json": ""})).module()
for number in range(3):
    degraded = torch.from_numpy(numpy.load(f"{sys.argv[2]}/degraded{number}.npy"))
    numpy.save(f"{sys.argv[2]}/restored{number}.npy", network(degraded).numpy())
print(notes["srcnn.json"])
"""


def some_model(**config):
    model = SRCNN(ModelConfig(**{"filters": (8, 4)} | config), centred=True)
    initialize(model, "pytorch", 0)
    return model


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def in_onnxruntime(path, degraded):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": degraded.numpy()})[0]


@pytest.mark.parametrize("config", NETWORKS, ids=str)
def test_onnx_runtime_restores_photos_of_any_size_as_the_network_does(tmp_path, config):
    model = some_model(**config)
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-5
    side = model.min_pixels
    for batch, height, width in ((1, side, side + 2), (5, 23, side), (2, 31, 18), (1, 64, 113)):
        degraded = noise(batch, 3, height, width)
        found = in_onnxruntime(tmp_path / "model.onnx", degraded)
        np.testing.assert_allclose(found, PhotoNetwork(model)(degraded).detach().numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name,side", [("srcnn-915-q20", 1), ("srcnn-915-x2", 2), ("srcnn-915-x3", 3)])
def test_the_graph_restores_colour_photos_as_this_package_does(tmp_path, name, side):
    assert main(["export", name, "--onnx", str(tmp_path / "model.onnx"), "--torch", str(tmp_path / "model.pt2")]) == 0
    photo = noise(1, 3, 27, 38)
    if side > 1:
        expected = upscale(photo, name, side, restore_first=False, exact=True)
    else:  # without a known JPEG quality, so that the chroma is left as it is
        pixels = restore_array(photo[0].permute(1, 2, 0).numpy(), load_model(name), RestoreOptions(exact=True))
        expected = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for found in (in_onnxruntime(tmp_path / "model.onnx", photo),
                  torch.export.load(tmp_path / "model.pt2").module()(photo)):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert (told["scale"], told["channel"], told["license"]) == (str(side), "RGB", "Apache-2.0")
    assert told["card"] == (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")


def test_a_tile_with_the_halo_of_the_metadata_is_restored_as_in_the_whole_photo(tmp_path):
    export_onnx(load_model("srcnn-915-x3"), tmp_path / "model.onnx", scale=3)
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    halo, photo = int(told["halo"]), noise(1, 3, 31, 40)
    assert halo == 4  # the network's 6 of 3 times enlarged pixels, and those that bicubic interpolation uses
    whole = in_onnxruntime(tmp_path / "model.onnx", photo)
    tile = in_onnxruntime(tmp_path / "model.onnx", photo[..., 10 - halo : 21 + halo, 9 - halo : 24 + halo])
    inner = tile[..., 3 * halo : -3 * halo, 3 * halo : -3 * halo]
    np.testing.assert_allclose(inner, whole[..., 30:63, 27:72], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name,scale", [("srcnn-915-q20", 1), ("srcnn-915-x2", 2), ("unet-jpeg", 1)])
def test_half_precision_halves_the_file_and_keeps_half_a_level(tmp_path, name, scale):
    model, photo = load_model(name).with_condition(None), noise(1, 3, 37, 50)
    export_onnx(model, tmp_path / "model.onnx", scale=scale)
    assert 1e-5 < export_onnx(model, tmp_path / "half.onnx", scale=scale, half=True) < 2e-3
    assert (tmp_path / "half.onnx").stat().st_size < 0.53 * (tmp_path / "model.onnx").stat().st_size
    found = in_onnxruntime(tmp_path / "half.onnx", photo.half())
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, in_onnxruntime(tmp_path / "model.onnx", photo), atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize("name,share", [("srcnn-915-q20", 0.6), ("unet-jpeg", 0.3)])
def test_compact_weights_are_within_a_level_and_computed_in_float32(tmp_path, name, share):
    model, photo = load_model(name).with_condition(None), noise(1, 3, 37, 50)
    export_onnx(model, tmp_path / "model.onnx")
    assert 1e-5 < export_onnx(model, tmp_path / "compact.onnx", compact=True) < 1 / 255
    assert (tmp_path / "compact.onnx").stat().st_size < share * (tmp_path / "model.onnx").stat().st_size
    found = in_onnxruntime(tmp_path / "compact.onnx", photo)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, in_onnxruntime(tmp_path / "model.onnx", photo), atol=1 / 255, rtol=0)


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    model = some_model()
    nn.init.constant_(model.conv2.weight, 1e5)
    with pytest.raises(ValueError, match=facts("conv2.weight", "float16")):
        export_onnx(model, tmp_path / "model.onnx", half=True)
    assert not list(tmp_path.iterdir())


def test_settings_that_contradict_are_refused(tmp_path, capsys):
    for channels, settings, values in ((3, {"luma": True}, (3,)), (1, {"luma": True, "scale": 2}, (2,)),
                                       (1, {"scale": 5}, (5,)), (1, {"half": True, "compact": True}, ("half",))):
        with pytest.raises(ValueError, match=facts(*values)):
            export_onnx(some_model(channels=channels), tmp_path / "model.onnx", **settings)
    assert main(["export", "srcnn-915-q20", "--torch", str(tmp_path / "model.pt2"), "--half"]) == 1
    assert says(capsys.readouterr().err, "--half", "--onnx") and not list(tmp_path.iterdir())


def test_the_onnx_graph_is_the_source_projects_network(tmp_path):
    model = some_model(filters=(64, 32))
    export_onnx(model, tmp_path / "model.onnx", luma=True)
    pads = {"padding": 2, "padding_mode": "replicate"}
    source = nn.Sequential(nn.Conv2d(1, 64, 9, **pads), nn.ReLU(), nn.Conv2d(64, 32, 1, **pads), nn.ReLU(),
                           nn.Conv2d(32, 1, 5, **pads))
    with torch.no_grad():
        for theirs, ours in zip(source.parameters(), model.without_centering().parameters(), strict=True):
            theirs.copy_(ours)
        degraded = noise(1, 1, 19, 26)
        expected = source(degraded).numpy()
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(tmp_path / "model.onnx"))
    by_reference, = reference.run(None, {"input": degraded.numpy()})
    for found in (in_onnxruntime(tmp_path / "model.onnx", degraded), by_reference):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config,operators", [
    ({}, "Pad Conv Relu Conv Relu Pad Conv"),
    ({"kernels": (9, 5, 5), "residual": True}, "Pad Conv Relu Pad Conv Relu Pad Conv Add"),
])
def test_the_onnx_graph_has_nothing_but_its_layers(tmp_path, config, operators):
    export_onnx(some_model(**config), tmp_path / "model.onnx", luma=True)
    loaded = onnx.load(tmp_path / "model.onnx")
    assert " ".join(node.op_type for node in loaded.graph.node) == operators
    assert [entry.version for entry in loaded.opset_import] == [13]
    shapes = [[side.dim_param or side.dim_value for side in end.type.tensor_type.shape.dim]
              for end in (loaded.graph.input[0], loaded.graph.output[0])]
    assert shapes == [["batch", 1, "height", "width"]] * 2


def test_the_onnx_file_says_how_it_is_used(tmp_path):
    export_onnx(some_model(channels=3), tmp_path / "model.onnx", {"name": "mine", "trained on": "mine"})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {
        "name": "mine", "scale": "1", "trained on": "mine", "layout": "NCHW", "channel": "RGB", "channels": "3",
        "range": "[0, 1] in and out", "halo": "6", "multiple": "1", "min_pixels": "5",
    }


def test_the_same_weights_give_the_same_onnx_file_whatever_their_layout_in_memory(tmp_path):
    model = some_model(channels=3)
    export_onnx(model, tmp_path / "model.onnx")
    export_onnx(model.to(memory_format=torch.channels_last), tmp_path / "again.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_a_gpu_is_exported_and_stays_there(tmp_path):
    model = some_model().cuda()
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-5
    assert export_torch(model, tmp_path / "model.pt2") < 1e-5
    assert all(parameter.is_cuda for parameter in model.parameters())


@pytest.mark.slow
def test_a_pt2_file_restores_without_this_package(tmp_path):
    model = some_model(residual=True)
    assert export_torch(model, tmp_path / "model.pt2", {"mine": "2"}, luma=True) < 1e-5
    shapes = ((1, 1, 5, 5), (3, 1, 41, 6), (1, 1, 22, 35))
    for number, shape in enumerate(shapes):
        np.save(tmp_path / f"degraded{number}.npy", noise(*shape).numpy())
    command = [sys.executable, "-c", WITHOUT_SRCNN, tmp_path / "model.pt2", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)
    assert (notes["min_pixels"], notes["halo"], notes["mine"]) == ("5", "6", "2")
    for number, shape in enumerate(shapes):
        expected = model(noise(*shape)).detach().numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"restored{number}.npy"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [{"kernels": (9, 5, 5), "channels": 3}, {"kernels": (1, 5, 5)}], ids=str)
def test_a_pt2_file_restores_photos_of_any_size(tmp_path, config):
    model = some_model(**config)
    export_torch(model, tmp_path / "model.pt2")
    network = torch.export.load(tmp_path / "model.pt2").module()
    for batch, height, width in ((1, 5, 9), (4, 37, 5), (2, 18, 27)):
        degraded = noise(batch, 3, height, width)
        torch.testing.assert_close(network(degraded), PhotoNetwork(model)(degraded), atol=1e-5, rtol=0)


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_a_file_that_computes_something_else_is_not_left_behind(tmp_path, monkeypatch, write):
    program, other = export._trace, some_model(residual=True)
    if write is export_torch:
        monkeypatch.setattr(export, "_trace", lambda model, *settings: program(PhotoNetwork(other), *settings))
    else:
        monkeypatch.setattr(SRCNN, "forward", lambda model, degraded, *_: 0.5 * degraded)  # of the same size
    with pytest.raises(ValueError, match=facts(tmp_path / "model.out", "5x5")):
        write(some_model(), tmp_path / "model.out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_nothing_is_printed_and_nothing_but_the_file_is_written(tmp_path, capfd, write):
    write(some_model(), tmp_path / "model.out")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.out"]


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_a_missing_folder_is_named(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=facts(tmp_path / "nowhere")):
        write(some_model(), tmp_path / "nowhere" / "model.out")


def test_without_onnx_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=facts("pip install 'srcnn[export]'")):
        export_onnx(some_model(), tmp_path / "model.onnx")


def test_without_onnx_runtime_nothing_is_said_to_be_compared(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_onnx(some_model(), tmp_path / "model.onnx") is None
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


COLOUR = {"channels": 3, "unshuffle": 2, "ycbcr": True}


@pytest.mark.parametrize("config", [
    UNetConfig((4, 6, 8), 1), UNetConfig((3, 4), 2, 3), UNetConfig((5,)), UNetConfig((4, 6), 1, unshuffle=4),
    UNetConfig((4, 6, 8), 2, **COLOUR), UNetConfig((5,), 1, 3, ycbcr=True),
], ids=lambda config: "-".join(map(str, vars(config).values())))
def test_a_u_net_restores_photos_of_any_size_in_other_programs(tmp_path, config):
    model = UNet(config, centred=True)
    initialize(model, "pytorch", 0)
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-5 and export_torch(model, tmp_path / "model.pt2") < 1e-5
    network = torch.export.load(tmp_path / "model.pt2").module()
    for batch, height, width in ((1, 2, 3), (3, 24, 8), (2, 31, 18), (1, 64, 113)):
        degraded = noise(batch, 3, height, width)
        expected = PhotoNetwork(model)(degraded).detach()
        assert (expected - degraded).abs().max() > 1e-3
        np.testing.assert_allclose(in_onnxruntime(tmp_path / "model.onnx", degraded), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(network(degraded), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def conditioned():
    model = UNet(UNetConfig((4, 6, 8), 2, **COLOUR, condition=True), centred=True)
    initialize(model, "pytorch", 0)
    nn.init.normal_(model.modulation[2].weight, std=0.3)
    return model


def test_the_condition_is_an_input_of_the_files(tmp_path, conditioned):
    for write, name in ((export_onnx, "model.onnx"), (export_torch, "model.pt2")):
        assert write(conditioned, tmp_path / name) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["input", "condition"]
    assert f"(N, {CONDITION_SIZE})" in session.get_modelmeta().custom_metadata_map["condition"]
    network = torch.export.load(tmp_path / "model.pt2").module()
    for batch, height, width in ((1, 3, 2), (3, 31, 18)):
        degraded, condition = noise(batch, 3, height, width), noise(batch, CONDITION_SIZE)
        expected = conditioned(degraded, condition).detach().clamp(0, 1)
        assert (expected - conditioned(degraded)).abs().max() > 1e-3
        found, = session.run(None, {"input": degraded.numpy(), "condition": condition.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(network(degraded, condition), expected, atol=1e-5, rtol=0)


def test_the_command_writes_it_for_one_quality(tmp_path, conditioned):
    save_model(conditioned, tmp_path / "model.safetensors")
    arguments = ["export", str(tmp_path / "model.safetensors"), "--onnx", str(tmp_path / "model.onnx")]
    assert main([*arguments, "--quality", "35"]) == 0
    degraded, condition = noise(1, 3, 21, 34), torch.from_numpy(condition_of_quality(35))[None]
    expected = conditioned(degraded, condition).detach().clamp(0, 1)
    np.testing.assert_allclose(in_onnxruntime(tmp_path / "model.onnx", degraded), expected, atol=1e-5, rtol=0)
    told = onnx.load(tmp_path / "model.onnx").metadata_props
    assert {entry.key: entry.value for entry in told}["quality"] == "35"
    for model, quality in ((tmp_path / "model.safetensors", "0"), ("srcnn-915-q20", "35")):
        assert main(["export", str(model), "--onnx", str(tmp_path / "other.onnx"), "--quality", quality]) != 0
    assert not (tmp_path / "other.onnx").exists()


@dataclass(frozen=True)
class OwnConfig:
    channels: int = 3


class Own(Network):
    """Of two scales, for RGB, conditioned, padded to a multiple and cropped: without a graph in onnx_graph.py."""

    config_class, conditioned, multiple, receptive_radius = OwnConfig, True, 2, 5

    def __init__(self, config):
        super().__init__(config)
        self.down, self.up = nn.Conv2d(3, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        self.told = nn.Linear(CONDITION_SIZE, 8)

    def forward(self, degraded, condition=None):
        height, width = degraded.shape[-2:]
        maps = self.down(functional.pad(degraded, (0, width % 2, 0, height % 2), mode="replicate"))
        if condition is not None:
            maps = maps * (1 + self.told(condition)[..., None, None])
        return degraded + self.up(functional.silu(maps))[..., :height, :width]


@pytest.fixture
def own():
    torch.manual_seed(0)
    yield register_network(Own)(OwnConfig())
    del base.NETWORKS["Own"]


def test_a_network_without_a_graph_goes_through_pytorchs_exporter(own, tmp_path):
    check_network(own)
    assert export_onnx(own, tmp_path / "own.onnx") < 1e-5
    assert export_torch(own, tmp_path / "own.pt2") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx", providers=["CPUExecutionProvider"])
    assert [end.name for end in session.get_inputs()] == ["input", "condition"]
    assert str(REPOSITORY) not in (tmp_path / "own.onnx").read_bytes().decode("latin1")
    with pytest.raises(ValueError, match="scale 1"):
        export_onnx(own, tmp_path / "twice.onnx", scale=2)
    assert not (tmp_path / "twice.onnx").exists()
