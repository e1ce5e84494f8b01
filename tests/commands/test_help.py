"""The help pages: of every command, whose examples can be typed as they are, and of every config's settings."""

import dataclasses
import io
import re
import shlex
from contextlib import redirect_stdout

import pytest
from messages import facts, says

from launch import benchmark
from shards import command as shards_command
from shards.plan import ShardsConfig
from srcnn.__main__ import command_line, main
from srcnn.commands import doctor
from srcnn.commands.doctor import DoctorConfig
from srcnn.commands.training import TRAIN_OPTIONS, split_processes
from srcnn.runtime.config_files import CONFIGS as CONFIGS_FOLDER
from srcnn.runtime.config_help import REST, help_page, settings_of
from srcnn.runtime.settings import parse
from srcnn.training import __main__ as training
from srcnn.training.benchmark import BenchmarkConfig
from srcnn.training.config import TrainConfig

CONFIGS = {TrainConfig: training.__doc__, DoctorConfig: doctor.__doc__, ShardsConfig: shards_command.__doc__,
           BenchmarkConfig: benchmark.__doc__}
SETTINGS = {"train": TrainConfig, "doctor": DoctorConfig, "shards": ShardsConfig}


def help_of(*words):
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return out.getvalue()


def commands_in(page):
    return re.findall(r"^    ([a-z-]+)\s", page.partition("commands:")[2].partition("\n\n")[0], re.MULTILINE)


COMMANDS = [[name] for name in commands_in(help_of())]
COMMANDS += [["datasets", name] for name in commands_in(help_of("datasets"))]


def examples_in(page):
    """The commands of the examples, without the notes beside them and redirections."""
    lines = re.findall(r"^  (srcnn .*)$", page.partition("examples:")[2], re.MULTILINE)
    return [re.split(r" <| >", re.split(r"\s{2,}", line)[0])[0] for line in lines]


def test_the_commands_are_found():
    assert len(COMMANDS) > 15 and ["datasets", "prepare"] in COMMANDS and ["train"] in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_in_a_sentence_what_it_does_and_shows_an_example(words):
    page = help_of(*words)
    usage, description = page.split("\n\n")[:2]
    assert usage.startswith(f"usage: srcnn {' '.join(words)}") and re.match(r"[A-Z].+[.;]", description, re.DOTALL)
    assert examples_in(page)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_examples_can_be_typed(words):
    for example in examples_in(help_of(*words)):
        _, name, *rest = shlex.split(example)
        if name in SETTINGS:
            parse(SETTINGS[name], "srcnn", "", split_processes(rest, "srcnn train")[1])
        else:
            command_line().parse_args([name, *rest])


@pytest.mark.parametrize("path", sorted(CONFIGS_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_at_the_top_of_a_config_can_be_typed(path):
    for _, name, *rest in map(shlex.split, re.findall(r"^# (srcnn .*)$", path.read_text(), re.MULTILINE)):
        if name == "train":
            _, rest = split_processes(rest, "srcnn train")
        assert f"--config {path.name}" in " ".join(rest)
        parse(SETTINGS[name], "srcnn", "", rest)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_explained(words):
    page = help_of(*words).partition("\n\n")[2]
    for option in re.finditer(r"^  (-.*(?:\n {20,}.*)*)", page, re.MULTILINE):
        assert re.search(r"\s{2,}\S+ \S+|page", option[1]), option[1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_is_in_the_long_help_once_and_has_a_subject(config):
    page = help_page(config, "program", CONFIGS[config], {}, show_all=True)
    assert REST not in page
    keys = [setting.key for setting in settings_of(config)]
    shown = re.findall(r"^  --([a-z_]+(?:\.[a-z_]+)*)", page, re.MULTILINE)
    assert sorted(shown) == sorted([*keys, "config", "help", "print_config"]) and len(keys) > len(config.COMMON)
    assert {field.name for field in dataclasses.fields(config)} == {key.partition(".")[0] for key in keys}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_the_help_shows_what_is_set_most_and_how_many_settings_there_are_besides(config):
    page = help_page(config, "program", CONFIGS[config], {})
    shown = set(re.findall(r"^  --([a-z_.]+)", page, re.MULTILINE)) - {"config", "help", "print_config"}
    common = {key for keys in config.COMMON.values() for key in keys}
    assert shown == common and 8 <= len(common) <= 14
    usage = page.split("\n\n")[0].removeprefix("usage: ")
    assert "\n" not in usage and len(usage) <= 100
    assert says(page.splitlines()[-1], "--help-all", len(list(settings_of(config))) - len(common))


def test_the_doctors_own_options_come_first():
    page = help_of("doctor")
    assert page.index("--ranks N ") < page.index("--machines N ") < page.index("--verify") < page.index("--shards TEXT")


@pytest.mark.parametrize("arguments,near", [
    (["reslore", "a.jpg"], "restore"), (["data-sets"], "datasets"), (["datasets", "prepar"], "prepare"),
    (["datasets", "prepare", "set5", "--form", "x"], "--from"), (["score", "x", "--lume", "y"], "--luma"),
    (["shards", "--photo", "x"], "photos"), (["shards", "--photos", "x", "--tile_pixel", "8"], "tile_pixels"),
    (["shards", "index", "x", "--tile_pixel", "8"], "--tile_pixels"),
    (["train", "--total_sample", "5"], "total_samples"), (["train", "--proceses", "2"], "processes"),
    (["train", "--optimizer.learning_rate", "1"], "optimizer"), (["train", "--hlp"], "help"),
    (["doctor", "--rank", "2"], "ranks"), (["doctor", "--batchsize", "2"], "batch_size"),
])
def test_a_mistyped_command_or_option_is_answered_by_the_one_that_was_meant(capsys, arguments, near):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(facts("did you mean", near), message.partition("error:")[2] or message)


def test_a_photo_may_be_named_like_an_option():
    assert command_line().parse_args(["restore", "--", "--overwrit"]).sources == ["--overwrit"]


def test_the_doctor_takes_the_command_line_of_train(monkeypatch):
    given = []
    monkeypatch.setattr(doctor, "main", lambda arguments: given.append(arguments) or 0)
    for processes in (["--processes", "3"], ["--processes=3"], []):
        assert main(["doctor", "--run", "x", *processes, "--shards", "y"]) == 0
    several = ["--run", "x", "--shards", "y", "--ranks", "3"]
    assert given == [several, several, ["--run", "x", "--shards", "y"]]


def test_the_options_of_train_are_in_its_help():
    page = help_of("train")
    assert all(option in page for option in TRAIN_OPTIONS)
