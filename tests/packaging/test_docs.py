"""The documentation against the code: its commands, its Python, its links, the schema of the configs."""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml
from PIL import Image
from small import draw_photo, small_config, small_shards, write_photos

import srcnn
from srcnn.__main__ import command_line, main
from srcnn.commands.doctor import DoctorConfig
from srcnn.commands.training import CONFIG_CLASSES, config_class, schema_of, split_processes
from srcnn.runtime.config_help import settings_of
from srcnn.runtime.settings import parse
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.training.benchmark import BenchmarkConfig
from srcnn.training.config import TrainConfig
from srcnn.training.trainer import train

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md"])
SETTINGS = {"launch/train.py": TrainConfig, "my_train.py": TrainConfig, "-m srcnn.training": TrainConfig,
            "srcnn train": TrainConfig, "launch/slurm/train.sbatch": TrainConfig, "srcnn doctor": DoctorConfig,
            "launch/benchmark.py": BenchmarkConfig}
SHARDS = ("srcnn shards", "-m shards", "launch/slurm/shards.sbatch")
# Commands of srcnn that are parsed only, and why.
PARSED = {"demo": "serves until it is stopped", "dashboard": "needs an account of wandb", "sync": "needs a server",
          "push-shards": "needs an account", "datasets": "needs a download; tests/commands/test_datasets.py",
          "verify": "needs the test sets, and twenty minutes", "fbcnn_color.pth": "weights that are not ours"}
# Programs of which only the files that they are given are looked for, and why.
ELSEWHERE = {"git": "the address", "pip": "the network; test_extras.py knows the extras", "source": "the shell",
             "docker": "a daemon", "kubectl": "a cluster; tests/cluster", "wandb": "an account", "export": "the shell",
             "dask": "does not end; tests/shards/test_dask.py", "sky": "a cloud's account", "pre-commit": "the network"}
PLACEHOLDERS = {"i": "0", "N": "2", "HOST": "localhost", "...": "", "--key value": "", "Q": "20"}
PROGRAMS = {"srcnn", "python", "make", "accelerate", "torchrun", "sbatch", "cat", *ELSEWHERE}


class Parsed(Exception):
    """The arguments of a program are right."""


def shell_lines(text):
    """The commands in the indented blocks and the shell fences of a page, one a line, without comments."""
    fenced = "".join(re.findall(r"```(?:sh|bash|shell)\n(.*?)```", text, re.S))
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    indented = "".join(re.findall(r"(?:\A|\n\n)((?:    .*\n|\n(?=    ))+)", text))
    for line in (fenced + indented).replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s|;\s", re.sub(r"\s+#\s.*", "", line.strip())):
            words = part.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and words[0] in PROGRAMS and words[1:2] != ["="]:
                yield " ".join(words)


def words_of(line):
    """The words of a command: with its optional parts, and something in place of what a reader fills in."""
    line = re.sub(r"(?<=\s)\[((?:--|[A-Z]+=)[^\[\]]*?)\]", r"\1", line)
    for name, value in PLACEHOLDERS.items():
        line = re.sub(rf"(?<!\S){re.escape(name)}(?!\S)", value, line)
    return shlex.split(line.replace("=...", "=").replace("luma|rgb", "rgb"))


