"""Photo files: every mode, orientation and damage read, every format written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import photo_pixels
from messages import facts, says
from PIL import Image

from srcnn.photos.reading import PhotoRefused, open_image, read_photo, to_plain_mode, upright_size


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What the EXIF standard says a viewer shows of stored pixels, written out."""
    swapped = np.swapaxes(pixels, 0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }[orientation]


def test_lossless_formats_come_back_as_they_were(tmp_path: Path) -> None:
    pixels = photo_pixels(1, 77, 53)
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.bmp", {}), ("a.webp", {"lossless": True})):
        for array in (pixels, pixels[..., 1]):
            Image.fromarray(array).save(tmp_path / name, **options)
            found = read_photo(tmp_path / name)
            # WebP has no greyscale
            expected = np.stack([array] * 3, -1) if array.ndim == 2 and name == "a.webp" else array
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == np.uint8


def test_jpeg_pixels_are_those_pillow_decodes(tmp_path: Path) -> None:
    Image.fromarray(photo_pixels(2, 101, 67)).save(tmp_path / "a.JPG", quality=71)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.JPG"), np.asarray(Image.open(tmp_path / "a.JPG")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_every_orientation_is_applied_in_every_mode(
    tmp_path: Path, orientation: int, name: str, mode: str
) -> None:
    if mode == "I;16" and name == "a.webp":
        pytest.skip("WebP has no 16 bits")
    pixels = photo_pixels(3, 77, 53)
    stored = {"RGB": pixels, "L": pixels[..., 0], "I;16": pixels[..., 0].astype(np.uint16) * 257}[mode]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(
        tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {})
    )
    photo = read_photo(tmp_path / name)
    shown = photo if photo.ndim == 3 else photo[..., None]
    np.testing.assert_array_equal(shown[..., 0], turned(pixels, orientation)[..., 0])
    with open_image(tmp_path / name) as image:
        assert upright_size(image) == photo.shape[1::-1]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_divided_by_257(tmp_path: Path, name: str) -> None:
    levels = np.array([[0, 128, 129, 257 * 3, 257 * 200, 65534, 65535] * 5] * 3, np.uint16)
    Image.fromarray(levels).save(tmp_path / name)
    np.testing.assert_array_equal(read_photo(tmp_path / name)[0, :7], [0, 0, 1, 3, 200, 255, 255])


@pytest.mark.parametrize("level", [-1, 65536, 4_000_000])
def test_levels_beyond_sixteen_bits_are_refused(tmp_path: Path, level: int) -> None:
    Image.fromarray(np.array([[0, level]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(PhotoRefused, match=facts("a.tif", 16)):
        read_photo(tmp_path / "a.tif")


def test_cmyk_is_shown_as_pillow_shows_it_without_its_profile(tmp_path: Path) -> None:
    image = Image.fromarray(photo_pixels(4, 61, 47)).convert("CMYK")
    image.save(tmp_path / "a.jpg", icc_profile=b"a profile of four inks")
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    np.testing.assert_array_equal(read_photo(tmp_path / "a.jpg"), expected)
    with open_image(tmp_path / "a.jpg") as stored:
        _, notes = to_plain_mode(stored)
    assert len(notes) == 1 and says(notes, "CMYK", "RGB")


def test_a_palette_with_transparency_gives_colours_and_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (31, 17), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (5, 3, 9, 11))
    image.save(tmp_path / "a.png", transparency=0)
    with open_image(tmp_path / "a.png") as stored:
        plain, _ = to_plain_mode(stored)
    assert plain.getpixel((0, 0)) == (10, 20, 30, 0) and plain.getpixel((7, 5)) == (200, 100, 50, 255)
    shown = read_photo(tmp_path / "a.png")
    assert shown[0, 0].tolist() == [255, 255, 255] and shown[5, 7].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_and_lies_over_white(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(5)
    bands = rng.integers(0, 256, (19, 23, len(mode)), dtype=np.uint8)
    Image.fromarray(bands, mode).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(to_plain_mode(stored)[0]), bands)
    shown = Image.new("RGBA", (23, 19), "white")
    shown.alpha_composite(Image.open(tmp_path / "a.png").convert("RGBA"))
    expected = np.asarray(shown.convert("RGB" if mode == "RGBA" else "L"))
    assert np.abs(read_photo(tmp_path / "a.png").astype(int) - expected).max() <= 1


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(6).random((21, 37)) < 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), bits * np.uint8(255))


def write_png_header(path: Path, width: int, height: int) -> None:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_an_absurdly_large_photo_is_refused_by_its_header(tmp_path: Path) -> None:
    write_png_header(tmp_path / "a.png", 40000, 40000)
    with pytest.raises(PhotoRefused, match=facts("a.png", "40000x40000", 250)):
        read_photo(tmp_path / "a.png")


def test_the_largest_photo_is_a_setting(tmp_path: Path) -> None:
    Image.fromarray(photo_pixels(7, 101, 99)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png", max_megapixels=0.01).shape == (99, 101, 3)
    with pytest.raises(PhotoRefused, match=facts("a.png", 0.009)):
        read_photo(tmp_path / "a.png", max_megapixels=0.009)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_a_truncated_photo_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(photo_pixels(8)).save(path)
    whole = path.read_bytes()
    for length in (0, 9, len(whole) // 2, len(whole) - len(whole) // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(PhotoRefused, match=facts(path)):
            read_photo(path)


def test_what_is_no_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture at all\n" * 99)
    with pytest.raises(PhotoRefused, match=facts("text.jpg", "JPEG", "PNG", "WEBP", "TIFF", "BMP")):
        read_photo(tmp_path / "text.jpg")
    Image.new("L", (9, 9)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "gif.png")
    with pytest.raises(PhotoRefused, match="gif.png"):
        read_photo(tmp_path / "gif.png")
    with pytest.raises(PhotoRefused, match="none.png"):
        read_photo(tmp_path / "none.png")


def test_several_frames_and_floating_point_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo_pixels(seed, 33, 21)) for seed in (1, 2, 3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(PhotoRefused, match=facts("pages.tif", "frames")):
        read_photo(tmp_path / "pages.tif")
    Image.fromarray(np.ones((21, 33), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PhotoRefused, match=facts("float.tif", "floating")):
        read_photo(tmp_path / "float.tif")


def test_a_camera_jpeg_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    photo, preview = Image.fromarray(photo_pixels(1, 99, 77)), Image.fromarray(photo_pixels(1, 33, 21))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    found = read_photo(tmp_path / "a.jpg")
    assert found.shape == (77, 99, 3)


def test_pillows_own_size_limit_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PhotoRefused):
        read_photo(tmp_path / "none.png")
    assert Image.MAX_IMAGE_PIXELS == before


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(PhotoRefused, match=facts(tmp_path / "a.jpg", "empty")):
        read_photo(tmp_path / "a.jpg")
