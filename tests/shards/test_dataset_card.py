"""README.md beside the shards: what it tells, and that `datasets` loads the folder by it."""

import re

import numpy as np
import pytest
import yaml
from conftest import make

from shards.dataset_card import make_dataset_card
from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import read_manifest
from srcnn.runtime.storage import Folder


def manifests_of(out):
    return [read_manifest(Folder(out / split)) for split in ("train", "val")]


def test_the_card_tells_numbers_damage_and_hashes(tmp_path, photos_folder, capsys):
    options = ("--photos", photos_folder(4), "--out", tmp_path / "out")
    assert make(*options) == 0
    card = (tmp_path / "out/README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "unknown" and header["size_categories"] == ["n<1K"]
    paths = [{"split": split, "path": f"{split}/*.tar"} for split in ("train", "val")]
    assert header["configs"] == [{"config_name": "default", "data_files": paths}]
    settings = yaml.safe_load(re.search("```yaml\n(.*?)```", card, re.S)[1])
    for manifest in manifests_of(tmp_path / "out"):
        row = f"| {manifest.split} | {manifest.num_samples} | {manifest.photos.num_photos} |"
        assert row in card and manifest.hash() in card and f"{manifest.degraded_psnr:.2f}" in card
        assert settings == manifest.config


def test_a_card_that_somebody_has_edited_stays(tmp_path, photos_folder, capsys):
    options, card = ("--photos", photos_folder(4), "--out", tmp_path / "out"), tmp_path / "out/README.md"
    assert make(*options) == 0
    edited = card.read_text().replace("unknown", "cc-by-4.0")
    card.write_text(edited)
    assert make(*options) == 0
    assert card.read_text() == edited and "README.md" not in capsys.readouterr().err
    card.write_text("Mine.")
    assert make(*options) == 0
    assert card.read_text() == "Mine." and str(card) in capsys.readouterr().err


def test_splits_without_samples_are_left_out(tmp_path, photos_folder):
    assert make("--photos", photos_folder(2), "--out", tmp_path / "out", "--val_fraction", 0) == 0
    header = yaml.safe_load(make_dataset_card(manifests_of(tmp_path / "out")).split("---\n")[1])
    assert header["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("options", [(), ("--encoding", "png", "--color", "rgb"), ("--contents", "clean")],
                         ids=["npy", "png", "clean"])
def test_datasets_loads_the_folder(tmp_path, photos_folder, monkeypatch, streaming, options):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    assert make("--photos", photos_folder(4), "--out", out, *options) == 0
    for split in ("train", "val"):
        shards = ShardDataset(out / split)
        config = ["val"] if split == "val" and "clean" in options else []
        cache = str(tmp_path / "hf")
        rows = list(datasets.load_dataset(str(out), *config, split=split, streaming=streaming, cache_dir=cache))
        assert len(rows) == len(shards)
        for row, (clean, degraded) in zip(rows, shards, strict=True):
            pictures = [row[member] for member in shards.manifest.members]
            assert np.array_equal(pictures[0], clean) and np.array_equal(pictures[-1], degraded)
