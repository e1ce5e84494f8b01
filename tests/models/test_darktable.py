"""Packages for darktable, checked by the rules of its importer: src/common/ai/restore.c, darktable-ai's validate.py."""

import json
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from messages import says

from srcnn.__main__ import main
from srcnn.models.darktable import export_darktable
from srcnn.models.export import PhotoNetwork
from srcnn.models.weights import load_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
REQUIRED = {"id", "name", "description", "task", "backend", "version"}  # darktable-ai, models/validate.py


@pytest.mark.parametrize("name,scale,identity,network", [
    ("srcnn-915-q20", 1, "denoise-srcnn-915-q20", "model.onnx"),
    ("unet-jpeg", 1, "denoise-unet-jpeg", "model.onnx"),
    ("srcnn-915-x2", 2, "upscale-srcnn-915-x2", "model_x2.onnx"),
])
def test_a_package_is_what_darktable_imports(tmp_path, name, scale, identity, network):
    path = tmp_path / "mine.dtmodel"
    assert main(["export", name, "--darktable", str(path)]) == 0
    with zipfile.ZipFile(path) as package:
        assert package.testzip() is None
        assert package.namelist() == [f"{identity}/config.json", f"{identity}/{network}"]
        config = json.loads(package.read(f"{identity}/config.json"))
        content = package.read(f"{identity}/{network}")
    assert REQUIRED <= config.keys() and all(config[key] for key in REQUIRED)
    assert (config["id"], config["backend"], config["tiling"]) == (identity, "onnx", True)
    assert config["task"] == identity.split("-")[0]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,), (result,) = session.get_inputs(), session.get_outputs()
    assert image.type == result.type == "tensor(float)" and image.shape[1] == result.shape[1] == 3
    assert all(isinstance(side, str) for side in (*image.shape[2:], *result.shape[2:])), "any tile"
    tile = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    found, = session.run(None, {image.name: tile.numpy()})
    expected = PhotoNetwork(load_model(name).with_condition(None), scale)(tile).detach()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_the_overlap_of_darktables_tiles_is_enough(tmp_path):
    """Tiles of 256 pixels with 64 around the 128 that are used, as tiles of the whole photo."""
    path = tmp_path / "mine.dtmodel"
    assert main(["export", "unet-jpeg", "--quality", "20", "--darktable", str(path)]) == 0
    with zipfile.ZipFile(path) as package:
        session = onnxruntime.InferenceSession(package.read(package.namelist()[1]))
    photo = np.random.default_rng(0).random((1, 3, 384, 384), np.float32)
    whole, = session.run(None, {"input": photo})
    tile, = session.run(None, {"input": photo[..., 64:320, 64:320]})
    assert 255 * np.abs(tile[..., 64:-64, 64:-64] - whole[..., 128:256, 128:256]).max() < 1


def test_the_network_has_one_input_from_python_too(tmp_path):
    export_darktable(load_model("unet-jpeg"), tmp_path / "mine.dtmodel")
    with zipfile.ZipFile(tmp_path / "mine.dtmodel") as package:
        session = onnxruntime.InferenceSession(package.read(package.namelist()[1]))
    assert [one.name for one in session.get_inputs()] == ["input"]


def test_a_missing_package_is_told_of_the_file_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'mine.dtmodel'))}: .*srcnn\[export\]"):
        export_darktable(load_model("srcnn-915-q20"), tmp_path / "mine.dtmodel")


def test_the_same_weights_give_the_same_package(tmp_path):
    for name in ("first", "second"):
        assert main(["export", "srcnn-915-q20", "--darktable", str(tmp_path / name)]) == 0
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("name,options,told", [
    ("srcnn-915-x3", [], [3, 4]), ("srcnn-915-q20", ["--luma"], ["--luma"]),
    ("unet-jpeg", ["--condition"], ["--condition"]),
])
def test_what_darktable_lacks_is_refused(tmp_path, capsys, name, options, told):
    assert main(["export", name, "--darktable", str(tmp_path / "mine.dtmodel"), *options]) == 1
    assert says(capsys.readouterr().err, *told) and not list(tmp_path.iterdir())
