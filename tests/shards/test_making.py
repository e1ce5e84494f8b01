"""`python -m shards` end to end: what is in the shards, and the sheet beside them."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, PhotosFolder, make, pairs_of, photo_pixels, photos_of, quiet_env, run_shards
from messages import numbers, says
from PIL import Image, ImageDraw
from small import draw_photo

from shards import contact_sheet
from shards.__main__ import main
from srcnn.data.manifest import read_manifest
from srcnn.photos.degradation import jpeg
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import luma_l
from srcnn.runtime.settings import parse
from srcnn.runtime.storage import Folder
from srcnn.training.config import TrainConfig


def test_every_pair_is_a_tile_of_the_photo_and_of_its_jpeg(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(4), tmp_path / "out"
    assert make("--photos", photos, "--out", out) == 0
    num_seen = 0
    for split in ("train", "val"):
        pairs = list(pairs_of(out, split).values())
        for photo in photos_of(out / split):
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
        manifest = read_manifest(Folder(tmp_path / "out" / split))
        assert manifest.tile_shape == (64, 64) and manifest.stride
        for shard in manifest.shards:
            content = (tmp_path / "out" / split / shard.name).read_bytes()
            assert shard.sha256 == hashlib.sha256(content).hexdigest()
            assert 0 <= len(content) - shard.num_samples * manifest.stride <= 10240  # the end of a tar
        for photo in photos_of(tmp_path / "out" / split):
            assert photo.first_sample % 6 == 0 and photo.num_samples == 6
        names = {path.name for path in (tmp_path / "out" / split).iterdir()}
        assert names == {"manifest.json", "index.npy", "photos.jsonl", *(shard.name for shard in manifest.shards)}


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
    manifest, photos = read_manifest(Folder(tmp_path / "out/train")), photos_of(tmp_path / "out/train")
    assert photos[0].quality is None
    assert (photos[0].width, photos[0].height) == (201, 147)
    assert 15 < manifest.degraded_psnr < 40


def test_a_range_of_qualities_is_in_the_manifest(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    options = ("--degradation.jpeg_quality", "[5, 60]", "--val_fraction", 0)
    assert make("--photos", photos_folder(8), "--out", tmp_path / "out", *options) == 0
    photos = photos_of(tmp_path / "out/train")
    qualities = [photo.quality for photo in photos if photo.quality]
    assert len(qualities) == 8 and len(set(qualities)) > 3 and 5 <= min(qualities) <= max(qualities) <= 60
    assert np.corrcoef(qualities, [photo.degraded_psnr for photo in photos])[0, 1] > 0.8


def test_each_folder_has_its_own_resize_rule(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    photos_folder(2, "photos/large", 0, 401, 299)
    photos_folder(2, "photos/small", 10)
    photos_folder(1, "photos/left out", 20)
    rules = json.dumps({"large": "x0.5", "small": "none"})
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "out", "--folders", rules) == 0
    photos = photos_of(tmp_path / "out/train", tmp_path / "out/val")
    sizes = {(photo.name.split("/")[0], photo.width, photo.height) for photo in photos}
    assert sizes == {("large", 200, 150), ("small", 203, 149)} and len(photos) == 4


def test_a_folder_of_the_mapping_may_be_a_link(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cities").symlink_to(photos_folder(2, "elsewhere"))
    rules = json.dumps({"cities": "none"})
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "out", "--folders", rules) == 0
    assert photos_of(tmp_path / "out/train")[0].name.startswith("cities/photo-")


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
        photos = photos_of(tmp_path / "out" / split)
        for photo, pair in zip(photos, pairs_of(tmp_path / "out", split).values(), strict=True):
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
    named = [photo.name for photo in photos_of(tmp_path / "out/train", tmp_path / "out/val")]
    assert sorted(named) == sorted(odd)
    keys = [key for split in ("train", "val") for key in pairs_of(tmp_path / "out", split)]
    assert len(keys) == 48 and all(len(key) == 10 and key.isdigit() for key in keys)


def test_what_resizing_did_to_photos_is_told(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    photos_folder(2, "photos", 0, 203, 149)
    photos_folder(1, "photos", 5, 1100, 500)
    photos = photos_folder(1, "photos", 7, 90, 150)
    default = ("--photos", photos, "--num_workers", 1, "--num_sheet_pairs", 0, "--allow_refused", "true")
    assert main([*map(str, default), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "1 of 4 photos reduced" in said.out and "1 too small" in said.out
    assert "photo-007.png" in said.err and "enlarged" not in said.err
    photos_made = photos_of(tmp_path / "out/train", tmp_path / "out/val")
    sizes = {photo.name: (photo.width, photo.height) for photo in photos_made}
    assert sizes == {"photo-000.png": (203, 149), "photo-001.png": (203, 149), "photo-005.png": (1024, 465)}
    source = ("--config", REPOSITORY / "configs/shards-source.yaml", *default, "--out", tmp_path / "source")
    assert main([*map(str, source), "--tile_pixels", "512"]) == 0
    assert numbers(capsys.readouterr().err) == [4, 4, 1024, 1024, 1024]


def jpeg_photos(folder: Path) -> Path:
    """Good and poor originals: JPEGs, and PNGs of what was a JPEG."""
    folder.mkdir()
    photo = photo_pixels(1)
    for name, quality in (("good.jpg", 90), ("poor.jpg", 40)):
        Image.fromarray(photo).save(folder / name, quality=quality)
    Image.fromarray(jpeg(photo_pixels(2), 30)).save(folder / "was poor.png")
    Image.fromarray(jpeg(photo_pixels(3), 35)).save(folder / "again.jpg", quality=95)
    Image.fromarray(photo_pixels(4)).save(folder / "clean.png")
    return folder


def test_originals_that_are_poor_jpegs_are_counted_and_named_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = jpeg_photos(tmp_path / "photos"), tmp_path / "out"
    for _ in range(2):  # the second time everything is there
        assert make("--photos", photos, "--out", out) == 0
        lines = capsys.readouterr().err.splitlines()
        assert "3 photos" in lines[-1] and "--resize" in lines[-1] and len(lines) == 4
        assert {line.split(": ")[1]: numbers(line)[-1] for line in lines[:3]} == {
            "poor.jpg": 40, "was poor.png": 30, "again.jpg": 35}
    found = {photo.name: photo.original_quality for photo in photos_of(out / "train", out / "val")}
    assert found == {"good.jpg": 90, "poor.jpg": 40, "was poor.png": 30, "again.jpg": 35, "clean.png": None}


def test_where_a_photo_is_not_decoded_in_full_its_file_tells_the_quality(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo_pixels(1, 1203, 901)).save(tmp_path / "photos/a.jpg", quality=45)
    settings = ("--photos", tmp_path / "photos", "--decode", "reduced", "--resize", "max:256", "--val_fraction", 0)
    assert make(*settings, "--out", tmp_path / "out") == 0
    assert [photo.original_quality for photo in photos_of(tmp_path / "out/train")] == [45]


@pytest.mark.slow
def test_254_photos_at_the_sources_settings_give_13056_and_3200_pairs(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    train, val, out = (
        photos_folder(204, "t", 0, 61, 47),
        photos_folder(50, "v", 1000, 47, 61),
        tmp_path / "out",
    )
    recipe = REPOSITORY / "configs/shards-source.yaml"
    result = run_shards("--config", recipe, "--photos", train, "--val", val, "--out", out)
    try:
        assert result.returncode == 0 and numbers(result.stderr)[:2] == [254, 254]
        assert [read_manifest(Folder(out / split)).num_samples for split in ("train", "val")] == [13056, 3200]
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
    manifest = read_manifest(Folder(out / "train"))
    assert manifest.photos and manifest.photos.num_photos == 20
    scores = []
    for photo in photos_of(out / "train"):
        clean = Image.open(photos / photo.name).convert("RGB")
        clean.save(tmp_path / "degraded.jpg", quality=20)
        whole = [np.asarray(part.convert("L")) for part in (clean, Image.open(tmp_path / "degraded.jpg"))]
        for top in range(0, whole[0].shape[0] - 127, 128):
            for left in range(0, whole[0].shape[1] - 127, 128):
                tiles = [part[top : top + 128, left : left + 128] for part in whole]
                scores.append(metrics.peak_signal_noise_ratio(*tiles))
    assert len(scores) == manifest.num_samples
    assert manifest.degraded_psnr == pytest.approx(np.mean(scores), abs=1e-4)


def test_the_sheet_shows_clean_beside_degraded_tiles_with_the_psnr_of_each(tmp_path: Path, photos_folder: PhotosFolder,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    out, texts = tmp_path / "out", []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, *rest: (
        texts.append(text), write(draw, place, text, *rest)))
    assert make("--photos", photos_folder(2), "--out", out, "--val_fraction", 0, "--num_sheet_pairs", 5) == 0
    sheet = np.asarray(Image.open(out / "train.png"))
    assert any("clean left, degraded right" in text for text in texts) and texts.count("clean") == 5
    found = 0
    for clean, degraded in pairs_of(out, "train").values():
        large = [tile.repeat(2, 0).repeat(2, 1) for tile in (clean, degraded)]
        for row, column in np.argwhere(sheet[:-128, :-264] == large[0][0, 0]):
            cell = sheet[row : row + 128, column : column + 128 + 8 + 128]
            if (cell[0, :128] == large[0][0]).all() and (cell[:, :128] == large[0]).all():
                np.testing.assert_array_equal(cell[:, 136:], large[1])
                assert f"degraded {metrics.peak_signal_noise_ratio(clean, degraded):.2f} dB" in texts
                found += 1
    assert found == 5


@pytest.mark.parametrize("color", ["luma", "rgb"])
def test_the_sheet_leaves_out_what_has_no_contrast(tmp_path: Path, color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, shown = tmp_path / "photos", []
    photos.mkdir()
    for number in range(12):
        flat = np.full((64, 64, 3), (255 - 20 * number, 9, 20 * number), np.uint8)
        Image.fromarray(draw_photo(number, 64, 64) if number < 6 else flat).save(photos / f"{number}.png")
    draw = contact_sheet.draw_sheet
    monkeypatch.setattr(contact_sheet, "draw_sheet", lambda pairs, *titles: shown.extend(pairs) or draw(pairs, *titles))
    assert make("--photos", photos, "--out", tmp_path / "out", "--val_fraction", 0, "--num_sheet_pairs", 4,
                "--tile_pixels", 64, "--color", color) == 0
    assert len(shown) == 4 and all(clean.std((0, 1)).min() > 5 for clean, _ in shown)


def test_preprocessing_does_not_import_torch() -> None:
    modules = ("shards.write, shards.__main__, shards.skylines, srcnn.photos.reading, srcnn.photos.degradation, "
               "srcnn.photos.tiling, srcnn.photos.metrics")
    heavy = "{'torch', 'torchvision', 'accelerate', 'wandb', 'matplotlib'}"
    program = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=quiet_env(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("arguments,told", [
    ([], ["srcnn-915-q20-stage1.yaml"]), (["--color", "rgb"], ["--model.channels 3"]),
                                            (["--contents", "clean"], ["degradation"])])
def test_at_the_end_it_is_said_where_the_shards_are_and_what_to_do_with_them(
    tmp_path: Path, photos_folder: PhotosFolder, capsys: pytest.CaptureFixture[str], arguments: list[str],
    told: list[str]
) -> None:
    out = tmp_path / "my shards"
    assert make("--photos", photos_folder(6), "--out", out, *arguments) == 0
    done, following = capsys.readouterr().out.splitlines()[-2:]
    assert all(path.is_file() for path in (out / "train.png", out / "val.png"))
    assert says(done, out / "train.png", out / "val.png") and says(following, "next", "srcnn train", *told)
    if "degradation" not in told:
        settings = shlex.split(following.partition("srcnn train")[2])
        assert parse(TrainConfig, "test", "", settings).shards == str(out)
