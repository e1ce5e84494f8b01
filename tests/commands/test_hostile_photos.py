"""No photo, name or link ends the work on a folder: the good photos are restored, each bad one is named."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from messages import numbers, says
from PIL import Image
from small import draw_photo

from srcnn.__main__ import main
from srcnn.restoration import restore_files

ROOT = Path(__file__).resolve().parents[2]
LONG = "l" * 250 + ".jpg"


def save(path, **options):
    Image.fromarray(draw_photo(1, 20, 30)).save(path, **options)
    return path


@pytest.fixture
def hostile(tmp_path):
    """A folder of four good photos, and of each kind of bad one; returns it and the names of the bad ones."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("a.jpg", "m.jpg", "z.jpg"):
        save(folder / name, quality=20)
    save(folder / os.fsdecode(b"f\xe9\xf1.jpg"), quality=20)
    save(folder / LONG, quality=20)
    save(folder / "both.jpg", quality=20)
    save(folder / "both.png")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "loops.jpg").symlink_to("pool.jpg")
    (folder / "pool.jpg").symlink_to("loops.jpg")
    (folder / "empty.jpg").touch()
    (folder / "half.png").write_bytes((folder / "both.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("no photo")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    bad = [LONG, "broken.jpg", "loop.jpg", "loops.jpg", "pool.jpg", "empty.jpg", "half.png", "text.jpg"]
    return folder, bad


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_the_good_photos_of_a_hostile_folder_are_restored_and_each_bad_one_is_named(hostile, tmp_path, encoding):
    folder, bad = hostile
    command = [sys.executable, "-m", "srcnn", "restore", folder, tmp_path / "missing.jpg", tmp_path / "*.none",
               "--format", "jpg", "--suffix", "_new"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    made = sorted(os.fsencode(path.name) for path in folder.glob("*_new.jpg"))
    assert made == [b"a_new.jpg", b"both.jpg_new.jpg", b"both.png_new.jpg", b"f\xe9\xf1_new.jpg", b"m_new.jpg",
                    b"z_new.jpg"]
    assert b"f\\udce9\\udcf1_new.jpg" in done.stdout
    errors = done.stderr.decode().splitlines()
    for name in (*(folder / name for name in bad), tmp_path / "missing.jpg", tmp_path / "*.none"):
        assert [line for line in errors if line.startswith(f"error: {name}: ")], name
    assert numbers(errors[-1]) == [6, 0, len(bad) + 2], "restored, skipped, failed"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_only_errors_of_the_disk_end_the_work_and_the_summary_is_still_shown(tmp_path, monkeypatch, capsys):
    for number in range(6):
        save(tmp_path / f"{number}.jpg", quality=20)
    for code, num_done in ((errno.EACCES, 5), (errno.ENAMETOOLONG, 5), (errno.ENOSPC, 2), (errno.EROFS, 2)):
        def write(path, *arguments, code=code):
            if path.name == "2.jpg":
                raise OSError(code, os.strerror(code), str(path.with_name(".writing-temporary")))
            return ()

        monkeypatch.setattr(restore_files, "write_photo_file", write)
        assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
        message = capsys.readouterr().err
        assert says(message, tmp_path / "out" / "2.jpg", os.strerror(code), "-o") and ".writing-" not in message
        summary = next(line for line in message.splitlines() if "skipped" in line)
        assert numbers(summary)[0] >= num_done and ("not processed" in summary) == (num_done == 2)


def test_a_summary_says_how_many_were_restored_copied_skipped_and_failed(tmp_path, capsys):
    for name, quality in (("a.jpg", 20), ("b.jpg", 20), ("good.jpg", 97)):
        save(tmp_path / name, quality=quality)
    (tmp_path / "bad.jpg").touch()
    assert main(["restore", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["restore", str(tmp_path / "*.jpg"), "-o", str(tmp_path / "out")]) == 1
    summary = capsys.readouterr().err.splitlines()[-1]
    assert numbers(summary) == [1, 1, 1, 1] and says(summary, "restored", "copied", "skipped", "failed")


def test_photos_are_restored_though_nobody_reads_the_list_of_them(tmp_path):
    for number in range(5):
        save(tmp_path / f"{number}.jpg", quality=20)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "srcnn", "restore", tmp_path, "-o", tmp_path / "out"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    assert done.returncode == 0 and numbers(done.stderr.splitlines()[-1]) == [5, 0, 0]
    closed = f"{sys.executable} -m srcnn restore {tmp_path} -o {tmp_path / 'closed'} >&- 2>&-"
    assert subprocess.run(closed, shell=True, cwd=ROOT).returncode == 0
    assert len(list((tmp_path / "closed").rglob("*.jpg"))) == 5 + 5  # with those in out/
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert np.asarray(Image.open(tmp_path / "out" / "0.jpg")).shape == (20, 30, 3)


def test_a_copy_keeps_the_time_of_its_photo_and_leftovers_of_a_killed_run_are_removed(tmp_path):
    good = save(tmp_path / "good.jpg", quality=97)
    os.utime(good, ns=(10**18, 10**18 + 123_456_789))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".writing-0123456789abcdef").write_bytes(b"half")
    assert main(["restore", str(good), "-o", str(tmp_path / "out")]) == 0
    (copy,) = (tmp_path / "out").iterdir()
    assert copy.read_bytes() == good.read_bytes() and copy.stat().st_mtime_ns == good.stat().st_mtime_ns