COMMANDS = {page.name: list(shell_lines(page.read_text(encoding="utf-8"))) for page in PAGES}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the pages name: photos, test sets, shards, runs, configs."""
    folder = tmp_path_factory.mktemp("docs")
    for top in ("configs", "launch", "shards", "srcnn", "benchmarks", "docs"):
        (folder / top).symlink_to(ROOT / top)
    photo = Image.fromarray(draw_photo(7, 61, 83))
    photo.save(folder / "clean.png")
    for name in ("old.jpg", "small.jpg", "PHOTO.jpg"):
        photo.save(folder / name, quality=20)
    photo.save(folder / "small.png")
    (folder / "scans").mkdir()
    photo.save(folder / "scans/page.tif")
    write_photos(folder / "photos", 2, 61, 83)
    for name in ("PHOTOS", "OTHER_PHOTOS", "dir", "DIR/train", "DIR/both", "DIR/set5", "DIR/live1_y", "DIR/live1_color",
                 "DIR/city20", "DIR/val/city20", "DIR/val/live1_y", "data/val/live1_y"):
        write_photos(folder / name, 1, 62, 84)
    shards = small_shards(folder / "made")
    for name in ("data/shards", "data/clean", "data/free", "S"):
        shutil.copytree(shards, folder / name)
    train(small_config(folder / "runs/mine", folder / "data/shards"))
    for name in ("runs/unet-q20", "runs/source", "runs/NAME", "R"):
        shutil.copytree(folder / "runs/mine", folder / name)
    for name in ("C", "MINE", "mine.yaml", "my.yaml"):
        shutil.copy(ROOT / "configs/demo.yaml", folder / name)
    (folder / "bin").mkdir()
    script = f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m srcnn "$@"\n'
    (folder / "bin/srcnn").write_text(script)
    (folder / "bin/srcnn").chmod(0o755)
    return folder


@pytest.fixture
def scratch(prepared, tmp_path, monkeypatch):
    """The current folder: a copy of it."""
    shutil.copytree(prepared, tmp_path / "scratch", symlinks=True)
    monkeypatch.chdir(tmp_path / "scratch")
    monkeypatch.setenv("PATH", f"{tmp_path / 'scratch/bin'}:{os.environ['PATH']}")
    return tmp_path / "scratch"


def check_settings(kind, program, words):
    """Settings of a dataclass, whose config must be there."""
    if program in ("srcnn train", "srcnn doctor"):
        _, words = split_processes(words, program)
    try:
        parse(kind, program, "", words)
    except SystemExit as end:
        assert end.code == 0 and words[0].startswith("--help"), f"{program} {words}"


def stops_after_parsing(monkeypatch):
    """Programs that read their arguments by argparse stop when they have done so."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments, **named):
        read(self, *arguments, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def check_module(monkeypatch, words):
    """`python -m MODULE ...` and `python FILE ...` up to their arguments."""
    module = words[0] == "-m"
    name, words = words[module], words[module + 1 :]
    with monkeypatch.context() as patch:
        stops_after_parsing(patch)
        patch.setattr(sys, "argv", [name, *words])
        patch.syspath_prepend(str(ROOT))
        with pytest.raises((Parsed, SystemExit)) as end, contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(name, run_name="__main__") if module else runpy.run_path(name, run_name="__main__")
    assert end.type is Parsed or (end.value.code in (0, None) and "--help" in words)


def check_launch(words):
    """`accelerate launch OPTIONS PROGRAM SETTINGS`: the program."""
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser().parse_args(words[2:])
    assert options.config_file is None or Path(options.config_file).is_file(), options.config_file
    program = f"-m {options.training_script}" if options.module else options.training_script
    check_settings(SETTINGS[program], program, options.training_script_args)


def run_srcnn(words):
    """A command of srcnn, run or parsed."""
    if words[1:2] and words[1] not in PARSED and not PARSED.keys() & set(words):
        assert main(words[1:]) == 0
    else:
        command_line().parse_args(words[1:])


def run(line, monkeypatch):
    """A command of a page, as far as it can be run here."""
    words = words_of(line)
    if "--plugins" in words:  # that it is loaded is for tests/training/test_plugins.py to see
        at = words.index("--plugins")
        assert any(f"# {words[at + 1]}\n" in code for page in PAGES for code in python_of(page)), words[at + 1]
        del words[at : at + 2]
    program, start = words[0], " ".join(words[:2])
    for word in words[1:]:
        if re.match(r"(launch|configs|docs|tests|benchmarks)/", word) and not re.search(r"k8s/mine|\*", word):
            assert (ROOT / word).exists(), word
    settings = next((key for key in (*SETTINGS, *SHARDS) if f" {key} " in f" {' '.join(words)} "), None)
    if program == "make":
        done = subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, timeout=20,
                              env={**os.environ, "MAKEFLAGS": ""})
        assert done.returncode == 0, done.stderr
    elif program == "accelerate":
        check_launch(words)
    elif start == "srcnn shards" and words[2] == "index":
        check_module(monkeypatch, ["-m", *words[1:]])
    elif settings in SHARDS:
        from shards.plan import ShardsConfig

        check_settings(ShardsConfig, settings, words[words.index(settings.split()[-1]) + 1 :])
    elif settings:
        check_settings(SETTINGS[settings], settings, words[words.index(settings.split()[-1]) + 1 :])
    elif program == "python":
        check_module(monkeypatch, words[1:])
    elif program == "cat" or ">" in words or start == "srcnn configs":
        done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    elif program == "srcnn":
        run_srcnn(words)
    else:
        assert program in ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, lines in COMMANDS.items() if lines])
