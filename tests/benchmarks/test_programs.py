"""`python -m benchmarks.gpu` on a CPU, where it shows only that it works; how variants alternate."""

import subprocess
import sys
from pathlib import Path

import pytest
from small import write_photos

from benchmarks.measure import Failed, alternate

ROOT = Path(__file__).parents[2]
ROWS = {"step": "source's loop", "stream": "resident: no", "restoring": "PyTorch"}


@pytest.mark.slow
def test_every_part_gives_a_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--work", str(tmp_path / "work")]
    command += ["--photos", str(write_photos(tmp_path / "photos", 8, 523, 779))]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    for part, row in ROWS.items():
        section = done.stdout.partition(f"## {part}\n")[2].partition("## ")[0]
        assert f"| {row}" in section and "Not measured" not in section, done.stdout


def test_variants_alternate_and_one_that_fails_is_left_out():
    runs, failed = [], {}

    def variant(name):
        runs.append(name)
        if name == "b":
            raise Failed("no compiler")
        return name

    variants = {name: lambda name=name: variant(name) for name in "abc"}
    assert alternate(variants, 2, failed) == {"a": ["a", "a"], "c": ["c", "c"]}
    assert runs == ["a", "b", "c", "c", "a"] and failed == {"b": "no compiler"}
    with pytest.raises(Failed):
        alternate(variants, 1)
