"""`srcnn doctor` on a small training, and what its tests say about the outcome."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from small import small_config

from srcnn.__main__ import main
from srcnn.config import to_yaml


def examine(shards, *arguments, **changes):
    """The exit status and the lines; `changes` are made to the config file, `arguments` follow it."""
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()) as shown:
        changes = {"run": Path(folder, "run"), "batch_size_per_process": 4, "total_samples": 128} | changes
        file = Path(folder, "config.yaml")
        file.write_text(to_yaml(small_config(shards=shards, **changes)))
        status = main(["doctor", "--config", str(file), *map(str, arguments)])
    return status, shown.getvalue().splitlines()


def marked(lines, mark):
    return [line for line in lines if line.strip().startswith(mark)]


def assert_problem(examined, *words):
    """The status is 1, and there is one problem, whose line has all these words."""
    status, lines = examined
    problems = marked(lines, "PROBLEM")
    assert status == 1 and lines[-1].startswith("1 problem,"), lines
    assert len(problems) == 1 and all(word in problems[0] for word in words), problems


def assert_note(examined, *words):
    """No problem, and a note with all these words."""
    status, lines = examined
    assert status == 0, lines
    assert any(all(word in line for word in words) for line in marked(lines, "note")), lines


def content_of(folder):
    """What is in a folder, all the way down."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