def test_commands_of_a_page_run(scratch, monkeypatch, page):
    for line in COMMANDS[page]:
        try:
            run(line, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page}: {line}") from error


def test_there_are_commands():
    assert sum(map(len, COMMANDS.values())) > 80
    assert {"restoring.md", "training.md", "clusters.md", "README.md"} <= {page for page in COMMANDS if COMMANDS[page]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_a_sentence_exist(page):
    parser = command_line()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)):
        words = span.split()
        if words[0] == "srcnn" and words[1:] and re.fullmatch(r"[a-z-]+", words[1]):
            assert words[1] in commands, span
            known = {name for action in commands[words[1]]._actions for name in action.option_strings}
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert words[1] in ("train", "shards", "doctor") or given <= known, span
        elif words[0] == "make" and words[1:] and re.fullmatch(r"[a-z-]+", words[1]):
            assert words[1] in targets, span
        elif words[:2] == ["python", "-m"]:
            name = words[2].replace(".", "/")
            assert any((ROOT / path).exists() for path in (f"{name}.py", f"{name}/__main__.py", f"tests/{name}")), span


def python_of(page):
    """Its fenced blocks of Python, and the indented ones that import srcnn."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    indented = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|\n(?=    ))+", text, re.M)]
    return re.findall(r"```python\n(.*?)```", text, re.S) + [code for code in indented if "\nimport srcnn\n" in code]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["../README.md", "../README.ru.md", "library.md", "other-programs.md", "shards.md"])
def test_the_python_of_a_page_runs(scratch, page):
    codes = python_of(page)
    assert codes
    for number, code in enumerate(codes):
        exec(compile(code, f"{page}, {number}", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_training_with_a_damage_of_ones_own(tmp_path):
    (tmp_path / "my_damages.py").write_text(*python_of("degradations.md"))
    settings = {"run": "run", "shards": str(small_shards(tmp_path, contents="clean")), "total_samples": 16,
                "trackers": [], "model": {"filters": [4, 2]}, "batch_size": 8,
                "degradation": {"crop_pixels": 16, "damages": {"salt": {"share": 0.02}, "noisy_jpeg": {}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "srcnn", "train", "--plugins", "my_damages.py", "--config", "mine.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/best/model.safetensors").is_file()


@pytest.mark.parametrize("config", sorted({*(ROOT / "configs").glob("*.yaml")} - {ROOT / "configs/sweep.yaml"}),
                         ids=lambda path: path.name)
def test_shipped_configs_fit_the_schema(config):  # sweep.yaml is wandb's
    schema = schema_of("shards" if config.name.startswith("shards") else "train")
    jsonschema.Draft202012Validator(schema).validate(read_yaml(config))


@pytest.mark.parametrize(("text", "path"), [
    ("totl_samples: 3", []), ("model: {residul: true}", ["model"]), ("total_samples: many", ["total_samples"]),
    ("stream: {access: {cache: 3}}", ["stream", "access", "cache"]),
    ("model: {kernels: [9, 1]}", ["model", "kernels"]), ("trackers: [wanbd]", ["trackers", 0])])
def test_the_schema_finds_mistakes(text, path):
    validator = jsonschema.Draft202012Validator(schema_of("train"))
    assert [list(error.absolute_path) for error in validator.iter_errors(yaml.safe_load(text))] == [path]


def test_the_schema_takes_keys_with_dots_and_what_a_run_saves(tmp_path):
    from srcnn.runtime.settings import to_yaml

    validator = jsonschema.Draft202012Validator(schema_of("train"))
    validator.validate({"model.residual": True, "stream.access.cache": "/disk", "compile": "max-autotune"})
    validator.validate(yaml.safe_load(to_yaml(TrainConfig())))


@pytest.mark.parametrize("kind", CONFIG_CLASSES)
def test_every_key_has_a_text_and_the_default_of_its_class(kind, capsys):
    schema = schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    keys = [key for group in (schema, *schema["$defs"].values()) for key in group["properties"].values()]
    assert len(keys) > 20 and all("$ref" in key or "default" in key and key["description"] for key in keys)
    assert main(["configs", "--schema", kind]) == 0
    assert json.loads(capsys.readouterr().out) == schema


def test_the_defaults_of_the_schema_are_those_of_the_classes():
    schema = schema_of("train")
    train, groups = schema["properties"], {name: group["properties"] for name, group in schema["$defs"].items()}
    assert train["trackers"]["default"] == ["wandb"] and train["mixed_precision"]["default"] is None
    assert groups["OptimizerConfig"]["lr"]["default"] == 1e-3 and groups["AccessConfig"]["cache"]["default"] == ""
    assert groups["ModelConfig"]["kernels"]["default"] == [9, 1, 5] and "$ref" in train["model"]


@pytest.mark.parametrize("kind", CONFIG_CLASSES)
def test_the_reference_has_a_row_for_every_key(kind):
    pytest.importorskip("mkdocs")
    _, _, *rows = runpy.run_path(str(ROOT / "docs/site_hooks.py"))["_table"](kind).splitlines()
    settings = list(settings_of(config_class(kind)))
    for row, setting in zip(rows, settings, strict=True):
        assert setting.text and row.startswith(f"| `{setting.key}` | ")
        assert row.replace(r"\|", "|").endswith(f" | `{setting.default}` | {setting.text} |")


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: srcnn\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(named) == sorted(srcnn.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_number_is_without_a_way_to_make_it_again(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert not re.search(r"by hand|no script|measured once|history of this repository", text)


def test_links_lead_to_files_that_exist():
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_of_the_site_are_mended_and_code_is_left_alone():
    pytest.importorskip("mkdocs")
    mend, docs = runpy.run_path(str(ROOT / "docs/site_hooks.py"))["mend_links"], ROOT / "docs"
    for page in docs.glob("*.md"):
        mend(page.read_text(encoding="utf-8"), docs, "")
    assert mend("`a`, [b](../setup.cfg), `c`", docs, "https://h") == "`a`, [b](https://h/blob/main/setup.cfg), `c`"
    for code in ("`row[0](x)`", "`two\nrow[0](x)` lines", "```python\nlayers[-1](x)\n```", "  ~~~\n  f[0](x)\n  ~~~"):
        assert mend(code, docs, "") == code


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REPOSITORY_URL": "https://github.com/someone/srcnn"}
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
                          cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site/configuration/index.html").read_text()
    assert "stream.access.cache_gigabytes" in text and "jpeg_subsampling" in text
    assert "colab.research.google.com/github/someone/srcnn" in (tmp_path / "site/index.html").read_text()
    assert "someone/srcnn/blob/main/tests/" in (tmp_path / "site/formats/index.html").read_text()
    assert json.loads((tmp_path / "site/train.schema.json").read_text()) == schema_of("train")
    fetched = [address for page in (tmp_path / "site").rglob("*.html")
               for address in re.findall(r'(?:<script[^>]* src|<link[^>]*stylesheet[^>]* href)="(https?:[^"]+)',
                                         page.read_text())]
    assert fetched == []
