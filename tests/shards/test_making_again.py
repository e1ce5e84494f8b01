"""`python -m shards` started again: the same bytes always; the disk full, files lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    REPOSITORY,
    SMALL,
    PhotosFolder,
    contents,
    make,
    photo_pixels,
    quiet_env,
    run_shards,
    shards_command,
    traces,
)
from messages import says
from PIL import Image

from shards.__main__ import main
from srcnn.data.manifest import Manifest, read_manifest
from srcnn.runtime.storage import Folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_finished_shards_are_kept(
    tmp_path: Path, photos_folder: PhotosFolder, small_disk: Path, num_workers: int
) -> None:
    photos, out = photos_folder(18), small_disk / "out"
    options = (*SMALL, "--photos", photos, "--num_sheet_pairs", 2, "--num_workers", num_workers)
    result = run_shards(*options, "--out", out)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and os.strerror(errno.ENOSPC) in result.stderr
    kept = {name: trace for name, trace in traces(out).items() if "/0" in name and name.endswith(".tar")}
    assert kept and not list(out.rglob(".writing-*"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run_shards(*options, "--out", out).returncode == 0
    assert kept.items() <= traces(out).items()
    assert main([*map(str, options), "--num_workers", "1", "--out", str(tmp_path / "undisturbed")]) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_disk_full_before_the_first_shard_does_not_spoil_the_folder(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    options = (*SMALL, "--photos", photos_folder(2), "--out", tmp_path / "out")

    def run_with_files_of(num_bytes: int) -> subprocess.CompletedProcess[str]:
        limit = (num_bytes, resource.RLIM_INFINITY)
        return subprocess.run(
            shards_command(*options),
            cwd=REPOSITORY,
            env=quiet_env(),
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )

    for num_bytes in (100, 20_000):  # too few for the plan, then for a shard
        failed = run_with_files_of(num_bytes)
        assert (
            failed.returncode == 1
            and os.strerror(errno.EFBIG) in failed.stderr
            and "Traceback" not in failed.stderr
        )
    assert run_shards(*options).returncode == 0


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(3)
    Image.fromarray(photo_pixels(9)).save(photos / "broken.jpg")
    os.truncate(photos / "broken.jpg", 3000)
    for num_workers in (1, 2, 7):
        out = tmp_path / str(num_workers)
        result = run_shards(*SMALL, "--photos", photos, "--out", out, "--num_workers", num_workers)
        assert result.returncode == 1
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "7")
    assert sum(name.endswith(".tar") for name in contents(tmp_path / "1")) == 4


def test_where_the_photos_lie_changes_no_byte(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(4)
    shutil.copytree(photos, tmp_path / "elsewhere/copy")
    os.utime(tmp_path / "elsewhere/copy/photo-001.png", (1, 1))
    assert make("--photos", photos, "--out", tmp_path / "a") == 0
    assert make("--photos", tmp_path / "elsewhere/copy", "--out", tmp_path / "b") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_folder_is_left_alone(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--photos", photos_folder(3), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = traces(tmp_path / "out")
    assert {"train.png", "val.png", "plan.json", "train/manifest.json", "val/000000.tar"} <= before.keys()
    assert "up to date" not in capsys.readouterr().out
    assert make(*options) == 0
    assert traces(tmp_path / "out") == before
    assert says(capsys.readouterr().out, tmp_path / "out", "up to date")


@pytest.mark.parametrize("lost", ["train/000001.tar", "train/manifest.json", "val/manifest.json"])
def test_what_was_lost_is_made_again(tmp_path: Path, photos_folder: PhotosFolder, lost: str) -> None:
    options = ("--photos", photos_folder(6), "--out", tmp_path / "out")
    assert make(*options) == 0
    before, times = contents(tmp_path / "out"), traces(tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    assert make(*options) == 0
    assert contents(tmp_path / "out") == before
    again = {name for name, trace in traces(tmp_path / "out").items() if trace != times[name]}
    # A lost manifest does not tell the shards' records any more.
    assert {name for name in again if name.endswith(".tar")} == (
        {lost}
        if lost.endswith(".tar")
        else {name for name in before if name.startswith(lost[:3]) and ".tar" in name}
    )


def test_a_shard_cut_short_is_made_again(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    options = ("--photos", photos_folder(6), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = contents(tmp_path / "out")
    os.truncate(tmp_path / "out/train/000002.tar", 4096)
    assert make(*options) == 0
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("num_records", [0, 1, 3])
def test_killed_between_manifest_and_records_is_mended(
    tmp_path: Path, photos_folder: PhotosFolder, monkeypatch: pytest.MonkeyPatch, num_records: int
) -> None:
    options = ("--photos", photos_folder(6), "--out", tmp_path / "out")
    assert make(*options, "--out", tmp_path / "undisturbed") == 0
    unlinked: list[Path] = []
    original = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.stem.isdigit():  # the record of a shard
            if len(unlinked) == num_records:
                raise KeyboardInterrupt
            unlinked.append(path)
        original(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        assert make(*options) == 130
    assert (tmp_path / "out/train/manifest.json").is_file()
    assert any(path.name != "manifest.json" for path in (tmp_path / "out/train").glob("*.json"))
    assert make(*options) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("broken", ["comes", "goes"])
def test_killed_between_a_new_list_of_photos_and_its_manifest_is_mended(
    tmp_path: Path, photos_folder: PhotosFolder, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    photos = photos_folder(6)
    options = ("--photos", photos, "--out", tmp_path / "out", "--allow_refused", "true")
    for told in ("", "no picture") if broken == "comes" else ("no picture", ""):
        (photos / "broken.jpg").write_text(told) if told else (photos / "broken.jpg").unlink(missing_ok=True)
        if (tmp_path / "out").exists():
            break
        assert make(*options) == 0

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", killed)
        assert make(*options) == 130
    assert make(*options) == make(*options) == 0
    assert make(*options, "--out", tmp_path / "undisturbed") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("at", ["record", "shard"])
def test_a_record_without_its_shard_and_a_shard_without_its_record_are_made_again(
    tmp_path: Path, photos_folder: PhotosFolder, at: str
) -> None:
    options = ("--photos", photos_folder(6), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out/train/manifest.json").unlink()
    stale = {
        "shard": {"name": "000000.tar", "bytes": 7, "sha256": "", "num_samples": 1, "index_sha256": ""},
        "photos": [],
        "refused": [],
    }
    (tmp_path / "out/train/000000.json").write_text(json.dumps(stale))
    if at == "record":
        (tmp_path / "out/train/000000.tar").unlink()
    assert make(*options) == 0
    assert contents(tmp_path / "out") == before


def test_another_pillow_does_not_complete_what_one_began(
    photos_folder: PhotosFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--photos", photos_folder(6), "--out", out, *SMALL]
    assert make(*arguments) == 0
    monkeypatch.setattr("shards.output.library_versions", lambda: {"pillow": "1", "libjpeg": "2"})
    assert make(*arguments) == 0, "a finished folder stays as it is"
    (out / "train" / "000000.tar").unlink()
    assert make(*arguments) == 1
    assert says(capsys.readouterr().err, out, "pillow", 1, "libjpeg", 2)


def test_a_folder_made_before_there_was_a_choice_of_decoding_is_completed_exactly_only(
    photos_folder: PhotosFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--photos", photos_folder(6), "--out", out]
    assert make(*arguments) == 0
    assert "decode" not in json.loads((out / "plan.json").read_text())["config"]
    before = contents(out)
    (out / "train/000000.tar").unlink()
    assert make(*arguments, "--decode", "reduced") == 1
    assert says(capsys.readouterr().err, out, "decode", "exact", "reduced")
    assert make(*arguments, "--decode", "exact") == 0
    assert contents(out) == before


def test_a_folder_whose_plan_has_the_removed_key_jpeg_optimize_is_completed(
    photos_folder: PhotosFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--photos", photos_folder(6), "--out", out]
    assert make(*arguments) == 0
    for path in (out / "plan.json", out / "train/manifest.json", out / "val/manifest.json"):
        noted = json.loads(path.read_text())
        noted["config"]["degradation"]["jpeg_optimize"] = True
        path.write_text(json.dumps(noted, indent=1) + "\n")
    before = contents(out)
    assert make(*arguments) == 0 and contents(out) == before, "a finished folder stays as it is"
    (out / "train/000000.tar").unlink()
    assert make(*arguments) == 0
    assert {name: content for name, content in contents(out).items() if name.endswith((".tar", ".npy"))} == {
        name: content for name, content in before.items() if name.endswith((".tar", ".npy"))
    }


def test_reduced_shards_are_not_completed_exactly(
    photos_folder: PhotosFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--photos", photos_folder(2), "--out", tmp_path / "out"]
    assert make(*arguments, "--decode", "reduced") == 0
    assert read_manifest(Folder(tmp_path / "out/train")).config["decode"] == "reduced"
    assert make(*arguments) == 1
    assert says(capsys.readouterr().err, tmp_path / "out", "decode", "exact")
