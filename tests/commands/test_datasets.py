"""srcnn datasets: photos of a test set are found by their pixels in what a person downloaded, and checked."""

import io
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from messages import facts, says
from PIL import Image
from small import draw_photo

from srcnn.__main__ import main
from srcnn.photos import benchmark_sets
from srcnn.photos.benchmark_sets import BenchmarkSet, check, find_set, photos_of, pixel_hash, prepare
from srcnn.restoration.model_cards import JPEG_SETS, SCALE_SETS
from srcnn.runtime.errors import UserError

PHOTOS = {"a.png": draw_photo(0, 33, 47), "b.png": draw_photo(1, 47, 33)[..., 0], "c.png": draw_photo(2, 61, 41),
          "d.png": np.repeat(draw_photo(4, 41, 61)[..., :1], 3, axis=2)}


@pytest.fixture
def wanted():
    return BenchmarkSet("mine", "what", "example.org", "any", {name: pixel_hash(each) for name, each in PHOTOS.items()})


@pytest.fixture
def download(tmp_path):
    """Other names and formats, among other files."""
    folder = tmp_path / "download"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(PHOTOS["a.png"]).save(folder / "deep" / "first_HR.bmp")
    Image.fromarray(PHOTOS["b.png"]).convert("RGB").save(folder / "second.png")  # greyscale, stored as colour
    Image.fromarray(PHOTOS["c.png"]).save(folder / "deep" / "third.tif")
    Image.fromarray(PHOTOS["d.png"][..., 0]).save(folder / "deep" / "fourth.png")  # and the other way round
    Image.fromarray(draw_photo(3, 50, 50)).save(folder / "another.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "read.me").write_text("text")
    return folder


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


@pytest.mark.parametrize("packed", [False, True])
def test_the_photos_are_found_whatever_their_names_and_formats(tmp_path, wanted, download, packed):
    source = tmp_path / "download.zip" if packed else download
    zipped(download)
    assert prepare(wanted, source, tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(PHOTOS)
    for name, pixels in PHOTOS.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), pixels)
    assert check(wanted, tmp_path / "out") == ([], [])


def test_what_is_not_there_is_named_and_added_from_another_source(tmp_path, wanted, download):
    (download / "second.png").rename(tmp_path / "later.png")
    assert prepare(wanted, download, tmp_path / "out") == ["b.png"]
    written = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    (other := tmp_path / "other").mkdir()
    (tmp_path / "later.png").rename(other / "later.png")
    assert prepare(wanted, other, tmp_path / "out") == []
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == written


def test_one_level_of_one_pixel_makes_another_photo(tmp_path, wanted, download):
    changed = PHOTOS["a.png"].copy()
    changed[7, 9, 1] ^= 1
    (tmp_path / "out").mkdir()
    Image.fromarray(changed).save(tmp_path / "out" / "a.png")
    for act in (lambda: check(wanted, tmp_path / "out"), lambda: prepare(wanted, download, tmp_path / "out")):
        with pytest.raises(UserError, match=facts(tmp_path / "out" / "a.png", "mine", "pixels")):
            act()


def test_photos_of_no_set_are_named(tmp_path, wanted, download):
    prepare(wanted, download, tmp_path / "out")
    shutil.copy(download / "another.png", tmp_path / "out")
    assert check(wanted, tmp_path / "out") == ([], ["another.png"])


def test_a_hash_tells_shapes_apart():
    flat = np.arange(12, dtype=np.uint8)
    assert len({pixel_hash(flat.reshape(shape)) for shape in ((3, 4), (4, 3), (2, 6), (2, 2, 3))}) == 4


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=facts(tmp_path / "x.zip", "ZIP")):
        list(photos_of(tmp_path / "x.zip"))


def test_an_archive_that_is_damaged_or_encrypted_is_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.png", bytes(1000))
    for at, value in ((50, 7), (6, 1)):  # the data; the flag of encryption, below in the directory too
        damaged = bytearray(content.getvalue())
        damaged[at] = value
        if at == 6:
            damaged[content.getvalue().index(b"PK\x01\x02") + 8] = value
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=facts(tmp_path / "x.zip")):
            list(photos_of(tmp_path / "x.zip"))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_a_decompressor_finds_is_a_damaged_archive(tmp_path, method):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("a.png", np.random.default_rng(0).integers(0, 9, 1000, np.uint8).tobytes())
    for at in range(40, 200, 7):
        damaged = bytearray(content.getvalue())
        damaged[at : at + 9] = b"\xff" * 9
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=facts(tmp_path / "x.zip")):
            list(photos_of(tmp_path / "x.zip"))


def test_a_large_member_of_an_archive_is_not_read_and_a_false_size_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_sets, "MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1_000_000))
        archive.writestr("b.png", bytes(1000))
    assert [name for name, _ in photos_of(tmp_path / "x.zip")] == ["b.png"]
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace((1_000_000).to_bytes(4, "little"), (900).to_bytes(4, "little")))
    with pytest.raises(UserError, match=facts(tmp_path / "x.zip")):
        list(photos_of(tmp_path / "x.zip"))


def test_every_set_of_the_model_cards_is_known():
    for name in {name for name, _ in (*JPEG_SETS, *SCALE_SETS)}:
        found = find_set(name)
        assert found.source and found.terms and len(set(found.photos.values())) == len(found.photos)
    assert {name: len(each.photos) for name, each in benchmark_sets.benchmark_sets().items()} == {
        "live1_y": 29, "live1_color": 29, "classic5": 5, "set5": 5, "set14": 14, "bsd100": 100, "city20": 20}


@pytest.mark.parametrize("name", ["classic5", "set5", "set14", "city20"])
def test_the_real_sets_are_recognized(shared_data, name):
    if not (folder := shared_data / "val" / name).is_dir():
        pytest.skip(f"no {folder}")
    assert check(find_set(name), folder) == ([], [])


def test_the_command_lists_prepares_and_checks(tmp_path, monkeypatch, capsys, wanted, download):
    monkeypatch.setattr(benchmark_sets, "benchmark_sets", lambda: {"mine": wanted})
    assert main(["datasets"]) == 0
    assert says(capsys.readouterr().out, "mine", 4, "example.org", "srcnn datasets prepare")
    out = str(tmp_path / "mine")
    (download / "second.png").unlink()
    assert main(["datasets", "prepare", "mine", "--from", str(download), "--out", out]) == 1
    told = capsys.readouterr()
    assert says(told.out, 3, 4) and says(told.err, "b.png", "example.org")
    assert main(["datasets", "check", out]) == 1
    Image.fromarray(PHOTOS["b.png"]).save(tmp_path / "mine" / "b.png")
    assert main(["datasets", "check", out]) == 0
    assert main(["datasets", "check", str(download), "--name", "mine"]) == 1
    assert main(["datasets", "prepare", "set6", "--from", out, "--out", out]) == 1
    assert says(capsys.readouterr().err, "set6", "mine")


@pytest.mark.parametrize("arguments", [["score", "live1_y"], ["verify", "--photos", "nowhere"],
                                       ["score", "empty"], ["verify", "--photos", "empty"]])
def test_who_has_no_test_set_is_told_where_they_come_from(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(arguments) == 1
    assert "srcnn datasets" in capsys.readouterr().err


def test_the_list_of_hashes_is_plain_json():
    content = json.loads(benchmark_sets.SETS.read_text())
    assert all(len(value) == 64 and int(value, 16) for each in content.values() for value in each["photos"].values())


def test_the_command_needs_no_pytorch():
    code = "import sys; from srcnn.__main__ import main; main(['datasets']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
