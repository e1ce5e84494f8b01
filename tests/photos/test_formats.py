"""`srcnn restore` on the matrix of photo files: pixels, colours and metadata as other readers see them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matrix import SRGB, Made, decoded, drawn, encoded, frames, lossy_made, png_made, split, tiff_made
from matrix_cases import CASES, REFUSED, Case
from messages import numbers
from PIL import Image, JpegImagePlugin

from srcnn.__main__ import main
from srcnn.models.device import to_device
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize, load_model, save_model
from srcnn.restoration.restore import restore, restore_array
from srcnn.restoration.tiled_inference import RestoreOptions

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")


class Ran(NamedTuple):
    """`said`: all that was printed but the names of files, in which the looked-for words may be."""

    status: int
    out: str
    err: str
    said: str = ""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network that changes every photo, as a file."""
    model = SRCNN(ModelConfig(filters=(8, 4), residual=True))
    initialize(model, "pytorch", 3)
    with torch.no_grad():
        model.conv3.weight.mul_(2)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    model = to_device(load_model(weights), torch.device("cpu"))  # as the command does: the same rounding
    photo = drawn(65, 63)
    changed = np.abs(restore(photo, model, exact=True).astype(int) - photo)
    assert 2 < changed.mean() < 60  # neither the identity nor a flat picture
    return model


@pytest.fixture
def run(tmp_path, weights):
    """run(name, content, *options): restores one photo into tmp_path/out; checks that the source stays as it is."""

    def restored(name: str, content: bytes, *options: str) -> Ran:
        source = tmp_path / "photos" / name
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(content)
        # Smoothed chroma has a test of its own.
        options = options if "--quality" in options else ("--keep-chroma", "--quality", "95", *options)
        ran = call("restore", source, "-o", tmp_path / "out", "--model", weights, "--exact", *options)
        assert source.read_bytes() == content
        words = (ran.out + ran.err).replace(str(tmp_path), "")
        return ran._replace(said=re.sub(re.escape(source.stem) + r"\.\w+", "", words))

    return restored


def call(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Ran(status, out.getvalue(), err.getvalue())


def only_file(folder: Path) -> Path:
    (path,) = [path for path in folder.rglob("*") if path.is_file()]
    return path


def stored_pixels(path: Path) -> np.ndarray:
    """By libpng, tifffile or Pillow; not turned."""
    if path.suffix == ".png":
        return imagecodecs.png_decode(path.read_bytes())
    if path.suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as file:
            assert len(file.pages) == 1 and file.pages[0].photometric.name in ("RGB", "MINISBLACK")
            pixels = file.pages[0].asarray()
            return np.moveaxis(pixels, 0, -1) if file.pages[0].planarconfig == 2 and pixels.ndim == 3 else pixels
    return decoded(path.read_bytes())


def check_upright(path: Path) -> None:
    """No orientation but 1, in EXIF, TIFF and XMP; the EXIF read by Pillow alone, without the XMP."""
    with Image.open(path) as image:
        if image.format == "TIFF":  # which Pillow turns, and changes its tags, when it decodes it
            assert image.tag_v2.get(274, 1) == 1
        else:
            image.load()
        block, packet = Image.Exif(), image.info.get("xmp", b"")
        block.load(image.info.get("exif", b""))
        assert block.get(0x0112, 1) == 1
    assert set(re.findall(rb"tiff:Orientation\W+(\d)", packet)) <= {b"1"}


def check_lossy(path: Path, want: np.ndarray, quality: int = 95) -> None:
    """A JPEG as Pillow writes `want`; a WebP near it."""
    found = split(stored_pixels(path))[0]
    if path.suffix == ".webp":
        error = found.astype(float) - (np.stack([want] * 3, -1) if want.ndim == 2 else want)
        assert 10 * np.log10(255**2 / max(1e-3, (error**2).mean())) > 30
        return
    expected = encoded(want, "JPEG", quality=quality, subsampling=0)
    difference = np.abs(found.astype(int) - decoded(expected))
    assert difference.max() <= 2 and (difference > 0).sum() <= difference.size // 10_000
    with Image.open(path) as image, Image.open(io.BytesIO(expected)) as other:
        assert image.quantization == other.quantization
        assert image.mode == "L" or JpegImagePlugin.get_sampling(image) == 0


def check_levels(found: np.ndarray, want: np.ndarray, tolerance: int) -> None:
    """Equal but for the rounding of sums in another order: one level of 8 bits in 20,000, one or two of 16."""
    assert found.dtype == want.dtype
    difference = np.abs(found.astype(int) - want)
    if tolerance or found.dtype == np.uint16:
        assert difference.max() <= max(2, tolerance)
    else:
        assert difference.max() <= 1 and (difference > 0).sum() <= difference.size // 20_000


def check_alpha(found: np.ndarray | None, made: Made) -> None:
    if made.alpha is None:
        assert found is None or found.min() == np.iinfo(found.dtype).max
    else:
        assert found is not None and found.dtype == made.alpha.dtype
        np.testing.assert_array_equal(found, made.alpha)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pixels_are_those_of_the_upright_photo_restored(tmp_path, network, run, case: Case):
    made = case.make()
    ran = run(case.name, made.content, *case.options)
    assert ran.status == 0, ran.err
    path = only_file(tmp_path / "out")
    suffix = f".{case.options[1]}" if case.options else Path(case.name).suffix
    assert (path.stem, path.suffix) == (Path(case.name).stem, suffix)
    assert not case.note or re.search(rf"\b(P|{case.note})\b", ran.said, re.IGNORECASE), "not said"
    check_upright(path)
    want = restore_array(made.pixels, network, RestoreOptions(exact=True))
    assert want.dtype == made.pixels.dtype and want.shape == made.pixels.shape
    found, alpha = split(stored_pixels(path))
    check_alpha(alpha, made)
    assert found.shape == want.shape or path.suffix == ".webp"
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        check_lossy(path, want)
        return
    check_levels(found, want, case.tolerance)


@pytest.mark.parametrize("make", [lambda: png_made(drawn(65, 63, 3, 16), 16), lambda: tiff_made(drawn(65, 63, 1, 16))],
                         ids=["photo.png", "photo.tif"])
def test_sixteen_bits_are_restored_as_sixteen(tmp_path, network, run, make, request):
    """Near what eight bits give, and finer."""
    made = make()
    assert run(request.node.callspec.id, made.content).status == 0
    found = stored_pixels(only_file(tmp_path / "out"))
    coarse = restore(np.rint(made.pixels / 257).astype(np.uint8), network, exact=True)
    difference = found / 257 - coarse
    assert np.abs(difference).max() < 3 and np.abs(difference).mean() < 0.6
    assert len(np.unique(found % 257)) > 200


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_photo_is_refused_by_name(tmp_path, run, name):
    ran = run(name, REFUSED[name]())
    assert ran.status == 1 and name in ran.err and "Traceback" not in ran.err
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


def test_a_refused_photo_leaves_the_others_restored(tmp_path, run):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "z.png"):
        (tmp_path / "photos" / name).write_bytes(png_made(drawn(9, 17)).content)
    (tmp_path / "photos" / "animated.png").write_bytes(frames("PNG"))
    ran = call("restore", tmp_path / "photos", "-o", tmp_path / "out")
    assert ran.status == 1 and "animated.png" in ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "z.png"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "b.tif"])
