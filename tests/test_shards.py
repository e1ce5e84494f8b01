"""`python -m shards` end to end: folders of photos in, tar shards, manifests and exit statuses out."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, photo_pixels, quiet_env, run_shards, shards_command
from PIL import Image
from test_photo import write_png_header

from shards import folder
from shards.__main__ import main
from srcnn.degrade import jpeg
from srcnn.metrics import psnr
from srcnn.photo import luma_l
from srcnn.sample import Manifest

PhotosFolder = Callable[..., Path]
# One photo of 203x149 gives six tiles of 64, and is a shard of its own.
SMALL = ("--resize", "none", "--tile_pixels", 64, "--samples_per_shard", 6, "--num_workers", 1)


def make(*arguments: object) -> int:
    """The exit status of the shard maker, run here."""
    return main([*map(str, (*SMALL, *arguments))])


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by name."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def traces(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file below a folder: another one if it was written again."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def pairs_of(out: Path, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every pair of a split by its key, as stock webdataset reads it."""
    webdataset = pytest.importorskip("webdataset")
    urls = [str(out / split / shard.name) for shard in Manifest.read(out / split).shards]
    stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return {item["__key__"]: (item["clean.npy"], item["degraded.npy"]) for item in stream}


# What is in the shards


def test_every_pair_is_a_tile_of_the_photo_and_of_its_jpeg(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(4), tmp_path / "out"
    assert make("--photos", photos, "--out", out) == 0
    num_seen = 0
    for split in ("train", "val"):
        manifest, pairs = Manifest.read(out / split), list(pairs_of(out, split).values())
        for photo in manifest.photos:
            clean = np.asarray(Image.open(photos / photo.name))
            whole = luma_l(clean), luma_l(jpeg(clean, 20))
            corners = [(top, left) for top in (0, 64) for left in (0, 64, 128)]
            tiles = [[part[top : top + 64, left : left + 64] for part in whole] for top, left in corners]
            np.testing.assert_array_equal(np.array(pairs[:6]), np.array(tiles))
            assert photo.degraded_psnr == pytest.approx(np.mean([psnr(*pair) for pair in tiles]), abs=1e-4)
            assert photo.sha256 == hashlib.sha256((photos / photo.name).read_bytes()).hexdigest()
            del pairs[:6]
            num_seen += 1
        assert not pairs
    assert num_seen == 4


def test_the_manifest_tells_the_bytes_and_hashes_of_the_shards(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    assert make("--photos", photos_folder(5), "--out", tmp_path / "out", "--samples_per_shard", 13) == 0
    for split in ("train", "val"):
        manifest = Manifest.read(tmp_path / "out" / split)
        assert manifest.tile_shape == (64, 64) and manifest.stride
        for shard in manifest.shards:
            content = (tmp_path / "out" / split / shard.name).read_bytes()
            assert shard.sha256 == hashlib.sha256(content).hexdigest()
            assert 0 <= len(content) - shard.num_samples * manifest.stride <= 10240  # the end of a tar
        for photo in manifest.photos:
            assert photo.first_sample % 6 == 0 and photo.num_samples == 6
        names = {path.name for path in (tmp_path / "out" / split).iterdir()}
        assert names == {"manifest.json", *(shard.name for shard in manifest.shards)}


def test_rgb_and_png_hold_the_same_pixels(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    webdataset = pytest.importorskip("webdataset")
    photos = photos_folder(2)
    assert make("--photos", photos, "--out", tmp_path / "a", "--color", "rgb") == 0
    assert make("--photos", photos, "--out", tmp_path / "b", "--color", "rgb", "--encoding", "png") == 0
    for split in ("train", "val"):
        url = str(tmp_path / "b" / split / "000000.tar")
        stream = webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("rgb8")
        found = {item["__key__"]: (item["clean.png"], item["degraded.png"]) for item in stream}
        expected = pairs_of(tmp_path / "a", split)
        assert found.keys() == expected.keys() and len(found) == 6
        for key, pair in expected.items():
            assert pair[0].shape == (64, 64, 3)
            np.testing.assert_array_equal(np.array(found[key]), np.array(pair))


def test_a_bicubic_scale_alone_makes_pairs(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    options = ("--degradation.scale", 3, "--degradation.jpeg_quality", "[]")
    assert make("--photos", photos_folder(2), "--out", tmp_path / "out", *options) == 0
    manifest = Manifest.read(tmp_path / "out/train")
    assert manifest.photos[0].quality is None
    assert (manifest.photos[0].width, manifest.photos[0].height) == (201, 147)
    assert 15 < manifest.degraded_psnr < 40


def test_a_range_of_qualities_is_in_the_manifest(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    options = ("--degradation.jpeg_quality", "[5, 60]", "--val_fraction", 0)
    assert make("--photos", photos_folder(8), "--out", tmp_path / "out", *options) == 0
    photos = Manifest.read(tmp_path / "out/train").photos
    qualities = [photo.quality for photo in photos if photo.quality]
    assert len(qualities) == 8 and len(set(qualities)) > 3 and 5 <= min(qualities) <= max(qualities) <= 60
    assert np.corrcoef(qualities, [photo.degraded_psnr for photo in photos])[0, 1] > 0.8


def test_each_folder_has_its_own_resize_rule(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos_folder(2, "photos/large", 0, 401, 299)
    photos_folder(2, "photos/small", 10)
    photos_folder(1, "photos/left out", 20)
    rules = json.dumps({"large": "x0.5", "small": "none"})
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "out", "--folders", rules) == 0
    photos = [photo for split in ("train", "val") for photo in Manifest.read(tmp_path / "out" / split).photos]
    sizes = {(photo.name.split("/")[0], photo.width, photo.height) for photo in photos}
    assert sizes == {("large", 200, 150), ("small", 203, 149)} and len(photos) == 4


def test_a_folder_of_the_mapping_may_be_a_link(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cities").symlink_to(photos_folder(2, "elsewhere"))
    rules = json.dumps({"cities": "none"})
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "out", "--folders", rules) == 0
    assert Manifest.read(tmp_path / "out/train").photos[0].name.startswith("cities/photo-")


def test_pair_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    (pairs / "deep").mkdir(parents=True)
    whole = {}
    for number in range(9):
        name = f"deep/{number}.png" if number % 2 else f"{number}.png"
        whole[name] = np.random.default_rng(number).integers(0, 256, (128, 256), dtype=np.uint8)
        Image.fromarray(whole[name]).save(pairs / name)
    Image.fromarray(whole["0.png"][:, :255]).save(pairs / "narrow.png")
    assert main(["--pairs", str(pairs), "--out", str(tmp_path / "out"), "--num_workers", "1"]) == 1
    num_seen = 0
    for split in ("train", "val"):
        manifest = Manifest.read(tmp_path / "out" / split)
        for photo, pair in zip(manifest.photos, pairs_of(tmp_path / "out", split).values(), strict=True):
            np.testing.assert_array_equal(np.concatenate(pair, 1), whole[photo.name])
            num_seen += 1
    assert num_seen == 9


def test_names_of_all_kinds_give_keys_without_a_dot(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(8)
    odd = ["a b.png", "v1.2.final.png", "Москва.png", "🌆.png", "x" * 251 + ".png", "new\nline.png", "-.png"]
    odd.append(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    for path, name in zip(sorted(photos.iterdir()), odd, strict=True):
        path.rename(photos / name)
    result = run_shards(*SMALL, "--photos", photos, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    named = [
        photo.name for split in ("train", "val") for photo in Manifest.read(tmp_path / "out" / split).photos
    ]
    assert sorted(named) == sorted(odd)
    keys = [key for split in ("train", "val") for key in pairs_of(tmp_path / "out", split)]
    assert len(keys) == 48 and all(len(key) == 10 and key.isdigit() for key in keys)


@pytest.mark.slow
def test_254_photos_at_the_sources_settings_give_13056_and_3200_pairs(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    train, val, out = (
        photos_folder(204, "t", 0, 61, 47),
        photos_folder(50, "v", 1000, 47, 61),
        tmp_path / "out",
    )
    recipe = REPOSITORY / "configs/shards.yaml"
    result = run_shards("--config", recipe, "--photos", train, "--val", val, "--out", out)
    try:
        assert (result.returncode, result.stderr) == (0, "")
        assert [Manifest.read(out / split).num_samples for split in ("train", "val")] == [13056, 3200]
        stride = 34816
        shards = [path for path in out.rglob("*.tar")]
        assert sum(path.stat().st_size // stride for path in shards) == 16256
    finally:
        shutil.rmtree(out, ignore_errors=True)  # half a gigabyte


def test_the_degraded_psnr_of_real_photographs_is_scikit_images(tmp_path: Path, shared_data: Path) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    photos, out = shared_data / "val/city20", tmp_path / "out"
    options = ("--photos", photos, "--out", out, "--num_workers", 1, "--resize", "none", "--val_fraction", 0)
    assert main([*map(str, options)]) == 0
    manifest = Manifest.read(out / "train")
    assert len(manifest.photos) == 20
    scores = []
    for photo in manifest.photos:
        clean = Image.open(photos / photo.name).convert("RGB")
        clean.save(tmp_path / "degraded.jpg", quality=20)
        whole = [np.asarray(part.convert("L")) for part in (clean, Image.open(tmp_path / "degraded.jpg"))]
        for top in range(0, whole[0].shape[0] - 127, 128):
            for left in range(0, whole[0].shape[1] - 127, 128):
                tiles = [part[top : top + 128, left : left + 128] for part in whole]
                scores.append(metrics.peak_signal_noise_ratio(*tiles))
    assert len(scores) == manifest.num_samples
    assert manifest.degraded_psnr == pytest.approx(np.mean(scores), abs=1e-4)


# The same shards always


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
    assert "nothing to do" not in capsys.readouterr().out
    assert make(*options) == 0
    assert traces(tmp_path / "out") == before
    assert "up to date, nothing to do" in capsys.readouterr().out


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
        patch.setattr(folder.Path, "unlink", unlink)
        assert make(*options) == 130
    assert (tmp_path / "out/train/manifest.json").is_file()
    assert any(path.name != "manifest.json" for path in (tmp_path / "out/train").glob("*.json"))
    assert make(*options) == 0
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
        "shard": {"name": "000000.tar", "bytes": 7, "sha256": "", "num_samples": 1},
        "photos": [],
        "refused": [],
    }
    (tmp_path / "out/train/000000.json").write_text(json.dumps(stale))
    if at == "record":
        (tmp_path / "out/train/000000.tar").unlink()
    assert make(*options) == 0
    assert contents(tmp_path / "out") == before


# Interrupted

LARGE = ("--resize", "long:1536", "--samples_per_shard", 1, "--num_sheet_pairs", 2)


def start_and_wait_for_shards(*arguments: object, num_shards: int = 3) -> subprocess.Popen[str]:
    """A shard maker in a process group of its own, as soon as it has finished some shards."""
    out = Path(str(arguments[arguments.index("--out") + 1]))
    process = subprocess.Popen(
        shards_command(*arguments),
        cwd=REPOSITORY,
        env=quiet_env(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("*/0*.tar"))) < num_shards:
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be interrupted"
        time.sleep(0.002)
    return process


def children_of(process_id: int) -> list[int]:
    listed = Path(f"/proc/{process_id}/task/{process_id}/children")
    if not listed.is_file():
        pytest.skip("no list of child processes here")
    return [int(child) for child in listed.read_text().split()]


def is_alive(process_id: int) -> bool:
    """A process that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_halfway_it_keeps_finished_shards_and_completes_the_rest(
    tmp_path: Path, photos_folder: PhotosFolder, num_workers: int
) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--num_workers", num_workers)
    process = start_and_wait_for_shards(*options, "--out", out)
    children = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(is_alive(child) for child in children):  # no orphans that write on
        assert time.monotonic() < deadline, "workers outlive the killed shard maker"
        time.sleep(0.01)
    assert not (out / "train/manifest.json").exists()
    kept = {
        name: trace for name, trace in traces(out).items() if Path(name).suffix == ".tar" and "/0" in name
    }
    assert 3 <= len(kept) < 16
    (out / "train/.writing-left.tar").write_bytes(b"half a shard")
    assert run_shards(*options, "--out", out).returncode == 0
    assert kept.items() <= traces(out).items()
    assert main([*map(str, options), "--num_workers", "1", "--out", str(tmp_path / "undisturbed")]) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_status_130(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--out", out, "--num_workers", 2)
    process = start_and_wait_for_shards(*options)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == [
        "shards: interrupted; start again to go on with the shards that are missing"
    ]
    assert not list(out.rglob(".writing-*"))
    assert run_shards(*options).returncode == 0


@pytest.mark.slow
def test_a_second_shard_maker_in_the_same_folder_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--out", out, "--num_workers", 1)
    process = start_and_wait_for_shards(*options, num_shards=1)
    os.kill(process.pid, signal.SIGSTOP)
    second = run_shards(*options)
    os.kill(process.pid, signal.SIGCONT)
    assert second.returncode == 1 and "another process is making shards there" in second.stderr
    process.communicate(timeout=60)
    assert process.returncode == 0


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
    assert len(result.stderr.splitlines()) == 1 and "No space left on device" in result.stderr
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
            failed.returncode == 1 and "File too large" in failed.stderr and "Traceback" not in failed.stderr
        )
    assert run_shards(*options).returncode == 0


# Refused


def test_photos_that_cannot_be_used_are_named_with_the_reason_and_counted(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(12), tmp_path / "out"
    Image.fromarray(photo_pixels(50)).save(photos / "cut.jpg", quality=95)
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:9000])
    (photos / "empty.png").touch()
    (photos / "text.jpg").write_text("no picture")
    Image.fromarray(photo_pixels(51, 63, 200)).save(photos / "small.png")
    write_png_header(photos / "huge.png", 40000, 40000)
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (photos / "notes.txt").touch()
    expected = {
        "cut.jpg": "truncated",
        "empty.png": "not a JPEG, PNG",
        "text.jpg": "not a JPEG, PNG",
        "small.png": "too small: 63x200 pixels after resizing, a tile has 64",
        "huge.png": "40000x40000 pixels is more than 250 megapixels",
        "gone.jpg": "No such file",
    }
    for attempt in (1, 2):  # the second time nothing is made, and all is said again
        result = run_shards(*SMALL, "--photos", photos, "--out", out)
        assert result.returncode == 1
        lines = result.stderr.splitlines()
        for name, reason in expected.items():
            assert any(line.startswith(f"refused: {name}: ") and reason in line for line in lines), (
                attempt,
                name,
            )
        assert lines[-1].startswith("6 photos refused") and len(lines) == 7
        assert "1 files that are no photos" in result.stdout
    assert run_shards(*SMALL, "--photos", photos, "--out", out, "--allow_refused", "true").returncode == 0
    manifests = [Manifest.read(out / split) for split in ("train", "val")]
    assert {item.name for manifest in manifests for item in manifest.refused} == expected.keys()
    assert sum(len(manifest.photos) for manifest in manifests) == 12
    assert sum(len(pairs_of(out, split)) for split in ("train", "val")) == 72


def test_the_keys_of_a_photo_refused_while_decoding_stay_unused(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(3), tmp_path / "out"
    Image.fromarray(photo_pixels(9)).save(photos / "photo-000-cut.jpg")
    os.truncate(photos / "photo-000-cut.jpg", 3000)
    options = ("--photos", photos, "--out", out, "--val_fraction", 0, "--samples_per_shard", 1000)
    assert make(*options) == 1
    keys = sorted(pairs_of(out, "train"))
    # Shards are filled by name: photo-000-cut.jpg has the keys of the first six tiles, and uses none of them.
    assert keys == [f"{number:010d}" for number in range(6, 24)]
    assert [photo.first_sample for photo in Manifest.read(out / "train").photos] == [0, 6, 12]


def test_all_kinds_of_pictures_become_pairs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.fromarray(photo_pixels(1))
    sideways = Image.Exif()
    sideways[0x0112] = 6
    image.save(photos / "sideways.jpg", exif=sideways)
    image.save(photos / "sideways.tif", exif=sideways)
    image.convert("CMYK").save(photos / "cmyk.jpg")
    image.convert("L").save(photos / "grey.webp")
    image.convert("1").save(photos / "bits.png")
    image.convert("P").save(photos / "palette.png", transparency=3)
    image.convert("LA").save(photos / "la.png")
    image.convert("RGBA").save(photos / "rgba.tif")
    image.save(photos / "rgb.bmp")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(photos / "deep.png")
    assert make("--photos", photos, "--out", tmp_path / "out") == 0
    found = [photo for split in ("train", "val") for photo in Manifest.read(tmp_path / "out" / split).photos]
    sizes = {photo.name: (photo.width, photo.height) for photo in found}
    assert len(sizes) == 10
    assert {name for name, size in sizes.items() if size == (149, 203)} == {"sideways.jpg", "sideways.tif"}


def test_the_same_photo_in_both_folders_is_refused(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    train, val = photos_folder(3, "t"), photos_folder(2, "v", 100)
    shutil.copy(train / "photo-001.png", val / "another name.png")
    result = run_shards(*SMALL, "--photos", train, "--val", val, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "refused: photo-001.png: the same file as the validation photo another name.png" in result.stderr
    names = [
        [photo.name for photo in Manifest.read(tmp_path / "out" / split).photos] for split in ("train", "val")
    ]
    assert names == [
        ["photo-000.png", "photo-002.png"],
        ["another name.png", "photo-100.png", "photo-101.png"],
    ]


def test_a_validation_folder_below_the_training_photos_is_no_part_of_these(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos = photos_folder(3)
    val = photos_folder(2, "photos/val", 100)
    assert make("--photos", photos, "--val", val, "--out", photos / "shards") == 0
    counts = [len(Manifest.read(photos / "shards" / split).photos) for split in ("train", "val")]
    assert counts == [3, 2]


def test_shards_among_the_photos_are_not_read_as_photos(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(3)
    for _ in range(2):
        assert make("--photos", photos, "--out", photos / "out") == 0
    assert sum(len(Manifest.read(photos / "out" / split).photos) for split in ("train", "val")) == 3


def test_a_photo_that_turns_up_broken_in_a_finished_folder_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos = photos_folder(3)
    options = ("--photos", photos, "--out", tmp_path / "out")
    assert make(*options) == 0
    shards = {name: value for name, value in traces(tmp_path / "out").items() if name.endswith(".tar")}
    (photos / "late.jpg").write_text("no picture")
    assert make(*options) == 1
    assert [item.name for item in Manifest.read(tmp_path / "out/train").refused] == ["late.jpg"]
    (photos / "late.jpg").unlink()
    assert make(*options) == 0
    assert not Manifest.read(tmp_path / "out/train").refused
    assert shards.items() <= traces(tmp_path / "out").items()


def test_a_photo_that_changed_underway_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_folder(3)
    claim = folder.claim

    def change_a_photo(*arguments: object) -> None:
        claim(*arguments)  # type: ignore[arg-type]
        Image.fromarray(photo_pixels(0, 300, 300)).save(photos / "photo-001.png")

    monkeypatch.setattr(folder, "claim", change_a_photo)
    assert make("--photos", photos, "--out", tmp_path / "out") == 1
    refused = [item for split in ("train", "val") for item in Manifest.read(tmp_path / "out" / split).refused]
    assert [(item.name, item.reason) for item in refused] == [
        ("photo-001.png", "changed while shards were made of it")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_photo_that_may_not_be_read_is_refused(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(3)
    (photos / "photo-001.png").chmod(0)
    result = run_shards(*SMALL, "--photos", photos, "--out", tmp_path / "out")
    assert result.returncode == 1 and "refused: photo-001.png: cannot be read" in result.stderr


# Folders that are not taken


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--tile_pixels", 32), "tile_pixels: 64 there, 32 now"),
        (("--degradation.jpeg_quality", 30), "'jpeg_quality': 30"),
        (("--val_fraction", 0.5), "val_fraction: 0.2 there, 0.5 now"),
    ],
)
def test_a_folder_made_with_another_config_is_left_intact(
    tmp_path: Path,
    photos_folder: PhotosFolder,
    capsys: pytest.CaptureFixture[str],
    change: tuple[object, ...],
    told: str,
) -> None:
    options = ("--photos", photos_folder(3), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = contents(tmp_path / "out"), traces(tmp_path / "out")
    assert make(*options, *change) == 1
    error = capsys.readouterr().err
    assert "made with another config" in error and told in error
    assert (contents(tmp_path / "out"), traces(tmp_path / "out")) == before


def test_a_folder_of_other_photos_is_left_intact(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--photos", photos_folder(3), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = traces(tmp_path / "out")
    photos_folder(1, first_seed=77)
    assert make(*options) == 1
    assert "holds shards of other photos" in capsys.readouterr().err
    assert traces(tmp_path / "out") == before


def test_a_folder_with_something_else_in_it_is_left_intact(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    assert make("--photos", photos_folder(2), "--out", tmp_path / "out") == 1
    assert "is not empty and holds no shards of ours" in capsys.readouterr().err
    assert contents(tmp_path / "out").keys() == {"thesis.txt"}


def test_an_output_folder_around_the_photos_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photos_folder(2)
    for out in (tmp_path, photos):
        before = contents(out)
        assert make("--photos", photos, "--out", out) == 1
        assert "lies in the output folder" in capsys.readouterr().err
        assert contents(out) == before


def test_folders_without_a_photo_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make("--photos", tmp_path / "nowhere", "--out", tmp_path / "out") == 1
    assert f"shards: {tmp_path}/nowhere: no such folder of photos" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    assert make("--photos", tmp_path / "empty", "--out", tmp_path / "out") == 1
    assert "no photo (JPEG, PNG, WebP, TIFF, BMP) in or below" in capsys.readouterr().err
    (tmp_path / "empty/broken.jpg").touch()
    assert make("--photos", tmp_path / "empty", "--out", tmp_path / "out", "--allow_refused", "true") == 1
    assert "none of the 1 photos can be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_photo_gives_no_validation_and_says_so(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--photos", photos_folder(1), "--out", tmp_path / "out", "--val_fraction", 0)
    assert make(*options) == 0
    assert "warning: no val pairs; give more photos" in capsys.readouterr().err
    assert Manifest.read(tmp_path / "out/val").num_samples == 0
    assert (tmp_path / "out/train.png").exists() and not (tmp_path / "out/val.png").exists()


def test_no_pair_at_all_is_a_failure_even_if_refusals_are_allowed(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos = photos_folder(2)
    for path in photos.iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
        os.truncate(path.with_suffix(".jpg"), 3000)
    assert make("--photos", photos, "--out", tmp_path / "out", "--allow_refused", "true") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either photos (folder of clean photos) or pairs"),
        (["--photos", "a", "--pairs", "b"], "give either photos"),
        (["--photos", "a", "--reisze", "none"], 'did you mean "resize"?'),
        (["--photos", "a", "--quality", "20"], 'did you mean "degradation.jpeg_quality"?'),
        (["--photos", "a", "--color", "blue"], "'luma', 'rgb'"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[0] and lines[1:] == ["python -m shards --help explains every key"]


# The rest


def test_the_sheet_shows_clean_beside_degraded_tiles(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    out = tmp_path / "out"
    assert make("--photos", photos_folder(2), "--out", out, "--val_fraction", 0, "--num_sheet_pairs", 5) == 0
    sheet = np.asarray(Image.open(out / "train.png"))
    assert sheet.shape == (2 * (64 + 8), 4 * (128 + 8))
    pairs = {clean.tobytes(): degraded for clean, degraded in pairs_of(out, "train").values()}
    shown = [sheet[row * 72 :, column * 136 :][:64, :128] for row in (0, 1) for column in range(4)]
    for cell in shown[:5]:
        np.testing.assert_array_equal(cell[:, 64:], pairs[np.ascontiguousarray(cell[:, :64]).tobytes()])
    assert len({cell.tobytes() for cell in shown[:5]}) == 5 and all((cell == 255).all() for cell in shown[5:])


def test_preprocessing_does_not_import_torch() -> None:
    modules = "shards.__main__, shards.skylines, srcnn.photo, srcnn.degrade, srcnn.tiles, srcnn.sample, srcnn.metrics"
    heavy = "{'torch', 'torchvision', 'accelerate', 'wandb', 'matplotlib'}"
    program = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=quiet_env(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
