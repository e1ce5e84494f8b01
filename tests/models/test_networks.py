"""The networks: the source project's layout and result, padding, centring, weights on disk."""

import pytest
import safetensors.torch
import torch
from messages import facts
from torch import nn

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weight_files import DEFAULT_MODEL, find_weights
from srcnn.models.weights import initialize, load_model, save_model, save_state_dict
from srcnn.runtime.errors import UserError


class SourceSRCNN(nn.Module):
    """The source project's network, written out: every layer padded by 2 with replicated edges."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 9, padding=2, padding_mode="replicate")
        self.conv2 = nn.Conv2d(64, 32, 1, padding=2, padding_mode="replicate")
        self.conv3 = nn.Conv2d(32, 1, 5, padding=2, padding_mode="replicate")

    def forward(self, x):
        return self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


def some_model(seed=0, centred=False, **config):
    model = SRCNN(ModelConfig(**config), centred)
    initialize(model, "pytorch", seed)
    return model


@pytest.mark.parametrize("size", [(128, 128), (33, 47), (5, 9)])
def test_srcnn_equals_the_source_projects_network(size):
    torch.manual_seed(0)
    source, ours = SourceSRCNN(), SRCNN()
    ours.load_state_dict(source.state_dict())
    degraded = torch.rand(2, 1, *size)
    assert ours(degraded).shape == degraded.shape
    torch.testing.assert_close(ours(degraded), source(degraded), rtol=1e-5, atol=1e-6)


def test_srcnn_has_8129_parameters():
    assert sum(parameter.numel() for parameter in SRCNN().parameters()) == 9 * 9 * 64 + 64 + 64 * 32 + 32 + 25 * 32 + 1


def test_checkpoint_pth_loads_in_the_source_project_and_theirs_in_ours(tmp_path):
    ours = some_model()
    save_state_dict(ours, tmp_path / "checkpoint.pth")
    source = SourceSRCNN()
    source.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    degraded = torch.rand(1, 1, 21, 35)
    torch.testing.assert_close(source(degraded), ours(degraded), rtol=1e-5, atol=1e-6)
    torch.save(SourceSRCNN().state_dict(), tmp_path / "theirs.pth")
    assert load_model(tmp_path / "theirs.pth").config == ModelConfig()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model_state_dict": state, "optimizer_state_dict": {"param_groups": []}},
    lambda state: {"params": state},
    lambda state: {"params": {"conv1.weight": torch.zeros(3)}, "params_ema": state},
    lambda state: {"model": state, "args": {"lr": 0.1}},
    lambda state: prefixed(state, "module."),
    lambda state: prefixed(state, "_orig_mod."),
    lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    lambda state: {"n_averaged": torch.tensor(3)} | prefixed(state, "module."),
], ids=range(10))
def test_weights_of_other_programs_are_read_in_the_ways_that_they_are_saved(tmp_path, wrap, is_zip):
    source = SourceSRCNN()
    torch.save(wrap(source.state_dict()), tmp_path / "theirs.pth", _use_new_zipfile_serialization=is_zip)
    loaded = load_model(tmp_path / "theirs.pth")
    assert loaded.config == ModelConfig()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_safetensors_of_wrapped_modules_are_read(tmp_path):
    safetensors.torch.save_file(prefixed(SourceSRCNN().state_dict(), "module."), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").config == ModelConfig()


def test_a_prefix_that_not_all_names_have_is_no_prefix(tmp_path):
    torch.save(prefixed(SourceSRCNN().state_dict(), "module.") | {"conv1.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"module\.conv1"):
        load_model(tmp_path / "a.pth")


def test_a_whole_module_is_refused_with_what_to_do(tmp_path):
    torch.save(SourceSRCNN(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="state_dict"):
        load_model(tmp_path / "a.pth")


def test_paths_may_be_text(tmp_path, monkeypatch):
    model = some_model(filters=(2, 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_model(model, "a.safetensors")
    save_state_dict(model, f"{tmp_path}/a.pth")
    for source in ("a.safetensors", "~/a.pth", tmp_path / "a.pth"):
        assert load_model(source).config == model.config


@pytest.mark.parametrize("kernels", [(9, 1, 5), (9, 3, 5), (9, 5, 5), (11, 3, 7)])
@pytest.mark.parametrize("residual", [False, True])
def test_every_network_keeps_the_size_of_the_photo(kernels, residual):
    model = some_model(kernels=kernels, filters=(8, 4), residual=residual)
    degraded = torch.rand(1, 1, 31, 18)
    assert model(degraded).shape == degraded.shape


@pytest.mark.parametrize("kernels", [(9, 1, 5), (9, 3, 5), (9, 5, 5)])
def test_an_output_pixel_sees_exactly_the_receptive_radius(kernels):
    model = some_model(kernels=kernels, filters=(8, 4)).double()
    side = 4 * model.receptive_radius + 1
    degraded = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    # without ReLU's dead branches, every weight path shows in the gradient
    centre = side // 2
    total = sum(model(degraded + shift)[0, 0, centre, centre] for shift in torch.linspace(-2, 2, 9))
    seen = torch.autograd.grad(total, degraded)[0][0, 0].abs() > 0
    rows = seen.any(1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (centre - model.receptive_radius, centre + model.receptive_radius)


def test_a_residual_network_with_a_silent_last_layer_is_the_identity():
    model = some_model(residual=True)
    nn.init.zeros_(model.conv3.weight)
    nn.init.zeros_(model.conv3.bias)
    degraded = torch.rand(1, 1, 13, 17)
    assert torch.equal(model(degraded), degraded)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_centred_network_is_saved_folded_and_gives_the_same_output(tmp_path, suffix):
    model = some_model(centred=True, residual=True, kernels=(9, 5, 5), filters=(6, 5))
    check_saved_folded(model, tmp_path / f"model{suffix}")


def check_saved_folded(model, path):
    (save_model if path.suffix == ".safetensors" else save_state_dict)(model, path)
    loaded = load_model(path)
    degraded = torch.rand(2, model.config.channels, 19, 23)
    assert not loaded.centred and loaded.config == model.config
    torch.testing.assert_close(loaded(degraded), model(degraded), rtol=1e-5, atol=1e-6)
    again = type(model)(model.config, centred=True)
    again.load_without_centering(loaded)
    torch.testing.assert_close(again(degraded), model(degraded), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_output_and_gradients():
    model = some_model(residual=True).to(memory_format=torch.channels_last)
    degraded = torch.rand(2, 1, 24, 32).to(memory_format=torch.channels_last)
    results = []
    for network in (model, torch.compile(model)):
        model.zero_grad()
        restored = network(degraded)
        restored.square().mean().backward()
        results.append((restored.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_initialization_depends_on_the_seed_alone():
    first, second, other = some_model(3), some_model(3), some_model(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_kaiming_start_with_a_residual_connection_is_nearly_the_identity():
    model = SRCNN(ModelConfig(residual=True), centred=True)
    initialize(model, "kaiming", 0)
    degraded = torch.rand(1, 1, 64, 64)
    assert (model(degraded) - degraded).abs().mean() < 0.01


def test_wrong_weights_are_refused_by_name(tmp_path):
    path = tmp_path / "model.pth"
    state = SRCNN().state_dict()
    torch.save(dict(state) | {"conv1.weight": state["conv1.weight"] * float("nan")}, path)
    with pytest.raises(ValueError, match=facts(path, "conv1.weight", "finite")):
        load_model(path)
    torch.save({"layer.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=facts(path, "SRCNN", "layer.weight")):
        load_model(path)
    torch.save(dict(state) | {"conv2.bias": torch.ones(7)}, path)
    with pytest.raises(ValueError, match=facts(path, "conv2.bias", (7,), (32,))):
        load_model(path)
    for name in ("model.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(b"junk" * 100)
        with pytest.raises(ValueError, match=name):
            load_model(tmp_path / name)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=facts(tmp_path / "evil.pth")):
        load_model(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def test_an_unknown_model_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match=facts("nonesuch", DEFAULT_MODEL)):
        find_weights("nonesuch")


def test_the_shipped_weights_load_by_their_name():
    model = load_model("srcnn-915-q20")
    assert model.config == ModelConfig(residual=True) and not model.training
