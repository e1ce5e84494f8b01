"""Finding photos, resizing them, and their two kinds of luma."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import facts

from srcnn.photos.reading import Resize, find_photos, luma_l, luma_y, open_image, read_photo, upright_size


def test_photos_are_found_in_the_order_of_their_names_whatever_these_are(tmp_path: Path) -> None:
    names = ["a b.jpg", "a.b.c.PNG", "sub/éü.webp", "sub/Москва.tif", "sub/🌆.bmp", "z.jpeg"]
    hidden = [".hidden.jpg", ".folder/a.jpg", "sub/.b.png"]
    for name in [*names, *hidden, "notes.txt", "sub/list"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, others = find_photos(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in photos] == sorted(names)
    assert [path.name for path in others] == ["notes.txt", "list"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "photos/sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/far.jpg").touch()
    (tmp_path / "photos/sub/near.jpg").touch()
    (tmp_path / "photos/sub/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "photos/pipe.jpg")
    photos, others = find_photos(tmp_path / "photos")
    found = [path.relative_to(tmp_path / "photos").as_posix() for path in photos]
    assert (found, others) == (["gone.jpg", "link/far.jpg", "sub/near.jpg"], [])


def test_an_excluded_folder_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("a.jpg", "out/b.jpg", "out/deep/c.jpg", "outside/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, _ = find_photos(tmp_path, exclude=tmp_path / "outside/../out")
    assert [path.name for path in photos] == ["a.jpg", "d.jpg"]
    with pytest.raises(FileNotFoundError, match=facts(tmp_path / "nowhere")):
        find_photos(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(PermissionError, match="locked"):
        find_photos(tmp_path)


SIDES = st.integers(1, 5000)


@given(width=SIDES, height=SIDES, side=SIDES)
def test_the_long_side_becomes_what_was_asked_for(width: int, height: int, side: int) -> None:
    found = Resize.parse(f"long:{side}").size(width, height)
    assert max(found) == side and min(found) >= 1
    short = side * min(width, height) / max(width, height)
    assert abs(min(found) - max(1, short)) <= 0.5


@given(width=SIDES, height=SIDES, side=SIDES)
def test_a_greatest_long_side_enlarges_no_photo(width: int, height: int, side: int) -> None:
    found = Resize.parse(f"max:{side}").size(width, height)
    rule = f"long:{side}" if max(width, height) > side else "none"
    assert found == Resize.parse(rule).size(width, height)


@given(width=SIDES, height=SIDES)
def test_fixed_sizes_factors_and_none(width: int, height: int) -> None:
    assert Resize.parse("640x479").size(width, height) == (640, 479)
    assert Resize.parse("none").size(width, height) == (width, height)
    halved = Resize.parse("x0.5").size(width, height)
    assert all(abs(new - max(1, old / 2)) <= 0.5 for new, old in zip(halved, (width, height), strict=True))


@pytest.mark.parametrize(
    "rule", ["", "1024", "0x5", "5x0", "long:0", "max:0", "x0", "x0.0", "x-1", "1024X768", "long", "1x2x3"]
)
def test_other_resize_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=facts(f'"{rule}"', "1024x1024", "long:1024", "max:1024", "x0.5", "none")):
        Resize.parse(rule)


def test_l_is_pillows_formula_written_out() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (63, 65, 3), dtype=np.uint8)
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    np.testing.assert_array_equal(luma_l(pixels), (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)
    assert luma_l(pixels[..., 0].copy()).shape == (63, 65)


def test_y_is_scikit_images_limited_range() -> None:
    color = pytest.importorskip("skimage.color")
    pixels = np.random.default_rng(1).integers(0, 256, (63, 65, 3), dtype=np.uint8)
    np.testing.assert_array_equal(luma_y(pixels), np.rint(color.rgb2ycbcr(pixels)[..., 0]).astype(np.uint8))
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert luma_y(ends).tolist() == [[16, 235]]


def test_every_real_photo_can_be_read(shared_data: Path) -> None:
    photos, _ = find_photos(shared_data / "train" / "camera_samples")
    smallest = sorted(photos, key=lambda path: path.stat().st_size)[:4]
    assert len(smallest) == 4
    for path in smallest:
        with open_image(path) as image:
            size = upright_size(image)
        assert read_photo(path).shape == (size[1], size[0], 3)
