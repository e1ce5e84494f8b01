"""Networks, losses, damages and optimizers of one's own, from a file outside the package: that of docs/extending.md."""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY, quiet_env
from messages import says
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small import draw_photo, small_config, small_shards
from torch.utils.data import DataLoader

import srcnn
from srcnn.__main__ import main
from srcnn.commands.doctor import DoctorConfig, doctor
from srcnn.models.base import NETWORKS, make_network
from srcnn.models.weight_files import read_weights
from srcnn.models.wrapped import check_network
from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.files import sha256_of
from srcnn.runtime.plugins import NotRegistered, as_kind, load_plugins
from srcnn.runtime.settings import parse, to_yaml
from srcnn.training.components import starting_network
from srcnn.training.config import TrainConfig
from srcnn.training.loss import LOSSES
from srcnn.training.optimizer import OPTIMIZERS, OptimizerConfig
from srcnn.training.trainer import train

GUIDE = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
SMALL = ["--total_samples", "64", "--batch_size_per_process", "8", "--log_every_samples", "32",
         "--validate_every_samples", "32", "--mixed_precision", "no", "--trackers", "[]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """my.py and my.yaml, as the guide has them."""
    folder = tmp_path_factory.mktemp("plugin")
    for language, name in (("python", "my.py"), ("yaml", "my.yaml")):
        (folder / name).write_text(re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[1], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


def config_of(folder, shards, run, *more):
    return parse(TrainConfig, "test", "", [
        "--plugins", str(folder / "my.py"), "--config", str(folder / "my.yaml"), "--shards", str(shards),
        "--run", str(run), *SMALL, *more])


@pytest.fixture(scope="module")
def run(folder, shards, tmp_path_factory):
    config = config_of(folder, shards, tmp_path_factory.mktemp("runs") / "whole")
    assert train(config)["val/gain"] > 0
    return Path(config.run)


def test_a_run_that_was_stopped_continues_to_the_same_bits(folder, shards, run, tmp_path):
    config = config_of(folder, shards, tmp_path / "parts")
    train(replace(config, total_samples=32))
    train(config)
    whole, parts = (srcnn.load_model(path) for path in (run, tmp_path / "parts"))
    assert type(parts) is NETWORKS["Tiny"] and parts.config.width == 24
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in parts.state_dict().items())


def test_a_photo_is_restored_in_tiles_as_whole_and_by_the_command(folder, run, tmp_path):
    photo = draw_photo(3, 61, 83)
    whole, tiled = (srcnn.restore(photo, run, side, exact=True) for side in (96, 24))
    assert np.array_equal(whole, tiled) and not np.array_equal(whole, photo)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = ["--plugins", str(folder / "my.py"), "--model", str(run), "--exact", "-o", str(tmp_path / "out.png")]
    assert main(["restore", str(tmp_path / "photo.png"), *arguments]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), whole)


@pytest.mark.parametrize("half", [False, True])
def test_it_is_exported_to_onnx_as_onnx_runtime_computes_it(folder, run, tmp_path, half):
    path = tmp_path / "mine.onnx"
    assert main(["export", "--plugins", str(folder / "my.py"), str(run), "--luma", "--onnx", str(path),
                 *["--half"] * half]) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about, model = session.get_modelmeta().custom_metadata_map, srcnn.load_model(run)
    assert (about["halo"], about["channels"]) == ("3", "1")
    assert [end.shape for end in session.get_inputs()] == [["batch", 1, "height", "width"]]
    for shape in ((1, 1, 1, 1), (2, 1, 13, 40)):
        pixels = torch.rand(shape)
        found = session.run(None, {"input": pixels.numpy().astype(np.float16 if half else np.float32)})[0]
        torch.testing.assert_close(torch.from_numpy(found).float(), model(pixels), atol=2e-3 if half else 1e-5, rtol=0)


def test_a_saved_folder_is_loaded_by_its_class_and_by_any_network(run, tmp_path):
    model = srcnn.load_model(run)
    model.save_pretrained(tmp_path, run=run)
    for loaded in (type(model).from_pretrained(tmp_path), srcnn.Network.from_pretrained(tmp_path)):
        assert loaded.config == model.config and torch.equal(loaded.layers[0].weight, model.layers[0].weight)
    with pytest.raises(ValueError):
        srcnn.SRCNN.from_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert says(card, "Tiny", "width 24", 'load_plugins(["my.py"])')


def test_the_plugin_is_recorded_with_its_hash(folder, run):
    record = {"my.py": sha256_of(folder / "my.py")}
    assert read_weights(run / "best" / "model.safetensors")[1]["plugins"] == record
    assert srcnn.runtime.strict_yaml.read_yaml(run / "config.yaml")["plugins"] == record
    assert TrainConfig().plugins == {}


def test_the_resolved_config_reads_back_the_same(folder, shards, tmp_path):
    config = config_of(folder, shards, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse(TrainConfig, "test", "", ["--config", str(tmp_path / "config.yaml")]) == config
    by_keys = parse(TrainConfig, "test", "", ["--network.name", "Tiny", "--network.width", "24", "--loss", "edges"])
    assert by_keys.architecture == config.architecture and by_keys.loss == "edges"


def in_a_new_process(*arguments):
    code = "import sys; from srcnn.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          env=quiet_env(), timeout=120)


def test_without_the_plugin_nothing_of_the_run_folder_is_run_and_it_is_named(run, tmp_path, folder):
    hostile = tmp_path / "runs"
    hostile.mkdir()
    (hostile / "my.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    (hostile / "config.yaml").write_text((run / "config.yaml").read_text() + "\n")
    found = in_a_new_process("export", run, "--onnx", tmp_path / "a.onnx")
    assert found.returncode == 1 and says(found.stderr, "Tiny", "my.py", "--plugins"), found.stderr
    assert found.stderr.count("\n") == 1
    found = subprocess.run([sys.executable, "-m", "srcnn", "train", "--config", "config.yaml"], cwd=hostile, text=True,
                           capture_output=True, env=quiet_env() | {"PYTHONPATH": str(REPOSITORY)}, timeout=120)
    assert found.returncode == 2 and says(found.stderr, "Tiny", "my.py", "--plugins"), found.stderr
    assert not (tmp_path / "was run").exists()


def test_a_plugin_that_changed_is_warned_of(folder, shards, tmp_path, caplog, monkeypatch):
    config = config_of(folder, shards, tmp_path / "run")
    train(replace(config, total_samples=32))
    monkeypatch.setitem(OPTIMIZERS.origins, "nadam", {"my.py": "0" * 64})
    train(replace(config))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(says(text, "my.py", "0" * 64) for text in warnings)


def test_another_width_in_the_same_folder_is_refused(folder, shards, run):
    with pytest.raises(DistributedError) as caught:
        train(config_of(folder, shards, run, "--network", '{"name": "Tiny", "width": 8}'))
    assert says(caught.value, "network.width", 24, 8)


def test_the_doctor_knows_the_plugin(folder, shards, run):
    load_plugins([folder / "my.py"])
    config = DoctorConfig(run=str(run), shards=str(shards), network={"name": "Tiny", "width": 24}, ranks=1, trackers=[])
    assert [finding.level for finding in doctor(config)["network"]] == ["ok"]


CLASS = """
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional
from srcnn import Network, register_network

@dataclass(frozen=True)
class Config:
    channels: int = 1

@register_network
class {name}(Network):
    config_class, receptive_radius = Config, 4
    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(1))
        {more}
    def forward(self, degraded):
        return {restored}
