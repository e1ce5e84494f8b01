"""`srcnn doctor` on a small training, and what its tests say about the outcome."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs import free_port
from messages import numbers, says
from small import small_config

from srcnn.__main__ import main
from srcnn.runtime.settings import to_yaml


def examine(shards, *arguments, **changes):
    """The exit status and the lines; `changes` are made to the config file, `arguments` follow it."""
    os.environ.setdefault("MASTER_PORT", str(free_port()))  # another training may be on this machine
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()) as shown:
        changes = {"run": Path(folder, "run"), "batch_size_per_process": 4, "total_samples": 128} | changes
        file = Path(folder, "config.yaml")
        file.write_text(to_yaml(small_config(shards=shards, **changes)))
        status = main(["doctor", "--config", str(file), *map(str, arguments)])
    return status, shown.getvalue().splitlines()


def marked(lines, mark):
    return [line for line in lines if line.strip().startswith(mark)]


def num_found(lines):
    """How many problems and notes the last line counts."""
    return numbers(lines[-1])


def assert_problem(examined, *told):
    """The status is 1, and there is one problem, whose line holds all these facts."""
    status, lines = examined
    problems = marked(lines, "PROBLEM")
    assert status == 1 and num_found(lines)[0] == 1, lines
    assert len(problems) == 1 and says(problems[0], *told), problems


def assert_note(examined, *told):
    """No problem, and a note that holds all these facts."""
    status, lines = examined
    assert status == 0, lines
    assert any(says(line, *told) for line in marked(lines, "note")), lines


def content_of(folder):
    """What is in a folder, all the way down."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
