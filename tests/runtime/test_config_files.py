"""Shipped configs: listed, found by name, copied."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from messages import facts

from srcnn.__main__ import main
from srcnn.runtime.config_files import CONFIGS, copy_config, find_config, shipped_configs
from srcnn.runtime.errors import UserError
from srcnn.runtime.settings import parse

ROOT = Path(__file__).parents[2]
PROGRAMS = ("make", "accelerate", "python", "wandb", "mkdir", "srcnn")


@dataclass(frozen=True)
class Config:
    resize: str = ""
    val_fraction: float = 0.0


def test_each_config_begins_with_a_sentence_on_what_it_is():
    texts = shipped_configs()
    assert texts.keys() == {path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    for text in texts.values():
        assert text.endswith((".", "?")) and text.split()[0] not in PROGRAMS


def test_a_config_is_found_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("shards.yaml") == CONFIGS / "shards.yaml" and find_config("no.yaml") == Path("no.yaml")
    assert find_config("../configs/shards.yaml") == Path("../configs/shards.yaml")  # a path is not a name
    Path("shards.yaml").write_text("resize: mine")
    assert parse(Config, "test", "", ["--config", "shards.yaml"]).resize == "mine"


@pytest.mark.parametrize("words", [["--config", "mine.yaml"], ["--config=mine.yaml"]])
def test_the_command_line_takes_the_name_of_a_shipped_config(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srcnn.runtime.config_files.CONFIGS", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped/mine.yaml").write_text("# Mine.\nresize: theirs")
    assert parse(Config, "test", "", [*words, "--val_fraction", "0.5"]) == Config("theirs", 0.5)


def test_a_name_that_is_neither_is_told_with_the_command_that_lists_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse(Config, "test", "", ["--config", "nothing.yaml"])
    assert "srcnn configs" in capsys.readouterr().err


def test_the_command_lists_and_copies_and_overwrites_nothing(tmp_path, capsys):
    assert main(["configs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(shipped_configs())
    assert main(["configs", "train.yaml", "accelerate/cpu.yaml", "-o", str(tmp_path / "new/folder")]) == 0
    copy = tmp_path / "new/folder/train.yaml"
    assert capsys.readouterr().out.splitlines()[0] == str(copy)
    assert copy.read_bytes() == (ROOT / "configs/train.yaml").read_bytes()
    copy.write_text("mine")
    assert main(["configs", "train.yaml", "-o", str(copy.parent)]) == 1 and copy.read_text() == "mine"
    with pytest.raises(UserError, match=facts("../setup.cfg", "srcnn configs")):
        copy_config("../setup.cfg", tmp_path)
