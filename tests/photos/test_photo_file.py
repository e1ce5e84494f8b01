"""Photo files read and written whole: what travels with the pixels, 16 bits, profiles, formats."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import photo_pixels
from messages import facts, says
from PIL import Image, ImageCms, PngImagePlugin

from srcnn.photos.metadata import Metadata, patch_exif
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.reading import read_photo, upright_array

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def exif_tags(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(content)
    return exif


def pixels_of(canvas: PhotoFile) -> np.ndarray:
    return np.asarray(canvas.image)


@pytest.mark.parametrize("source", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_exif_profile_and_resolution_survive(tmp_path: Path, source: str, target: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A maker", 6
    exif.get_ifd(0x8769)[0x829A] = 0.125  # exposure time
    image = Image.fromarray(photo_pixels(9, 77, 53))
    image.save(tmp_path / f"in{source}", exif=exif.tobytes(), icc_profile=SRGB, dpi=(300, 300))
    photo = read_photo_file(tmp_path / f"in{source}")
    notes = write_photo_file(tmp_path / f"out{target}", photo)
    found = read_photo_file(tmp_path / f"out{target}")
    assert found.size == (77, 53)
    if target in (".png", ".tif", ".bmp"):
        np.testing.assert_array_equal(pixels_of(found), pixels_of(photo))
    if target == ".bmp":
        assert says(notes, "EXIF", "ICC")
        return
    read_back = exif_tags(found.metadata.exif)
    assert read_back[0x010F] == "A maker" and float(read_back.get_ifd(0x8769)[0x829A]) == 0.125
    assert read_back.get(0x0112, 1) == 1
    assert found.metadata.icc_profile == SRGB
    if ".webp" not in (source, target):
        assert found.metadata.dpi is not None and [round(side) for side in found.metadata.dpi] == [300, 300]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg", ".webp"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_transparent_photo_is_written_in_every_format(tmp_path: Path, suffix: str, mode: str) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (27, 31, len(mode)), dtype=np.uint8)
    notes = write_photo_file(tmp_path / f"a{suffix}", PhotoFile(Image.fromarray(bands, mode)))
    assert says(notes, "transparency") == (suffix in (".jpg", ".bmp"))
    found = read_photo_file(tmp_path / f"a{suffix}")
    assert found.size == (27, 31)
    if suffix in (".png", ".tif", ".webp"):
        np.testing.assert_array_equal(pixels_of(found)[..., -1], bands[..., -1])


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=facts("JPEG", 65500, "png")):
        write_photo_file(path, PhotoFile(Image.new("L", (70000, 1))))
    with pytest.raises(ValueError, match=facts(tmp_path / "a.xyz", ".png", ".webp")):
        write_photo_file(tmp_path / "a.xyz", PhotoFile(Image.new("L", (7, 1))))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_array_is_turned_as_pillow_turns_an_image(orientation: int) -> None:
    pixels = photo_pixels(3, 17, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    from PIL import ImageOps

    with Image.open(buffer) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright_array(pixels, orientation), expected)


def exif_with_maker_note(order: str, orientation: int) -> bytes:
    """EXIF laid out by hand: two folders, a maker note whose offsets count from the start, and a thumbnail's folder."""
    mark = b"II" if order == "<" else b"MM"
    pack = struct.pack
    first = pack(order + "H", 3) + pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    first += pack(order + "HHII", 0x0100, 4, 1, 77) + pack(order + "HHII", 0x8769, 4, 1, 50) + pack(order + "I", 90)
    second = pack(order + "H", 2) + pack(order + "HHII", 0xA002, 4, 1, 77) + pack(order + "HHII", 0x927C, 7, 9, 80)
    second += pack(order + "I", 0)
    thumbnail = pack(order + "H", 1) + pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + pack(order + "I", 0)
    return mark + pack(order + "HI", 42, 8) + first + second + b"maker" * 2 + thumbnail


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_is_changed_in_its_place_only(order: str) -> None:
    before = exif_with_maker_note(order, 6)
    after = patch_exif(before, {0x0112: 1, 0x0100: 53, 0xA002: 53}, keep_thumbnail=False)
    changed = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert len(before) == len(after) and len(changed) == 4  # three numbers, and the way to the thumbnail
    assert exif_tags(after)[0x0112] == 1 and exif_tags(after).get_ifd(0x8769)[0xA002] == 53
    assert patch_exif(exif_with_maker_note(order, 1), {0x0112: 1}) == exif_with_maker_note(order, 1)
    assert exif_tags(patch_exif(before, {0x0100: 70_000}))[0x0100] == 70_000


