"""The srcnn command: restore, degrade, report; exit statuses and messages."""

import contextlib
import importlib.metadata
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from messages import lines_with, numbers, says
from PIL import Image
from small import draw_photo, small_config, small_shards

from srcnn.__main__ import command_line, main
from srcnn.commands.photos import RESTORE_NOTES
from srcnn.models.pretrained import FAMILY, GOOD_QUALITY_CONDITIONED
from srcnn.models.weight_files import DEFAULT_MODEL, WEIGHTS
from srcnn.models.weights import load_model
from srcnn.restoration.restore import restore
from srcnn.restoration.score import NAMES
from srcnn.restoration.upscale import SCALES
from srcnn.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(small_config(folder / "run", small_shards(folder)))
    return folder / "run"


def test_help_needs_neither_pytorch_nor_seconds_of_the_processor():
    code = ("import resource, sys\nfrom srcnn.__main__ import main\ntry:\n    main(['--help'])\nfinally:\n"
            "    print({'torch', 'torchvision', 'numpy', 'jsonargparse'} & sys.modules.keys(), "
            "resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported, seconds = done.stderr.rsplit(maxsplit=1)
    assert done.returncode == 0 and imported == "set()" and float(seconds) < 0.5


def test_what_the_help_says_is_what_the_library_takes():
    options = command_line()
    assert options.parse_args(["restore", "x"]).model == DEFAULT_MODEL
    assert says(RESTORE_NOTES, DEFAULT_MODEL, GOOD_QUALITY_CONDITIONED, FAMILY)
    for luma, scale in zip(NAMES, SCALES, strict=True):
        options.parse_args(["score", "x", "--luma", luma, "--scale", str(scale)])
        options.parse_args(["upscale", "x", "--scale", str(scale)])


def test_srcnn_alone_shows_its_help_and_the_version_is_told(capsys):
    assert main([]) == 2
    assert says(capsys.readouterr().err, "restore", "upscale", "models", "--version")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and says(capsys.readouterr().out, "srcnn", importlib.metadata.version("srcnn"))


@pytest.mark.parametrize("arguments,near", [(["restore", "a.jpg", "--qualty", "5"], "--quality"),
                                            (["upscale", "a.jpg", "--scael=3"], "--scale"),
                                            (["models", "x"], "models")])
def test_an_unknown_option_shows_the_usage_of_its_command_and_the_nearest_option(capsys, arguments, near):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and says(message.splitlines()[0], "usage", "srcnn", arguments[0])
    assert near in message.splitlines()[-1]


def test_the_help_of_restore_says_what_is_treated_and_how_it_is_called(capsys):
    with pytest.raises(SystemExit):
        main(["restore", "--help"])
    assert says(capsys.readouterr().out, "JPEG", "noise", "blur", "srcnn restore old.jpg", "srcnn models",
                DEFAULT_MODEL)


def test_the_shipped_weights_are_listed_with_their_purpose_and_size(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for path in WEIGHTS.glob("*.safetensors"):
        (line,) = [line for line in listed.splitlines() if line.startswith(path.stem + " ")]
        number = re.fullmatch(r"[qx](\d+)", path.stem.rpartition("-")[2])
        assert says(line, "photographs", "kB", *([int(number[1])] if number else [5, 95]))
    assert says(lines_with(listed, "srcnn-915-x3")[0], 8129) and says(lines_with(listed, "unet-jpeg")[0], 2399884)


def test_a_photo_is_degraded_and_restored_by_a_users_own_run(tmp_path, run, capsys):
    Image.fromarray(draw_photo(0, 61, 83)).save(tmp_path / "Фото 1.0 🌆.png")
    assert main(["degrade", str(tmp_path / "Фото 1.0 🌆.png"), "-o", str(tmp_path / "bad"), "--quality", "20"]) == 0
    assert main(["restore", str(tmp_path / "bad"), "-o", str(tmp_path / "good"), "--model", str(run)]) == 0
    with Image.open(tmp_path / "good" / "Фото 1.0 🌆.jpg") as image:
        assert image.size == (83, 61) and image.mode == "RGB"
    assert numbers(capsys.readouterr().err.splitlines()[-1]) == [1, 0, 0], "restored, skipped, failed"


def test_exact_restores_in_float32(tmp_path, run):
    Image.fromarray(draw_photo(0, 61, 83)).save(tmp_path / "photo.png")
    command = ["restore", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--model", str(run), "--exact"]
    assert main(command) == 0
    expected = restore(draw_photo(0, 61, 83), load_model(run), exact=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "photo.png")), expected)


def test_a_comparison_is_drawn_from_a_clean_photo(tmp_path, run):
    Image.fromarray(draw_photo(0, 61, 83)).save(tmp_path / "clean.png")
    assert main(["compare", str(tmp_path / "clean.png"), "-o", str(tmp_path / "a" / "b.png"), "--model", str(run)]) == 0
    with Image.open(tmp_path / "a" / "b.png") as picture:
        assert picture.width == 3 * (83 + 8) and picture.mode == "RGB"


def test_a_comparison_is_no_wider_than_asked_for_and_tells_the_psnr(tmp_path, run, capsys):
    clean = draw_photo(1, 211, 443)
    Image.fromarray(clean).save(tmp_path / "clean.png")
    command = ["compare", str(tmp_path / "clean.png"), "-o", str(tmp_path / "c.png"), "--model", str(run)]
    assert main([*command, "--width", "601", "--quality", "35"]) == 0
    with Image.open(tmp_path / "c.png") as picture:
        assert 601 - 3 * 8 < picture.width <= 601
    Image.fromarray(clean).save(tmp_path / "poor.jpg", quality=35, subsampling="4:2:0")
    luma = [np.asarray(Image.open(tmp_path / name).convert("L"), float) for name in ("clean.png", "poor.jpg")]
    expected = 10 * np.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))
    assert says(capsys.readouterr().out, f"{expected:.2f} dB as JPEG of quality 35", f"restored by {run.name}")
    assert main([*command, "--width", "299"]) == 1 and "--width 299" in capsys.readouterr().err


