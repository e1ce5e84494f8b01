"""The networks of this package in spandrel, and files that tell by their tensors what they are."""

import json

import numpy as np
import pytest
import torch
from messages import facts
from safetensors.torch import load_file, save_file

import srcnn.spandrel
from srcnn.models.export import PhotoNetwork
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.unet import UNet, UNetConfig
from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import initialize, load_model, save_model, save_state_dict

SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
CONFIGS = [
    ModelConfig((9, 5, 5), (8, 4)), ModelConfig(filters=(8, 4), residual=True),
    ModelConfig(filters=(8, 4), channels=3, residual=True), UNetConfig((4, 6), 1),
    UNetConfig((4, 6, 8), 2, 3, unshuffle=2, ycbcr=True, condition=True), UNetConfig((4, 6), 1, 3, unshuffle=4),
]


@pytest.fixture
def loader():
    spandrel = pytest.importorskip("spandrel")
    srcnn.spandrel.install()
    srcnn.spandrel.install()
    return spandrel.ModelLoader()


def some_network(config):
    model = (UNet if isinstance(config, UNetConfig) else SRCNN)(config, centred=True)
    initialize(model, "pytorch", 0)
    return model


@pytest.fixture
def photo():
    return torch.rand(1, 3, 61, 86, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SHIPPED)
def test_spandrel_loads_shipped_weights(loader, photo, name):
    descriptor = loader.load_from_file(WEIGHTS / f"{name}.safetensors")
    assert (descriptor.scale, descriptor.input_channels, descriptor.output_channels) == (1, 3, 3)
    with torch.inference_mode():
        expected = PhotoNetwork(load_model(name))(photo)
    assert torch.equal(descriptor(photo), expected) and not torch.equal(expected, photo)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_spandrel_loads_what_is_saved_here(loader, photo, tmp_path, config, suffix):
    network, path = some_network(config), tmp_path / f"weights{suffix}"
    save_model(network, path) if suffix == ".safetensors" else save_state_dict(network, path)
    descriptor = loader.load_from_file(path)
    assert descriptor.model.network.config == config
    with torch.no_grad():  # as spandrel computes: without gradients layers are fused, and round differently
        expected = PhotoNetwork(load_model(path))(photo)
    assert torch.equal(descriptor(photo), expected)


@pytest.mark.parametrize("name", ["srcnn-915-q20", "unet-jpeg"])
def test_spandrel_runs_them_in_float16(loader, photo, name):
    descriptor = loader.load_from_file(WEIGHTS / f"{name}.safetensors")
    expected, found = descriptor(photo), descriptor.to(dtype=torch.float16)(photo.half())
    assert found.dtype == torch.float16 and 0 < 255 * (found.float() - expected).abs().max() < 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_tensors_alone_tell_the_network(tmp_path, config):
    path = tmp_path / "weights.safetensors"
    save_model(some_network(config), path)
    bare = load_file(path)
    save_file(bare, path)  # without metadata
    assert load_model(path).config == config


def test_files_without_marks_are_read_by_their_metadata(tmp_path):
    path, config = tmp_path / "weights.safetensors", CONFIGS[1]
    network = some_network(config)
    note = {"srcnn": json.dumps({"residual": True})}
    save_file(network.without_centering().state_dict(), path, note)
    assert load_model(path).config == config
    save_file(network.saved_state(), path, {"srcnn": json.dumps({"residual": False})})
    with pytest.raises(ValueError, match=facts(path, "residual")):
        load_model(path)


def test_a_network_that_needs_no_mark_has_the_source_projects_tensors(tmp_path):
    save_state_dict(some_network(CONFIGS[0]), tmp_path / "checkpoint.pth")
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert list(state) == [f"conv{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")]
    assert np.isfinite(state["conv1.bias"].numpy()).all()


def test_what_is_refused_as_ours_is_not_taken_from_spandrel(loader, tmp_path):
    state = some_network(CONFIGS[0]).saved_state()
    torch.save(state | {"conv1.bias": state["conv1.bias"].to(torch.int64)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=facts("weights.pth", "conv1.bias", "floats")):
        load_model(tmp_path / "weights.pth")