def test_what_is_there_is_left_and_overwritten_on_demand(tmp_path, run, name):
    made = tiff_made(drawn(9, 17, 3, 16)) if name == "b.tif" else lossy_made("JPEG", drawn(17, 9))
    content = png_made(drawn(17, 9)).content if name == "a.png" else made.content
    assert run(name, content).status == 0
    path = only_file(tmp_path / "out")
    first, state = path.read_bytes(), (path.stat().st_ino, path.stat().st_mtime_ns)
    ran = run(name, content)
    assert ran.status == 0 and numbers(ran.err.splitlines()[-1]) == [0, 1, 0], "restored, skipped, failed"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == state and path.read_bytes() == first
    path.write_bytes(b"something else")
    assert run(name, content, "--overwrite").status == 0
    assert path.read_bytes() == first and only_file(tmp_path / "out") == path


@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--format", "png", "--overwrite")])
def test_a_source_is_never_written_over(tmp_path, weights, options):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png_made(drawn(9, 17)).content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for source in (tmp_path, tmp_path / "a.png"):
        ran = call("restore", source, "-o", tmp_path, "--model", weights, *options)
        assert ran.status != 0 and ran.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("quality", [60, 95])
def test_a_jpeg_is_written_with_the_quality_asked_for(tmp_path, network, run, quality):
    """And its chroma is smoothed as the quality tells that it was saved with."""
    made = lossy_made("JPEG", drawn(65, 63), quality=30)
    assert run("a.jpg", made.content, "--quality", str(quality)).status == 0
    check_lossy(only_file(tmp_path / "out"), restore(made.pixels, network, quality=30, exact=True), quality)


def test_cmyk_is_a_jpeg_of_rgb_without_the_profile_of_inks(tmp_path, run):
    cmyk = next(case for case in CASES if case.name == "cmyk profile.jpg").make()
    assert run("a.jpg", cmyk.content).status == 0
    with Image.open(only_file(tmp_path / "out")) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.info.get("icc_profile", SRGB)[16:20] == b"RGB "


def test_of_a_phones_mpo_the_photo_is_restored(tmp_path, network, run):
    made = Made(frames("MPO"), decoded(frames("MPO")))
    assert run("phone.jpg", made.content).status == 0
    check_lossy(only_file(tmp_path / "out"), restore_array(made.pixels, network, RestoreOptions(exact=True)))


def test_what_follows_a_jpeg_does_no_harm(tmp_path, network, run):
    made = lossy_made("JPEG", drawn(33, 17), quality=30)
    assert run("motion.jpg", made.content + b"ftypmp42" * 999).status == 0
    check_lossy(only_file(tmp_path / "out"), restore_array(made.pixels, network, RestoreOptions(exact=True)))