"""


def starts_with(network, folder, shards):
    """The start of a training of a network in a plugin."""
    name = Path(folder).name.rstrip("0")
    (folder / f"{name}.py").write_text(CLASS.format(name=name, **network))
    load_plugins([folder / f"{name}.py"])
    config = small_config(folder / "run", shards, model=TrainConfig().model, network={"name": name})
    return name, lambda: starting_network(config, torch.device("cpu"))


@pytest.mark.parametrize("restored,more,told", [
    ("degraded[..., 1:]", "", ["(2, 1, 1, 1)"]),
    ("degraded", "self.register_buffer('count', torch.zeros(3, dtype=torch.int64))", ["count"]),
    ("degraded", "self.second = nn.Module(); self.second.weight = self.weight", ["same memory"]),
], ids=["shape", "whole numbers", "shared"])
def test_a_network_that_cannot_be_used_or_saved_is_refused(shards, tmp_path, restored, more, told):
    name, start = starts_with({"restored": restored, "more": more}, tmp_path, shards)
    with pytest.raises(ValueError) as caught:
        start()
    assert says(caught.value, name, *told)


@pytest.mark.parametrize("restored,told", [
    ("functional.avg_pool2d(degraded, 11, 1, 5) * self.weight", ["receptive_radius", 4, 5]),
    ("degraded - degraded.mean(dim=(2, 3), keepdim=True)", ["receptive_radius", 4]),
    ("degraded * torch.arange(degraded.shape[-1]).remainder(2)", ["begins"]),
], ids=["further", "all", "position"])
def test_a_network_whose_tiles_will_differ_is_warned_of(shards, tmp_path, restored, told):
    name, start = starts_with({"restored": restored, "more": "pass"}, tmp_path, shards)
    with pytest.warns(UserWarning) as caught:
        start()
    assert says(caught[0].message, name, *told)


def test_a_network_that_keeps_its_promise_is_not_warned_of(shards, tmp_path, recwarn):
    starts_with({"restored": "functional.avg_pool2d(degraded, 9, 1, 4)", "more": "pass"}, tmp_path, shards)[1]()
    for network in (srcnn.UNetConfig((4, 6, 4), 1, unshuffle=2), srcnn.ModelConfig(kernels=(9, 5, 5))):
        check_network(make_network(network))
    assert not recwarn


def test_random_layers_continue_to_the_same_bits(shards, tmp_path):
    (tmp_path / "dropping.py").write_text("""