@pytest.mark.parametrize("content", [b"II*\0", b"XX*\0\0\0\0\0", b"II*\0\xff\0\0\0", exif_with_maker_note("<", 6)[:30]])
def test_damaged_exif_is_refused_by_the_patch_and_no_error_to_the_reader(tmp_path: Path, content: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        patch_exif(content, {0x0112: 1})
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png", exif=content)
    canvas = read_photo_file(tmp_path / "a.png")
    assert len(canvas.notes) == 1 and says(canvas.notes, "EXIF")
    write_photo_file(tmp_path / "b.jpg", canvas)
    is_turned = len(content) == 30  # its orientation is whole
    assert read_photo_file(tmp_path / "b.jpg").size == read_photo(tmp_path / "a.png").shape[:2]
    assert read_photo_file(tmp_path / "b.jpg").size == ((9, 7) if is_turned else (7, 9))


def test_xmp_tells_no_orientation_that_was_applied(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "a.jpg", xmp=XMP)
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        photo = read_photo_file(tmp_path / "a.jpg")
        assert photo.size == (9, 7)  # turned
        write_photo_file(tmp_path / f"b{suffix}", photo)
        found = read_photo_file(tmp_path / f"b{suffix}")
        assert found.size == (9, 7) and found.metadata.xmp == XMP.replace(b'"6"', b'"1"')


def test_texts_of_a_png_and_segments_of_a_jpeg_stay_in_their_format(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "someone")
    info.add_itxt("Title", "Brücke", "de", "Titel")
    info.add(b"gAMA", struct.pack(">I", 45455))
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png", pnginfo=info)
    block = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + struct.pack(">I", 6) + b"by him"
    iptc = struct.pack(">BBH", 0xFF, 0xED, 2 + len(block)) + block
    Image.new("RGB", (9, 7)).save(tmp_path / "a.jpg", extra=iptc, comment=b"a comment")
    for name in ("a.png", "a.jpg"):
        assert write_photo_file(tmp_path / f"kept-{name}", read_photo_file(tmp_path / name)) == ()
        other = ".jpg" if name == "a.png" else ".png"
        notes = write_photo_file(tmp_path / f"other{other}", read_photo_file(tmp_path / name))
        assert len(notes) == 1 and says(notes, "PNG" if other == ".jpg" else "comment")
    with Image.open(tmp_path / "kept-a.png") as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.text == {"Author": "someone", "Title": "Brücke"} and image.info["gamma"] == 0.45455
    with Image.open(tmp_path / "kept-a.jpg") as image:
        assert iptc[4:] in [content for _, content in image.applist] and image.info["comment"] == b"a comment"


def test_what_a_jpeg_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    metadata = Metadata(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(70_000), xmp=b"<x/>" + b" " * 70_000)
    notes = write_photo_file(tmp_path / "a.jpg", PhotoFile(Image.new("L", (9, 7)), metadata))
    assert len(notes) == 1 and says(notes, "JPEG", "EXIF", "XMP")
    assert write_photo_file(tmp_path / "a.png", PhotoFile(Image.new("L", (9, 7)), metadata)) == ()
    assert read_photo_file(tmp_path / "a.png").metadata.xmp == metadata.xmp


def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path) -> None:
    image = Image.fromarray(photo_pixels(4, 61, 47)).convert("CMYK")
    image.save(tmp_path / "a.jpg", icc_profile=b"no profile at all")
    canvas = read_photo_file(tmp_path / "a.jpg")
    np.testing.assert_array_equal(pixels_of(canvas), np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")))
    assert len(canvas.notes) == 1 and says(canvas.notes, "CMYK", "RGB") and canvas.metadata.icc_profile == b""


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_sixteen_bits_come_back_with_their_metadata(tmp_path: Path, suffix: str, channels: int | None) -> None:
    shape = (53, 37) if channels is None else (53, 37, channels)
    pixels = np.random.default_rng(7).integers(0, 65536, shape, np.uint16)
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    exif.get_ifd(0x8769)[0x829A] = 0.125
    profile, xmp = b"" if channels is None else SRGB, XMP.replace(b'"6"', b'"1"')
    metadata = Metadata(exif.tobytes().removeprefix(b"Exif\0\0"), profile, xmp, (72, 96))
    assert write_photo_file(tmp_path / f"a{suffix}", PhotoFile(pixels, metadata)) == ()
    found = read_photo_file(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels_of(found), pixels)
    assert pixels_of(found).dtype == np.uint16
    read_back = exif_tags(found.metadata.exif)
    assert read_back[0x010F] == "A maker" and float(read_back.get_ifd(0x8769)[0x829A]) == 0.125
    assert found.metadata.icc_profile == profile and found.metadata.xmp == xmp
    assert found.metadata.dpi is not None and [round(side) for side in found.metadata.dpi] == [72, 96]


def test_sixteen_bits_become_eight_where_the_format_has_no_more(tmp_path: Path) -> None:
    pixels = np.array([[0, 128, 129, 257 * 200, 65534, 65535]], np.uint16)
    (note,) = write_photo_file(tmp_path / "a.bmp", PhotoFile(pixels))
    assert says(note, 16, 8)
    np.testing.assert_array_equal(pixels_of(read_photo_file(tmp_path / "a.bmp")), [[0, 0, 1, 200, 255, 255]])


def test_a_large_tiff_tile_of_sixteen_bits_is_refused_by_its_tags(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 32, 3), np.uint16), photometric="rgb", tile=(16, 16))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index(struct.pack("<H", 322), 8)  # the tile's width
    content[place : place + 12] = struct.pack("<HHII", 322, 4, 1, 1 << 20)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=facts(tmp_path / "a.tif")):
        read_photo_file(tmp_path / "a.tif")


def test_an_extra_channel_of_unknown_meaning_is_no_alpha(tmp_path: Path) -> None:
    import tifffile

    pixels = np.random.default_rng(8).integers(0, 65536, (9, 7, 4), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(pixels_of(read_photo_file(tmp_path / "a.tif")), pixels[..., :3])


def test_a_tiff_that_lacks_most_of_its_tiles_is_refused_before_they_are_made(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb", tile=(16, 16))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for tag in (324, 325):  # where the tiles are, and their bytes: one of 16
        place = content.index(struct.pack("<H", tag), 8)
        content[place + 4 : place + 8] = struct.pack("<I", 1)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=facts(tmp_path / "a.tif")):
        read_photo_file(tmp_path / "a.tif")


def test_a_sideways_photo_with_odd_exif_is_turned(tmp_path: Path) -> None:
    exif = bytearray(exif_with_maker_note("<", 6))
    exif[22:24] = struct.pack("<H", 0x0132)  # a date that is a number: Pillow cannot write it again
    Image.fromarray(photo_pixels(3, 17, 9)).save(tmp_path / "a.png", exif=bytes(exif))
    assert read_photo_file(tmp_path / "a.png").size == (17, 9)
