"""From a photo file to the clean picture: exactly as array functions do it, or by way of a smaller JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import photo_pixels
from PIL import Image, ImageFilter

from shards.decode import Decode, read_original
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import Resize, luma_l, read_photo


def resized(pixels: np.ndarray, rule: str) -> np.ndarray:
    """By Pillow, where the size changes."""
    size = Resize.parse(rule).size(pixels.shape[1], pixels.shape[0])
    if size == pixels.shape[1::-1]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def read(path: Path, rule: str, decode: Decode) -> np.ndarray:
    return read_original(path, Resize.parse(rule), decode, max_megapixels=250)[0]


def write(path: Path, width: int, height: int, mode: str = "RGB", orientation: int = 1, seed: int = 1) -> Path:
    """A photo that is not sharp to the last pixel, as those of cameras."""
    image = Image.fromarray(photo_pixels(seed, width, height)).filter(ImageFilter.GaussianBlur(1.5)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 92} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "I;16", "1"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exactly_read_is_decoded_upright_over_white_and_resized(tmp_path: Path, mode: str, orientation: int) -> None:
    path = write(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), 203, 149, mode, orientation)
    for rule in ("none", "97x83", "x0.5", "long:401"):
        expected = resized(read_photo(path), rule)
        for decode in ("exact", "reduced") if path.suffix == ".png" else ("exact",):
            np.testing.assert_array_equal(read(path, rule, decode), expected)


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 65535])  # the last three mean upright
@pytest.mark.parametrize("rule", ["256x256", "x0.25", "long:200", "x0.1"])
def test_a_reduced_jpeg_is_upright_and_near_the_exact_one(tmp_path: Path, orientation: int, rule: str) -> None:
    path = write(tmp_path / "a.jpg", 1203, 901, orientation=orientation)
    exact, reduced = read(path, rule, "exact"), read(path, rule, "reduced")
    assert reduced.shape == exact.shape and reduced.dtype == np.uint8
    assert not np.array_equal(reduced, exact)
    assert psnr(luma_l(exact), luma_l(reduced)) > 35


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_reduced_too(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "a.jpg", 1203, 901, mode)
    exact, reduced = read(path, "256x256", "exact"), read(path, "256x256", "reduced")
    assert reduced.shape == exact.shape == ((256, 256) if mode == "L" else (256, 256, 3))
    assert psnr(exact, reduced) > 35 and not np.array_equal(reduced, exact)


def test_a_camera_jpeg_with_a_preview_is_reduced_too(tmp_path: Path) -> None:
    first, second = (Image.fromarray(photo_pixels(seed, 1203, 901)) for seed in (1, 2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=92)
    exact, reduced = read(tmp_path / "a.jpg", "256x256", "exact"), read(tmp_path / "a.jpg", "256x256", "reduced")
    np.testing.assert_array_equal(exact, resized(read_photo(tmp_path / "a.jpg"), "256x256"))
    assert psnr(luma_l(exact), luma_l(reduced)) > 30 and not np.array_equal(reduced, exact)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("none", 1), ("800x600", 1), ("429x100", 1), ("428x100", 2), ("300x321", 2), ("300x322", 1), ("214x160", 4)],
)
def test_a_jpeg_is_decoded_to_1_4_times_the_size_at_least(
    tmp_path: Path, rule: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jpg", 1200, 900)
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(Image.Image, "resize", lambda picture, *_: sizes.append(picture.size) or picture)
    read(path, rule, "reduced")
    assert sizes == [(1200 // expected, 900 // expected)]


def test_at_an_eighth_no_side_is_shorter_than_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", 1203, 901, orientation=8)
    assert read(path, "x0.05", "reduced").shape == read(path, "x0.05", "exact").shape == (60, 45, 3)


def test_a_jpeg_that_is_not_reduced_comes_out_exactly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", 803, 601, orientation=6)
    for rule in ("none", "500x400", "x0.8"):
        np.testing.assert_array_equal(read(path, rule, "reduced"), read(path, rule, "exact"))


@pytest.mark.slow
def test_real_photographs_are_some_45_db_from_the_exact_ones(shared_data: Path) -> None:
    photos = sorted((shared_data / "train/camera_samples").iterdir(), key=lambda path: -path.stat().st_size)[:6]
    distances = []
    for path in photos:
        exact, reduced = read(path, "800x600", "exact"), read(path, "800x600", "reduced")
        if not np.array_equal(exact, reduced):
            distances.append(psnr(luma_l(exact), luma_l(reduced)))
    assert len(distances) > 3 and min(distances) > 38 and np.mean(distances) > 42