from dataclasses import dataclass
from torch import nn
from srcnn import Network, register_network

@dataclass(frozen=True)
class DroppingConfig:
    channels: int = 1

@register_network
class Dropping(Network):
    config_class, receptive_radius = DroppingConfig, 1
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(8, 1, 1))
    def forward(self, degraded):
        return degraded + self.layers(degraded)
""")
    load_plugins([tmp_path / "dropping.py"])
    config = small_config(tmp_path / "whole", shards, model=TrainConfig().model, network={"name": "Dropping"},
                          save_every_samples=8)
    train(config)
    parts = replace(config, run=str(tmp_path / "parts"))
    train(replace(parts, total_samples=32))
    train(parts)
    whole, parts = (srcnn.load_model(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_schedule_free_adamw_saves_its_average_and_continues_to_the_same_bits(shards, tmp_path):
    optimizer = OptimizerConfig(name="adamw_schedulefree", lr=5e-3, warmup_samples=32)
    config = small_config(tmp_path / "whole", shards, optimizer=optimizer, total_samples=320)
    values = train(config)
    assert values["val/gain"] > 0 and values["val/psnr"] != values["val/psnr_last_weights"]
    parts = replace(config, run=str(tmp_path / "parts"), save_every_samples=40)
    train(replace(parts, total_samples=160))
    assert train(parts)["val/psnr"] == values["val/psnr"]
    whole, parts = (srcnn.load_model(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_same_network_by_either_key():
    unet = TrainConfig(network={"name": "UNet", "widths": [4, 6], "num_blocks": 1})
    assert unet.architecture == srcnn.UNetConfig((4, 6), 1) and unet.tiles_at_once("cpu", 32) == 8
    assert TrainConfig(network={"name": "SRCNN", "residual": True}).architecture == srcnn.ModelConfig(residual=True)


@pytest.mark.parametrize("changes,told", [
    ({"network": {"name": "UNett"}}, ["UNett", "UNet", "--plugins"]),
    ({"network": {"width": 3}}, ["network", "''"]),
    ({"network": {"name": "UNet", "width": [4]}}, ["UNet", "width", "widths"]),
    ({"network": {"name": "UNet", "widths": 4}}, ["widths", 4]),
    ({"network": {"name": "UNet", "widths": [4]}, "unet": srcnn.UNetConfig((4,))}, ["network", "unet"]),
    ({"optimizer": OptimizerConfig(name="adam ")}, ["adam", "adamw"]),
    ({"optimizer": OptimizerConfig(settings={"betas": [0.9]})}, ["betas", "0.9"]),
    ({"loss": {"charbonnier": {"epsilon": math.nan}}}, ["charbonnier", "epsilon", "nan"]),
    ({"loss": {"charbonnier": {"epsilon": 10**400}}}, ["charbonnier", "epsilon", "1000"]),
    ({"loss": {"l1": {"weight": math.inf}}}, ["l1", "weight", "inf"]),
    ({"loss": {"l1": 0.5}}, ["l1", "0.5", "weight"]),
    ({"plugins": {"theirs.py": "00"}, "network": {"name": "Theirs"}}, ["Theirs", "theirs.py", "--plugins"]),
])
def test_what_is_wrong_with_a_name_or_a_setting_is_said(changes, told):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**changes)
    assert says(caught.value, *told)


@dataclass(frozen=True)
class OwnConfig:
    channels: int = 1


@dataclass(frozen=True)
class NamedConfig(OwnConfig):
    name: str = ""


@pytest.mark.parametrize("bases,config,told", [
    ((torch.nn.Module,), OwnConfig, ["srcnn.Network"]), ((srcnn.Network,), None, ["config_class", "channels"]),
    ((srcnn.Network,), OptimizerConfig, ["config_class", "channels"]), ((srcnn.Network,), NamedConfig, ["name"]),
    ((srcnn.UNet,), srcnn.UNetConfig, ["UNet", "config_class"]),
])
def test_a_class_that_is_no_network_is_not_registered(bases, config, told):
    with pytest.raises(ValueError) as caught:
        srcnn.register_network(type("Own", bases, {"config_class": config}))
    assert says(caught.value, "Own", *told) and "Own" not in NETWORKS


@pytest.mark.parametrize("name,told", [("missing.py", "missing.py"), ("my.yaml", "my.yaml")])
def test_what_is_no_plugin_is_named(folder, name, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        load_plugins([folder / name])


def test_what_a_plugin_cannot_import_is_no_package_of_ours(tmp_path, capsys):
    (tmp_path / "importing.py").write_text("import a_package_of_mine")
    with pytest.raises(SystemExit):
        main(["doctor", "--plugins", str(tmp_path / "importing.py")])
    error = capsys.readouterr().err
    assert says(error, "importing.py", "a_package_of_mine") and "srcnn[train]" not in error
    assert "plugin_importing" not in sys.modules


def test_further_arguments_are_no_settings_and_hints_have_to_be_there(monkeypatch):
    monkeypatch.setattr(LOSSES, "origins", dict(LOSSES.origins))

    def lenient(restored, clean, *more, share: float = 1.0, **others):
        return (restored - clean).abs().mean()

    def hinted(restored: "Missing", clean: "Missing"):  # noqa: F821
        return (restored - clean).abs().mean()

    for loss in (lenient, hinted):
        monkeypatch.setitem(LOSSES, loss.__name__, loss)
    assert LOSSES.settings("lenient", {"share": 2}) == {"share": 2.0}
    with pytest.raises(ValueError, match="others"):
        LOSSES.settings("lenient", {"others": 1})
    with pytest.raises(ValueError, match="hinted.*Missing"):
        LOSSES.settings("hinted", {})


def test_a_second_file_of_the_same_name_is_refused_and_the_first_loaded_once(folder, tmp_path):
    load_plugins([folder / "my.py", folder / "my.py"])
    (tmp_path / "my.py").write_text("")
    with pytest.raises(ValueError, match=r"my\.py"):
        load_plugins([tmp_path / "my.py"])


def test_a_weights_file_cannot_name_anything_but_a_registered_network(tmp_path, run):
    with safe_open(run / "best" / "model.safetensors", "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["srcnn"])
    for change, told in (({"network": "os.system"}, "os.system"), ({"network": ["Tiny"]}, "Tiny"),
                         ({"width": "24"}, "width"), ({"width": 8}, "layers.0"), ({"depth": 8}, "depth"),
                         ({"network": "UNet"}, "U-Net")):
        save_file(tensors, tmp_path / "a.safetensors", {"srcnn": json.dumps(header | change)})
        with pytest.raises(ValueError, match=re.escape(told)):
            srcnn.load_model(tmp_path / "a.safetensors")


def test_a_terminal_obeys_no_names_in_a_strangers_files(tmp_path, run, capsys):
    with safe_open(run / "best" / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = {"network": "Theirs\x1b[2J", "plugins": {"\x1b[31mtheirs.py\x9b": "00"}}
    save_file(tensors, tmp_path / "a.safetensors", {"srcnn": json.dumps(header)})
    assert main(["export", str(tmp_path / "a.safetensors"), "--onnx", str(tmp_path / "a.onnx")]) == 1
    error = capsys.readouterr().err
    assert says(error, "Theirs", r"\x1b[31mtheirs.py\x9b") and "\x1b" not in error and "\x9b" not in error


def test_plain_values_become_what_type_hints_ask_for():
    assert as_kind([1, 2], tuple[float, ...], "") == (1.0, 2.0) and as_kind(None, int | None, "") is None
    assert type(as_kind(3, float | None, "")) is float and as_kind([[1], [2]], list[tuple[int]], "") == [(1,), (2,)]
    for value, kind in ((True, int), (1.5, int), ("1", float), ([1], tuple[int, int]), ("a", bool), (1, bool)):
        with pytest.raises(ValueError, match="setting"):
            as_kind(value, kind, "setting")
    with pytest.raises(NotRegistered, match="Tiny2"):
        NETWORKS["Tiny2"]


@pytest.mark.slow
def test_workers_that_are_spawned_load_the_plugin(folder, tmp_path):
    load_plugins([folder / "my.py"])
    shards = small_shards(tmp_path, contents="clean")
    degradation = srcnn.data.training_pairs.DegradationConfig(24, damages={"salt_and_pepper": {"share": 0.3}})
    stream = srcnn.PairStream(str(shards / "train"), batch_size=4, degradation=degradation)
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    batch = next(iter(loader))
    assert float((batch.degraded == batch.clean).float().mean()) < 0.6


@pytest.mark.slow
def test_two_ranks_load_the_plugin(folder, shards, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu2.yaml",
         "launch/train.py", "--plugins", folder / "my.py", "--config", folder / "my.yaml", "--shards", shards, "--run",
         tmp_path / "run", *SMALL], cwd=REPOSITORY, env=quiet_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert type(srcnn.load_model(tmp_path / "run")) is NETWORKS["Tiny"]
