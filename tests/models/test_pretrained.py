"""The shipped weights that a JPEG's own quality picks; photos that are good already."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import facts, numbers, says
from PIL import Image
from small import draw_photo

from srcnn.__main__ import main
from srcnn.models.pretrained import FAMILY, GOOD_QUALITY, WeightSelector
from srcnn.models.weight_files import find_weights
from srcnn.models.weights import load_model
from srcnn.restoration.restore import restore, restore_array

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def save_jpeg(path, quality, **options):
    Image.fromarray(draw_photo(1, 61, 83)).save(path, quality=quality, **options)
    return path


@pytest.mark.parametrize(
    "quality,name", [(1, "q10"), (14, "q10"), (15, "q20"), (24, "q20"), (33, "q30"), (41, "q40"), (None, "blind")]
)
def test_the_nearest_quality_is_taken_and_the_blind_weights_by_force_where_none_is_known(quality, name):
    assert WeightSelector(FAMILY, CPU).weights_for_quality(quality, force=True) == f"srcnn-915-{name}"


def test_photos_that_are_good_or_no_jpeg_want_none_and_a_name_means_itself():
    selector = WeightSelector(FAMILY, CPU)
    assert selector.weights_for_quality(GOOD_QUALITY) is None and selector.weights_for_quality(None) is None
    assert selector.weights_for_quality(GOOD_QUALITY - 1) == selector.weights_for_quality(99, force=True)
    for quality in (5, 20, 99, None):
        assert WeightSelector("srcnn-915-q40", CPU).weights_for_quality(quality) == "srcnn-915-q40"
    with pytest.raises(FileNotFoundError, match=facts("srcnn-91", "srcnn-915-q20")):
        WeightSelector("srcnn-91", CPU)


def test_each_photo_of_a_folder_gets_its_own_and_good_ones_are_copied(tmp_path, capsys):
    for quality in (12, 38, 97):
        save_jpeg(tmp_path / f"q{quality}.jpg", quality)
    Image.fromarray(draw_photo(1, 61, 83)).save(tmp_path / "clean.png")
    assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out"), "--model", FAMILY]) == 0
    told = dict(line.split("/out/")[1].split(" (") for line in capsys.readouterr().out.splitlines())
    expected = {"q12.jpg": (12, "srcnn-915-q10"), "q38.jpg": (38, "srcnn-915-q40"), "q97.jpg": (97,),
                "clean.png": ("no JPEG damage",)}
    assert told.keys() == expected.keys() and all(says(told[name], *expected[name]) for name in told)
    for name in ("q97.jpg", "clean.png"):
        assert "srcnn" not in told[name]
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    forced = ["--force", "--model", FAMILY]
    assert main(["restore", str(tmp_path / "clean.png"), "-o", str(tmp_path / "forced"), *forced]) == 0
    restored = np.asarray(Image.open(tmp_path / "forced" / "clean.png"))
    assert np.array_equal(restored, restore(draw_photo(1, 61, 83), load_model("srcnn-915-blind")))
    assert main(["restore", str(tmp_path / "q97.jpg"), "-o", str(tmp_path / "b.png")]) == 0
    with Image.open(tmp_path / "b.png") as image, Image.open(tmp_path / "q97.jpg") as source:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), np.asarray(source))


def test_in_python_an_opened_jpeg_knows_its_quality():
    buffer = io.BytesIO()
    save_jpeg(buffer, 30, format="JPEG")
    with Image.open(buffer) as image:
        pixels = np.asarray(image)
        by_itself = np.asarray(restore(image, FAMILY))
        alone = np.asarray(restore(image, FAMILY, consistent=False))
    assert np.array_equal(by_itself, restore(pixels, FAMILY, quality=30))
    assert np.array_equal(by_itself, restore(pixels, FAMILY)), "from the pixels alone"
    assert not np.array_equal(alone, by_itself)
    assert np.array_equal(alone, restore(pixels, "srcnn-915-q30", quality=30))
    as_clean = restore_array(pixels, load_model("srcnn-915-q30"))
    assert not np.array_equal(alone, as_clean), "the chroma is smoothed, too"
    assert np.array_equal(restore(pixels, FAMILY, quality=99), pixels)


def test_weights_are_read_once_until_their_file_changes(tmp_path):
    pixels, path = draw_photo(1, 31, 43), tmp_path / "model.safetensors"
    shutil.copy(find_weights("srcnn-915-q10"), path)
    first = WeightSelector(str(path), CPU)
    assert first.load(str(path)) is WeightSelector(str(path), CPU).load(str(path))
    before = restore(pixels, str(path))
    assert np.array_equal(before, restore(pixels, "srcnn-915-q10"))
    shutil.copy(find_weights("srcnn-915-q40"), path)
    os.utime(path, (2**31, 2**31))
    assert np.array_equal(restore(pixels, str(path)), restore(pixels, "srcnn-915-q40"))
    assert np.array_equal(restore(pixels, first.load(str(path))), before)


def test_chroma_can_be_kept_and_strength_be_less(tmp_path):
    photo = save_jpeg(tmp_path / "a.jpg", 20)
    outputs = {}
    for name, options in (("whole", []), ("kept", ["--keep-chroma"]), ("none", ["--strength", "0", "--keep-chroma"])):
        assert main(["restore", str(photo), "-o", str(tmp_path / f"{name}.png"), "--model", FAMILY, *options]) == 0
        outputs[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
    assert np.array_equal(outputs["none"], np.asarray(Image.open(photo)))
    assert (outputs["whole"] != outputs["kept"]).mean() > 0.1
    assert main(["restore", str(photo), "-o", str(tmp_path / "x.png"), "--strength", "2"]) == 1


def srcnn(*arguments, **options):
    command = [sys.executable, "-m", "srcnn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, cwd=ROOT, **options)


def test_standard_input_to_standard_output(tmp_path):
    photo = save_jpeg(tmp_path / "a.jpg", 20)
    assert main(["restore", str(photo), "-o", str(tmp_path / "out"), "--model", FAMILY]) == 0
    done = srcnn("restore", "-", "--model", FAMILY, input=photo.read_bytes())
    assert done.returncode == 0 and b"srcnn-915-q20" in done.stderr
    assert done.stdout == (tmp_path / "out" / "a.jpg").read_bytes()
    done = srcnn("restore", "-", "--format", "png", input=photo.read_bytes())
    assert Image.open(io.BytesIO(done.stdout)).format == "PNG"
    good = save_jpeg(tmp_path / "good.jpg", 97).read_bytes()
    assert srcnn("restore", "-", input=good).stdout == good
    done = srcnn("restore", "-", input=b"no picture")
    assert done.returncode == 1 and done.stdout == b"" and b"JPEG" in done.stderr


def test_patterns_suffixes_and_what_is_there_already(tmp_path, capsys):
    for name in ("a.jpg", "b.jpg", "c.png"):
        Image.fromarray(draw_photo(1, 20, 30)).save(tmp_path / name, **({"quality": 20} if name != "c.png" else {}))
    (tmp_path / "notes.txt").write_text("not a photo")
    assert main(["restore", str(tmp_path / "*.jpg")]) == 0
    made = tmp_path / "a_restored.jpg"
    assert made.is_file() and (tmp_path / "b_restored.jpg").is_file() and not (tmp_path / "c_restored.png").exists()
    before = made.stat().st_mtime_ns
    capsys.readouterr()
    assert main(["restore", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert numbers(told.splitlines()[-1]) == [0, 1, 2, 0, 3], "restored, copied, skipped, failed, other files"
    assert made.stat().st_mtime_ns == before and not list(tmp_path.glob("*_restored_restored*"))
    assert main(["restore", str(tmp_path / "a.jpg"), "--overwrite", "--suffix", "_restored"]) == 0
    assert made.stat().st_mtime_ns > before
    for named, suffix in ((("a.jpg", "a_restored.jpg"), "_restored"), ((".",), "2")):
        shutil.copy(tmp_path / "a.jpg", tmp_path / "a2.jpg")
        command = ["restore", *(str(tmp_path / name) for name in named), "--overwrite", "--suffix", suffix]
        assert main(command) == 1 and says(capsys.readouterr().err, tmp_path, "--suffix")
    assert (tmp_path / "a2.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert main(["restore", str(tmp_path / "a.jpg"), "--suffix", ""]) == 1
    assert main(["restore", str(tmp_path / "*.gif")]) == 1
    assert str(tmp_path / "*.gif") in capsys.readouterr().err
