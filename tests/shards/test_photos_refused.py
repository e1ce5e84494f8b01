"""`python -m shards` on what it cannot use: photos, folders and commands."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    SMALL,
    PhotosFolder,
    contents,
    make,
    pairs_of,
    photo_pixels,
    photos_of,
    refused_of,
    run_shards,
    traces,
)
from messages import lines_with, numbers, says
from PIL import Image
from test_reading import write_png_header

from shards import output
from shards.__main__ import main
from srcnn.data.manifest import read_manifest
from srcnn.runtime.storage import Folder


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
        "cut.jpg": ["truncated"],
        "empty.png": ["empty"],
        "text.jpg": ["JPEG", "TIFF"],
        "small.png": ["63x200", 64],
        "huge.png": ["40000x40000", 250],
        "gone.jpg": [os.strerror(errno.ENOENT)],
    }
    for attempt in (1, 2):  # the second time nothing is made, and all is said again
        result = run_shards(*SMALL, "--photos", photos, "--out", out)
        assert result.returncode == 1
        lines = result.stderr.splitlines()
        for name, reason in expected.items():
            assert lines_with(result.stderr, name, *reason), (attempt, name)
        assert says(lines[-1], 6, "--allow_refused") and len(lines) == 7
        assert numbers(result.stdout.splitlines()[-1]) == [1], "files that are no photos"
    assert run_shards(*SMALL, "--photos", photos, "--out", out, "--allow_refused", "true").returncode == 0
    splits = out / "train", out / "val"
    assert {item.name for item in refused_of(*splits)} == expected.keys()
    assert len(photos_of(*splits)) == 12
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
    assert [photo.first_sample for photo in photos_of(out / "train")] == [0, 6, 12]


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
    found = photos_of(tmp_path / "out/train", tmp_path / "out/val")
    sizes = {photo.name: (photo.width, photo.height) for photo in found}
    assert len(sizes) == 10
    assert {name for name, size in sizes.items() if size == (149, 203)} == {"sideways.jpg", "sideways.tif"}


def test_the_same_photo_in_both_folders_is_refused(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    train, val = photos_folder(3, "t"), photos_folder(2, "v", 100)
    shutil.copy(train / "photo-001.png", val / "another name.png")
    result = run_shards(*SMALL, "--photos", train, "--val", val, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert lines_with(result.stderr, "photo-001.png", "another name.png")
    names = [
        [photo.name for photo in photos_of(tmp_path / "out" / split)] for split in ("train", "val")
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
    counts = [len(photos_of(photos / "shards" / split)) for split in ("train", "val")]
    assert counts == [3, 2]


def test_shards_among_the_photos_are_not_read_as_photos(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(3)
    for _ in range(2):
        assert make("--photos", photos, "--out", photos / "out") == 0
    assert len(photos_of(photos / "out/train", photos / "out/val")) == 3


def test_a_photo_that_turns_up_broken_in_a_finished_folder_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos = photos_folder(3)
    options = ("--photos", photos, "--out", tmp_path / "out")
    assert make(*options) == 0
    shards = {name: value for name, value in traces(tmp_path / "out").items() if name.endswith(".tar")}
    (photos / "late.jpg").write_text("no picture")
    assert make(*options) == 1
    assert [item.name for item in refused_of(tmp_path / "out/train")] == ["late.jpg"]
    (photos / "late.jpg").unlink()
    assert make(*options) == 0
    assert not refused_of(tmp_path / "out/train")
    assert shards.items() <= traces(tmp_path / "out").items()


def test_a_photo_that_changed_underway_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_folder(3)
    reserve_output = output.reserve_output

    def change_a_photo(*arguments: object) -> None:
        reserve_output(*arguments)  # type: ignore[arg-type]
        Image.fromarray(photo_pixels(0, 300, 300)).save(photos / "photo-001.png")

    monkeypatch.setattr(output, "reserve_output", change_a_photo)
    assert make("--photos", photos, "--out", tmp_path / "out") == 1
    refused = refused_of(tmp_path / "out/train", tmp_path / "out/val")
    assert [item.name for item in refused] == ["photo-001.png"] and refused[0].reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_photo_that_may_not_be_read_is_refused(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos = photos_folder(3)
    (photos / "photo-001.png").chmod(0)
    result = run_shards(*SMALL, "--photos", photos, "--out", tmp_path / "out")
    assert result.returncode == 1 and lines_with(result.stderr, "photo-001.png", os.strerror(errno.EACCES))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--tile_pixels", 32), ["tile_pixels", 64, 32]),
        (("--degradation.jpeg_quality", 30), ["jpeg_quality", 20, 30]),
        (("--val_fraction", 0.5), ["val_fraction", 0.2, 0.5]),
    ],
)
def test_a_folder_made_with_another_config_is_left_intact(
    tmp_path: Path,
    photos_folder: PhotosFolder,
    capsys: pytest.CaptureFixture[str],
    change: tuple[object, ...],
    told: list[object],
) -> None:
    options = ("--photos", photos_folder(3), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = contents(tmp_path / "out"), traces(tmp_path / "out")
    assert make(*options, *change) == 1
    assert says(capsys.readouterr().err, tmp_path / "out", *told)
    assert (contents(tmp_path / "out"), traces(tmp_path / "out")) == before


def test_a_folder_of_other_photos_is_left_intact(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--photos", photos_folder(3), "--out", tmp_path / "out")
    assert make(*options) == 0
    before = traces(tmp_path / "out")
    photos_folder(1, first_seed=77)
    assert make(*options) == 1
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert traces(tmp_path / "out") == before


def test_a_folder_with_something_else_in_it_is_left_intact(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    assert make("--photos", photos_folder(2), "--out", tmp_path / "out") == 1
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert contents(tmp_path / "out").keys() == {"thesis.txt"}


def test_an_output_folder_around_the_photos_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photos_folder(2)
    for out in (tmp_path, photos):
        before = contents(out)
        assert make("--photos", photos, "--out", out) == 1
        assert says(capsys.readouterr().err, photos, out)
        assert contents(out) == before


def test_folders_without_a_photo_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make("--photos", tmp_path / "nowhere", "--out", tmp_path / "out") == 1
    assert f"{tmp_path}/nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    assert make("--photos", tmp_path / "empty", "--out", tmp_path / "out") == 1
    assert says(capsys.readouterr().err, tmp_path / "empty", "JPEG", "PNG", "WebP", "TIFF", "BMP")
    (tmp_path / "empty/broken.jpg").touch()
    assert make("--photos", tmp_path / "empty", "--out", tmp_path / "out", "--allow_refused", "true") == 1
    assert says(capsys.readouterr().err, 1, "broken.jpg")
    assert not (tmp_path / "out").exists()


def test_one_photo_gives_no_validation_and_says_so(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--photos", photos_folder(1), "--out", tmp_path / "out", "--val_fraction", 0)
    assert make(*options) == 0
    assert "--val" in capsys.readouterr().err
    assert read_manifest(Folder(tmp_path / "out/val")).num_samples == 0
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
        ([], ["photos", "pairs"]),
        (["--photos", "a", "--pairs", "b"], ["photos", "pairs"]),
        (["--photos", "a", "--reisze", "none"], ["resize"]),
        (["--photos", "a", "--quality", "20"], ["degradation.jpeg_quality"]),
        (["--photos", "a", "--color", "blue"], ["luma", "rgb"]),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert says(lines[0], *told) and len(lines) == 2 and "python -m shards --help" in lines[1]