def test_ones_own_damaged_photo_is_compared_as_it_is(tmp_path, capsys):
    noise = np.random.default_rng(0).normal(0, 6, (240, 320, 3))
    clean = (40 + 0.6 * draw_photo(1, 240, 320) + noise).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(clean).save(tmp_path / "old.jpg", quality=15)
    assert main(["compare", str(tmp_path / "old.jpg"), "-o", str(tmp_path / "c.png")]) == 0
    assert "JPEG 15" in capsys.readouterr().out
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width == 2 * (320 + 8)
    Image.fromarray(clean).save(tmp_path / "good.jpg", quality=95)
    assert main(["compare", str(tmp_path / "good.jpg"), "-o", str(tmp_path / "d.png")]) == 0
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.width == 3 * (320 + 8), "degraded first"


def test_a_damaged_photo_is_refused_by_name_and_the_others_are_restored(tmp_path, run, capsys):
    Image.fromarray(draw_photo(0, 40, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(run), "--format", "png"]) == 1
    message = capsys.readouterr().err
    assert "b.jpg" in message and numbers(message.splitlines()[-1]) == [1, 0, 1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_degrading_a_folder_goes_on_after_a_photo_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    Image.fromarray(draw_photo(0, 40, 40)).save(tmp_path / "b.png")
    assert main(["degrade", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.jpg"]
    assert "a.jpg" in capsys.readouterr().err


def test_transparency_is_laid_over_white_where_a_jpeg_is_wanted(tmp_path, run, capsys):
    pixels = np.zeros((40, 40, 4), np.uint8)  # black, and hidden
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    arguments = ["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--model", str(run)]
    assert main([*arguments, "--format", "jpg"]) == 0
    assert says(capsys.readouterr().out.rpartition("/")[2], "a.jpg", "transparency")
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert np.asarray(image.convert("L")).min() > 200
    assert main(arguments) == 0
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "RGBA" and np.asarray(image.getchannel("A")).max() == 0


@pytest.mark.parametrize(
    "arguments,told",
    [(["restore", "nowhere", "-o", "out"], ["nowhere"]),
     (["score", "nowhere"], ["nowhere"]),
     (["report", "nowhere"], ["nowhere"]),
     (["restore", "nowhere", "-o", "out", "--quality", "0"], ["--quality", 0]),
     (["compare", "clean.png", "-o", "picture"], ["picture", ".png"])],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_photo(0, 40, 40)).save("clean.png")
    assert main(arguments) == 1
    assert says(capsys.readouterr().err, *told)


def test_the_report_is_written_again_and_escapes_what_it_shows(tmp_path, run):
    report = run / "report"
    shutil.rmtree(report)
    assert main(["report", str(run)]) == 0
    page = (report / "index.html").read_text()
    assert len(page) < 8e6 and not re.search(r"\b(?:src|href)=(?!\"data:)|url\(|@import", page), "self-contained"
    for name in ("loss.png", "psnr.png", "tiles.png", "photo.png"):
        with Image.open(report / name) as picture:
            pixels = np.asarray(picture.convert("L"))
            assert min(picture.size) > 100 and pixels.std() > 5
    evil = run.with_name("<script>alert(1)<script>")
    shutil.copytree(run, evil, symlinks=True)
    assert main(["report", str(evil)]) == 0
    assert "<script>" not in (evil / "report" / "index.html").read_text()


@pytest.mark.parametrize("arguments", [["restore", "a.jpg", "--modle", "https://bob:hunter2@host/x"],
                                       ["restore", "a.jpg", "--model", "https://bob:hunter2@host/x"],
                                       ["export", "https://bob:hunter2@host/x", "--onnx", "a.onnx"],
                                       ["verify-shards", "x", "https://bob:hunter2@host/x"],
                                       ["report", "https://bob:hunter2@host/x"]])
def test_a_password_in_an_argument_is_not_printed(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("a.jpg")
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 1
    told = "".join(capsys.readouterr())
    assert "hunter2" not in told and ("host" in told or "--modle" in told)


def test_the_home_folder_is_meant_by_a_path_that_the_shell_leaves(tmp_path, run, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(draw_photo(3, 40, 40)).save(tmp_path / "a.jpg", quality=20)
    shutil.copytree(run, tmp_path / "mine", symlinks=True)
    assert main(["restore", str(tmp_path / "a.jpg"), "--out=~/out.png", "--model=~/mine"]) == 0
    assert (tmp_path / "out.png").is_file()
