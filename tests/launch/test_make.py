"""The targets of the Makefile that a newcomer calls first: setup, demo, clean."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small import draw_photo

from launch import demo
from srcnn.runtime import signals
from srcnn.tracking.history import read_metrics

ROOT = Path(__file__).parents[2]
SETTINGS = {"model": {"filters": [8, 4], "residual": True}, "total_samples": 48, "batch_size": 12,
            "log_every_samples": 24, "validate_every_samples": 48, "trackers": [], "mixed_precision": "no"}
# What `make setup` calls in place of python: notes its arguments, makes an environment, fails where the test wants it.
PYTHON = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip --version") test -e "$(dirname "$0")/../pip" ;;
    *"$FAILS"*) echo "the reason" >&2; exit 1 ;;
esac
"""


def make(folder, *words, **variables):
    return subprocess.run(["make", "-C", str(folder), *map(str, words)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "MAKEFLAGS": "", **{key: str(value) for key, value in variables.items()}})


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "setup.cfg", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def set_up(checkout, target, fails="nothing"):
    done = make(checkout, target, f"PYTHON={checkout / 'python'}", "VENV=env", CALLS=checkout / "calls", FAILS=fails)
    calls = (checkout / "calls").read_text().splitlines()
    (checkout / "calls").unlink()
    return done, calls


def test_setup_installs_what_training_needs_and_the_checks_add_the_rest_once(checkout):
    done, calls = set_up(checkout, "setup")
    assert done.returncode == 0 and done.stderr == ""
    assert [call for call in calls if "--editable" in call] == ["-m pip install --quiet --editable .[train,formats]"]
    (checkout / "env/pip").touch()
    (checkout / "env/bin/mypy").symlink_to("/bin/true")
    done, calls = set_up(checkout, "types")
    assert done.returncode == 0 and calls == ["-m pip install --quiet --editable .[test]"]
    os.utime(checkout / "setup.cfg", (4e9, 4e9))
    assert [call for call in set_up(checkout, "types")[1] if "venv" in call] == []  # the environment stays


def test_a_failing_installation_is_shown_and_not_taken_for_done(checkout):
    done, _ = set_up(checkout, "setup", fails="--editable")
    assert done.returncode != 0 and "the reason" in done.stderr and not (checkout / "env/.ready").exists()


def test_clean_leaves_what_was_trained_on_own_photos(checkout):
    for name in ("demo/own-holiday/run/best", "demo/skylines/run/best", "runs/mine/best", "data/shards/x"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    assert make(checkout, "clean").returncode == 0
    assert [(checkout / name).exists() for name in ("demo/own-holiday/run/best", "demo/skylines", "runs/mine/best",
                                                    "data/shards/x")] == [True, False, True, True]


@pytest.fixture
def run_demo(tmp_path, monkeypatch, capsys):
    """Runs the demo in this process, with a small network, into tmp_path/out; returns its status and what it said.

    With photos of one's own the first picture is there already.
    """
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.setattr(demo, "TRAINING", tmp_path / "small.yaml")
    monkeypatch.setattr(demo, "NUM_DRAWN", 2)
    monkeypatch.setattr(demo, "DRAWN_SIZE", (261, 257))
    for name in ("shards.skylines.num_cores", "shards.write.num_cores"):
        monkeypatch.setattr(name, lambda: 1)  # processes that start cost more than what they do here
    monkeypatch.setattr(signals, "install_signal_handlers", lambda: None)  # it is for a process of one's own

    def run(*arguments):
        if arguments:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out/photograph.png").touch()
        status = demo.main(["--out", str(tmp_path / "out"), *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_demo_restores_trains_and_says_where_to_look(tmp_path, run_demo):
    status, out, _ = run_demo()
    assert status == 0
    last = read_metrics(tmp_path / "out/run")[-1]
    assert f"{last['val/psnr_in']:.2f} dB" in out and f"{last['val/psnr']:.2f} dB" in out
    assert f"{last['val/gain']:+.2f} dB" in out
    looks = out.partition("Look at:")[2].partition("Next:")[0].split()
    paths = [Path(word) for word in looks if word.startswith(str(tmp_path))]
    assert len(paths) == 4 and all(path.is_file() for path in paths)
    assert Image.open(paths[0]).width <= 1920
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/run/checkpoints").rglob("*")}
    status, again, _ = run_demo()
    assert status == 0 and again.partition("Look at:")[2] == out.partition("Look at:")[2]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/run/checkpoints").rglob("*")} == before


def test_own_photos_are_not_enlarged_and_those_refused_are_named_and_counted(tmp_path, run_demo):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, (height, width) in enumerate([(131, 259), (2049, 1536)]):
        Image.fromarray(np.tile(draw_photo(number, 129, 131), (16, 12, 1))[:height, :width]).save(
            photos / f"{number}.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    status, _, err = run_demo("--photos", photos)
    assert status == 0 and "bad.jpg" in err and "1 photos refused" in err
    listed = [json.loads(line) for path in (tmp_path / "out/shards").glob("*/photos.jsonl") for line in path.open()]
    sizes = {entry["name"]: (entry["width"], entry["height"]) for entry in listed if "width" in entry}
    assert sizes == {"0.png": (259, 131), "1.png": (768, 1024)}
    (photos / "1.png").unlink()
    status, _, err = run_demo("--photos", photos)
    assert status == 1 and str(tmp_path / "out/shards") in err


def test_a_folder_that_is_not_there_is_told_before_anything_is_made(tmp_path, run_demo):
    status, _, err = run_demo("--photos", tmp_path / "nowhere")
    assert status == 1 and str(tmp_path / "nowhere") in err and not (tmp_path / "out/shards").exists()


@pytest.mark.parametrize("num_photos", [0, 1])
def test_too_few_photos_are_one_line_with_the_folder(tmp_path, run_demo, num_photos):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(num_photos):
        Image.fromarray(draw_photo(number, 131, 259)).save(photos / f"{number}.png")
    status, _, err = run_demo("--photos", photos)
    assert status == 1 and str(photos) in err.splitlines()[-1] and "Traceback" not in err
