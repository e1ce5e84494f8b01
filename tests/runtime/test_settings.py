from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from srcnn.runtime.config_parser import nearest
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.settings import parse, to_yaml


@dataclass(frozen=True)
class Inner:
    """Inner.

    Args:
        strength: how strong.
    """

    strength: int = 3

    def __post_init__(self) -> None:
        if self.strength < 1:
            raise ValueError(f"strength {self.strength}: expected 1 or more")


@dataclass(frozen=True)
class Outer:
    """Outer.

    Args:
        learning_rate: size of a step.
        mode: which one.
        inner: the inner ones.
        sizes: a list.
        folders: a mapping.
    """

    learning_rate: float = 0.5
    mode: Literal["first", "second"] = "first"
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    folders: dict[str, str] = field(default_factory=dict)


def read(*arguments: str) -> Outer:
    return parse(Outer, "program", "What it does.", list(arguments))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of the error."""
    with pytest.raises(SystemExit) as ended:
        read(*arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "program --help" in lines[1]
    assert lines[0].startswith("program: ")
    return lines[0]


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "mode: second\ninner:\n  strength: 7\n")
    assert read("--config", file, "--inner.strength", "9") == Outer(mode="second", inner=Inner(9))
    assert read("--config", file) == Outer(mode="second", inner=Inner(7))
    assert read() == Outer()


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_exponents_without_a_point_are_numbers(tmp_path: Path, number: str) -> None:
    file = yaml_file(tmp_path, f"learning_rate: {number}\n")
    assert read("--config", file).learning_rate == 0.0001
    assert read("--learning_rate", number).learning_rate == 0.0001


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lerning_rate: 1", "learning_rate"),
        ("strength: 1", "inner.strength"),
        ("inner: {strenght: 1}", "inner.strength"),
        ("modes: first", "mode"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, right: str
) -> None:
    assert re.search(rf"\b{re.escape(right)}\b", refusal(capsys, "--config", yaml_file(tmp_path, wrong)))


def test_an_unknown_option_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "learning_rate" in refusal(capsys, "--learning-rat", "1")
    assert "inner.strength" in refusal(capsys, "--inner.strengh", "1")


def test_a_key_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "--zzzz", "1")
    assert "zzzz" in told and not any(key in told for key in ("learning_rate", "mode", "strength", "sizes", "folders"))
    assert nearest("zzzz", ["learning_rate", "mode"]) == []


def test_a_key_at_the_top_wins_over_one_of_the_same_name_below() -> None:
    assert nearest("scal", ["scale", "inner.scale"]) == ["scale"]


@pytest.mark.parametrize(
    "arguments", [("--learning_rate", "fast"), ("--mode", "third"), ("--inner.strength", "x")]
)
def test_a_wrong_value_is_one_line_that_names_its_key(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    line = refusal(capsys, *arguments)
    assert arguments[0][2:] in line and arguments[1] in line


@pytest.mark.parametrize("arguments,told", [
    (("--learning_rate", "fast"), "learning_rate: expected a number, got fast"),
    (("--learning_rate", ".nan"), "learning_rate: expected a finite number, got nan"),
    (("--learning_rate", "1e999"), "learning_rate: expected a finite number, got inf"),
    (("--mode", "secnd"), "mode: expected first or second, got secnd; did you mean second?"),
    (("--inner.strength", "x"), "inner.strength: expected a whole number, got x"),
    (("--inner.strength", "1e3"), "inner.strength: expected a whole number, got 1000.0; write 1000"),
    (("--sizes", "7"), "sizes: expected [...], such as [1, 2], got 7"),
    (("--folders", "x"), "folders: expected {...}, got x"),
])
def test_what_is_expected_is_said_in_plain_words(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], told: str
) -> None:
    assert refusal(capsys, *arguments) == f"program: {told}"


def test_a_wrong_value_in_a_file_is_said_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "--config", yaml_file(tmp_path, "inner: {strength: much}"))
    assert "inner.strength: expected a whole number, got much" in told


def test_what_the_dataclass_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--inner.strength", "0").endswith("strength 0: expected 1 or more")


def test_yaml_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, "--config", yaml_file(tmp_path, "a: [1\nb: }"))
    assert "nowhere.yaml" in refusal(capsys, "--config", str(tmp_path / "nowhere.yaml"))


def test_abbreviated_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--learning" in refusal(capsys, "--learning", "1")


def test_the_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = Outer(1e-7, "second", Inner(5), [3], {"города": "x0.5"})
    text = to_yaml(config)
    assert read("--config", yaml_file(tmp_path, text)) == config
    assert yaml.safe_load(text)["folders"] == {"города": "x0.5"}


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    shown = capsys.readouterr().out
    for words in ("size of a step", "which one", "how strong", "a mapping", "0.5", "first|second"):
        assert words in shown


SECRETS = ("hunter2", "AKIAEXAMPLE", "c2VjcmV0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ann:hunter2@host:8443/a/b", "https://***@host:8443/a/b"),
        ("https://ann:hun@ter2?hunter2@host/a", "https://***@host/a"),
        ("https://hunter2@github.com/a", "https://***@github.com/a"),
        ("s3://AKIAEXAMPLE:hunter2@bucket/shards", "s3://***@bucket/shards"),
        ("https://h/a?X-Amz-Date=1&X-Amz-Signature=c2VjcmV0&X-Amz-Expires=9",
         "https://h/a?X-Amz-Date=1&X-Amz-Signature=***&X-Amz-Expires=9"),
        ("https://h/a?X-Amz-Credential=AKIAEXAMPLE%2F2026&X-Amz-Security-Token=c2VjcmV0%3D%3D",
         "https://h/a?X-Amz-Credential=***&X-Amz-Security-Token=***"),
        ("https://h/a?sv=2026&sig=c2VjcmV0#part", "https://h/a?sv=2026&sig=***#part"),
        ("https://h/a?AWSAccessKeyId=AKIAEXAMPLE&Signature=c2VjcmV0", "https://h/a?AWSAccessKeyId=***&Signature=***"),
        ("https://h/a?key=hunter2&token=hunter2", "https://h/a?key=***&token=***"),
        ("access_key=AKIAEXAMPLE secret_access_key='hunter2'", "access_key=*** secret_access_key='***'"),
        ("--password=hunter2", "--password=***"),
        ("['https://ann:hunter2@a/b', 'https://c/d?sig=hunter2']", "['https://***@a/b', 'https://c/d?sig=***']"),
    ],
)
def test_credentials_are_taken_out_and_the_rest_stays(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert not any(secret in without_credentials(text) for secret in SECRETS)
    assert without_credentials(expected) == expected


@pytest.mark.parametrize(
    "text",
    ["", "data/shards", "s3://bucket/shards", "https://host/a?page=2&design=3", "sigma=0.5", "num_tokens_seen 3",
     "ann@host.org", "monkey=3", "https://host/@scope/package", "/a//b@c"],
)
def test_what_is_no_credential_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize("text,problem", [
    ("seed: 3\ntotal_samples:\n", "total_samples"),
    ("model: &model\n  kernels: *model\n", "alias"),
    ("run: !!python/object/apply:os.getcwd []\n", "tag"),
    ("run: !!str 5\n", "tag"),
    ("seed: 3\nrun: a\nseed: 4\n", "seed"),
    ("model: {channels: 1, channels: 3}\n", "channels"),
    ("run: a\n---\nrun: b\n", "document"),
    ("- run\n", "mapping"),
    ("? [run]\n: a\n", "key"),
    ("config: /dev/zero\n", "config"),
    ("model: /dev/zero\n", "model"),
    ("stream: {access: /dev/zero}\n", "stream.access"),
    ("stream.access: /dev/zero\n", "stream.access"),
    ("model: {class_path: a_module.Model}\n", "class_path"),
    ("degradation.damages: {jpeg: {x: [{class_path: a_module.Model}]}}\n", "class_path"),
    ("degradation.damages.jpeg.x.class_path: a_module.Model\n", "class_path"),
    ("run: s3://key:hunter2@bucket/run\n", "***@bucket"),
])
def test_a_config_of_a_stranger_ends_with_one_line(tmp_path, capsys, text, problem):
    from srcnn.training.config import TrainConfig

    path = tmp_path / "config.yaml"
    path.write_text(text)
    for arguments in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(SystemExit) as stop:
            parse(TrainConfig, "test", "", arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert problem in error and "Traceback" not in error and "hunter2" not in error


@pytest.mark.parametrize("value", [
    "{class_path: a_module.Model}", "[{class_path: a_module.Model}]", "'{class_path: a_module.Model}'",
    "{class_path: a_module.Model, init_args: {a: 1}}", "a_module.Model"])
def test_no_module_is_imported_because_a_config_names_it(tmp_path, monkeypatch, value):
    """The values of damages may be anything, for which jsonargparse calls classes."""
    from srcnn.training.config import TrainConfig

    (tmp_path / "a_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(f"degradation:\n  crop_pixels: 64\n  damages:\n    jpeg: {{quality: {value}}}\n")
    with contextlib.suppress(SystemExit):
        parse(TrainConfig, "test", "", ["--config", str(path)])
    damages = f"--degradation.damages={{jpeg: {{x: {value}}}}}"
    with contextlib.suppress(SystemExit):
        parse(TrainConfig, "test", "", ["--degradation.crop_pixels=64", damages])
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("text, key, value", [
    ("mixed_precision: no\n", "mixed_precision", "no"),
    ("mixed_precision: null\n", "mixed_precision", None),
    ("stream:\n  resident: no\n", "stream.resident", "no"),
    ("augment: no\n", "augment", False),
    ("augment: off\n", "augment", False),
    ("compile: no\n", "compile", False),
    ("run: no\n", "run", "no"),
    ("run: 2026-01-01\n", "run", "2026-01-01"),
    ("optimizer: {lr: 1e-4}\n", "optimizer.lr", 1e-4),
    ("save_every_minutes: .5\n", "save_every_minutes", 0.5),
    ("model.residual: true\n", "model.residual", True),
    ("run: ~/runs/mine\n", "run", "HOME/runs/mine"),
    ("shards: ~/shards\n", "shards", "HOME/shards"),
    ("weights: ~/w.pth\n", "weights", "HOME/w.pth"),
    ("stream: {access: {cache: ~/cache}}\n", "stream.access.cache", "HOME/cache"),
    ("shards: https://host/~ann/shards\n", "shards", "https://host/~ann/shards"),
])
def test_words_of_yaml_mean_what_the_type_of_their_key_says(tmp_path, monkeypatch, text, key, value):
    from srcnn.training.config import TrainConfig

    monkeypatch.setenv("HOME", "HOME")
    (tmp_path / "config.yaml").write_text(text)
    found = parse(TrainConfig, "test", "", ["--config", str(tmp_path / "config.yaml")])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_the_home_folder_is_meant_where_the_shell_does_not_say_it(tmp_path, monkeypatch):
    from srcnn.training.config import TrainConfig

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    config = parse(TrainConfig, "test", "", ["--config=~/mine.yaml", "--run=~/x", "--shards=~"])
    assert (config.run, config.shards, config.seed) == (f"{tmp_path}/x", str(tmp_path), 3)
    assert TrainConfig(run="~/x").run == f"{tmp_path}/x"


@pytest.mark.parametrize("argument, told", [
    ("--total_samples=1e6", "1000000"), ("--total_samples=64000.0", "64000"), ("--run=~no.user/x", "./~no.user/x")])
def test_what_is_refused_comes_with_the_cure(capsys, argument, told):
    from srcnn.training.config import TrainConfig

    with pytest.raises(SystemExit):
        parse(TrainConfig, "test", "", [argument])
    assert f"write {told}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    ["--shard", "https://bob:hunter2@host/x"], ["--total_samples", "https://bob:hunter2@host/x"],
    ["--mixed_precision=https://bob:hunter2@host/x"], ["--config", "https://bob:hunter2@host/x"],
    ["https://bob:hunter2@host/x"], ["--model", "https://bob:hunter2@host/x"], ["--run", "https://bob:hunter2@host/x"]])
def test_a_password_in_the_wrong_argument_is_not_printed(capsys, arguments):
    from srcnn.training.config import TrainConfig

    with pytest.raises(SystemExit):
        parse(TrainConfig, "test", "", arguments)
    assert "hunter2" not in (told := capsys.readouterr().err) and "host/x" in told


def test_a_boolean_needs_no_value():
    from srcnn.training.config import TrainConfig

    assert parse(TrainConfig, "test", "", ["--fresh", "--seed", "3"]).fresh
    assert parse(TrainConfig, "test", "", ["--seed", "3", "--fresh"]).seed == 3
    assert not parse(TrainConfig, "test", "", ["--fresh", "false"]).fresh
