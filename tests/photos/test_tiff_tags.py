"""Tags of TIFF files and EXIF: kept from either into the other, or named."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matrix import drawn, encoded, exif, profile, xmp
from messages import says
from PIL import Image

from srcnn.photos.metadata import Metadata, note_of, with_size
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.tiff_tags import STORAGE, Value, read_tags, shortened, write_tags

RECORD = b"\x1c\x02\x78\0\x05Haus1"
RESOURCES = b"8BIM\x04\x0a\0\0\0\0\0\1\1\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(RECORD)) + RECORD
TAGS = {  # number: type, count, value
    269: (2, None, "letter.doc"), 285: (2, None, "Page 3"), 306: (2, None, "2003:02:01 04:05:06"),
    315: (2, None, "Zoë Öz".encode()), 33432: (2, None, "(c) A. Muster"),
    18246: (3, 1, 4), 18249: (3, 1, 75), 40091: (1, None, "Opa am See\0".encode("utf-16le")),
    40093: (1, None, "Zoë\0".encode("utf-16le")), 33550: (12, 3, (0.5, 0.5, 0.0)),
    33922: (12, 6, (1.0, 2.0, 0.0, 400_000.0, 5_000_000.0, 0.0)), 34735: (3, 4, (1, 1, 0, 0)),
    42113: (2, None, "-9999"),
    50341: (7, None, b"PrintIM\0" + bytes(9)), 65001: (4, 3, (1, 70_000, 3)), 65002: (10, 1, (-1, 3)),
    65003: (9, 2, (-5, 6)), 65004: (11, 2, (0.5, -2.0)), 37393: (4, 1, 77),
}


def tiff(byteorder: str = "<", bits: int = 8, big: bool = False, **more: tuple) -> bytes:
    file, tags = io.BytesIO(), [(tag, *value, True) for tag, value in TAGS.items()]
    tags += [(33723, 7, None, RECORD, True), (34377, 1, None, RESOURCES, True), (700, 1, None, xmp(1), True)]
    tags += [(int(tag[1:]), *value, True) for tag, value in more.items()]
    with tifffile.TiffWriter(file, byteorder=byteorder, bigtiff=big) as writer:
        writer.write(drawn(9, 17, 3, bits), photometric="rgb", metadata=None, extratags=tags, iccprofile=profile(),
                     resolution=(300, 200), resolutionunit="INCH")
    return file.getvalue()


def values_of(content: bytes) -> dict[int, object]:
    """As tifffile reads them."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return {tag.code: tag.value for tag in file.pages[0].tags}


def restored(tmp_path: Path, content: bytes, suffix: str, name: str = "in.tif") -> tuple[bytes, tuple[str, ...]]:
    (tmp_path / name).write_bytes(content)
    photo = read_photo_file(tmp_path / name)
    notes = write_photo_file(tmp_path / f"out{suffix}", photo)
    read_photo_file(tmp_path / f"out{suffix}")
    return (tmp_path / f"out{suffix}").read_bytes(), (*photo.notes, *notes)


@pytest.mark.parametrize(("byteorder", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_tag_of_a_tiff_is_kept(tmp_path, byteorder, bits, big):
    content = tiff(byteorder, bits, big)
    written, notes = restored(tmp_path, content, ".tif")
    before, after = values_of(content), values_of(written)
    assert notes == ()
    for tag in (*TAGS, 33723, 34377, 700, 34675, 282, 283, 296):
        assert after[tag] == before[tag], tag
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), drawn(9, 17, 3, bits))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_every_tag_of_a_tiff_is_in_the_exif_of_other_formats(tmp_path, suffix):
    content = tiff()
    written, notes = restored(tmp_path, content, suffix)
    assert says(notes, "dpi", "IPTC", "Photoshop") if suffix == ".webp" else notes == ()
    with Image.open(io.BytesIO(written)) as image:
        image.load()
        block = image.info["exif"].removeprefix(b"Exif\0\0")
        assert image.info["icc_profile"] == profile() and image.info["xmp"] == xmp(1)
    found, source = read_tags(block).directory, read_tags(content).directory
    assert {tag: found.get(tag) for tag in TAGS} == {tag: source[tag] for tag in TAGS}
    back, _ = restored(tmp_path, written, ".tif", f"in{suffix}")
    assert {tag: values_of(back).get(tag) for tag in TAGS} == {tag: values_of(content)[tag] for tag in TAGS}


@pytest.mark.parametrize("byteorder", "<>")
def test_exif_of_a_jpeg_is_in_the_tiff(tmp_path, byteorder):
    block = write_tags(read_tags(tiff(byteorder), STORAGE | {700, 34675}).directory, byteorder)
    content = encoded(drawn(9, 17), "JPEG", exif=b"Exif\0\0" + block)
    written, notes = restored(tmp_path, content, ".tif", "in.jpg")
    expected = values_of(tiff(byteorder))
    assert notes == () and {tag: values_of(written).get(tag) for tag in TAGS} == {tag: expected[tag] for tag in TAGS}


@pytest.mark.parametrize("byteorder", "<>")
def test_sub_directories_keep_every_tag_and_the_order_of_their_bytes(tmp_path, byteorder):
    block = {271: Value(2, 6, b"Maker\0"),
             34665: {37500: Value(7, 9, b"maker\0\1\2\3"), 33434: Value(5, 1, struct.pack(byteorder + "II", 1, 125)),
                     40965: {1: Value(2, 4, b"R98\0")}, 65111: Value(2, 5, b"odd!\0")},
             34853: {1: Value(2, 2, b"N\0"), 2: Value(5, 3, struct.pack(byteorder + "6I", 1, 1, 2, 1, 3, 1))},
             65010: {1: Value(3, 1, struct.pack(byteorder + "H", 7))}}
    content = encoded(drawn(9, 17), "JPEG", exif=b"Exif\0\0" + write_tags(block, byteorder))
    for suffix in (".tif", ".png"):
        written, notes = restored(tmp_path, content, suffix, "in.jpg")
        assert notes == ()
        start = 0 if suffix == ".tif" else written.index(b"eXIf") + 4
        order, found, *_ = read_tags(written[start:])
        assert order == byteorder and {tag: found[tag] for tag in block} == block
    with Image.open(tmp_path / "out.tif") as image:
        tags = image.getexif().get_ifd(0x8769)
        assert float(tags[33434]) == 1 / 125 and tags[37500] == b"maker\0\1\2\3"


@pytest.mark.parametrize(("tag", "value", "word"), [
    ("t37724", (7, None, b"Adobe Photoshop Document Data Block\0" + bytes(99)), "layers"),
    ("t301", (3, 256, tuple(range(256))), "transfer"),
])
def test_what_no_longer_fits_is_left_out_and_named(tmp_path, tag, value, word):
    written, notes = restored(tmp_path, tiff(**{tag: value}), ".tif")
    assert len(notes) == 1 and says(notes, word) and int(tag[1:]) not in values_of(written)


def test_pictures_in_sub_directories_are_named(tmp_path):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(drawn(32, 32), photometric="rgb", subifds=1, metadata=None)
        writer.write(drawn(16, 16), photometric="rgb", subfiletype=1, metadata=None)
    _, notes = restored(tmp_path, file.getvalue(), ".tif")
    assert len(notes) == 1 and says(notes, "pictures", "sub-directories")


@pytest.mark.parametrize("big", [False, True])
def test_tags_are_those_of_the_page(big):
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big) as writer:
        for page in range(3):
            writer.write(drawn(9, 17), photometric="rgb", metadata=None, description=f"page {page}")
    content = file.getvalue()
    for page in range(3):
        found = read_tags(content, page=page)
        assert found.directory[270].data == b"page %d\0" % page
    with pytest.raises(ValueError, match="director"):
        read_tags(content, page=4)


def test_iptc_alone_becomes_a_resource_in_a_jpeg(tmp_path):
    file = io.BytesIO()
    tifffile.imwrite(file, drawn(9, 17), photometric="rgb", metadata=None, extratags=[(33723, 7, None, RECORD, True)])
    written, notes = restored(tmp_path, file.getvalue(), ".jpg")
    assert notes == () and b"Photoshop 3.0\0" + RESOURCES[14:] in written


def test_a_jpeg_takes_what_fits_of_long_exif_and_names_the_rest(tmp_path):
    content = tiff(t65011=(7, None, bytes(60_000)), t65012=(7, None, bytes(30_000)))
    written, notes = restored(tmp_path, content, ".jpg")
    assert len(notes) == 1 and says(notes, "EXIF", "tag 65011") and not says(notes, "65012")
    with Image.open(io.BytesIO(written)) as image:
        assert image.getexif()[33432] == "(c) A. Muster" and image.getexif()[65012] == bytes(30_000)
    assert shortened(b"no EXIF", 9) == (b"", [])


def test_a_resolution_without_a_unit_is_kept(tmp_path):
    file = io.BytesIO()
    tifffile.imwrite(file, drawn(9, 17), photometric="rgb", metadata=None, resolution=(3, 2), resolutionunit="NONE")
    written, _ = restored(tmp_path, file.getvalue(), ".tif")
    assert [values_of(written)[tag] for tag in (282, 283, 296)] == [(3, 1), (2, 1), 1]


def test_a_map_fits_the_enlarged_photo(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff())
    photo = read_photo_file(tmp_path / "a.tif")
    large = PhotoFile(Image.new("RGB", (34, 18)), with_size(photo.metadata, 34, 18, 2))
    assert write_photo_file(tmp_path / "b.tif", large) == ()
    found = values_of((tmp_path / "b.tif").read_bytes())
    assert found[33550] == (0.25, 0.25, 0.0) and found[33922] == (2.0, 4.0, 0.0, 400_000.0, 5_000_000.0, 0.0)
    assert says(restored(tmp_path, tiff(t274=(3, 1, 6)), ".tif")[1], "ModelTiepoint")


def test_the_resolution_of_a_photo_on_its_side_is_turned_with_it(tmp_path):
    written, _ = restored(tmp_path, tiff(t274=(3, 1, 6)), ".tif")
    with Image.open(io.BytesIO(written)) as image:
        assert image.info["dpi"] == (200, 300) and image.size == (9, 17)


def test_sizes_that_xmp_tells_are_those_of_the_photo(tmp_path):
    packet = (b'<a tiff:ImageWidth="17" exif:PixelXDimension=\'17\'><tiff:ImageLength>9</tiff:ImageLength>'
              b"<exif:PixelYDimension>9</exif:PixelYDimension></a>")
    expected = packet.replace(b"17", b"34").replace(b">9<", b">18<")
    assert with_size(Metadata(xmp=packet), 34, 18, 2).xmp == expected
    panorama = b'<a GPano:FullPanoWidthPixels="40" GPano:CroppedAreaLeftPixels="0" xmp:Rating="4"/>'
    assert with_size(Metadata(xmp=panorama), 34, 18, 2).xmp == panorama.replace(b'"40"', b'"80"')
    small = encoded(drawn(9, 17), "JPEG", exif=exif(6), xmp=packet)
    (tmp_path / "a.jpg").write_bytes(small)
    turned = packet.replace(b"17", b"9").replace(b">9<", b">17<")
    assert read_photo_file(tmp_path / "a.jpg").metadata.xmp == turned


def test_damaged_tags_are_named_and_the_others_kept(tmp_path):
    content = bytearray(tiff())
    place = content.index(struct.pack("<HH", 40093, 1))
    content[place + 8 : place + 12] = b"\xff\xff\xff\x7f"  # its value would be far behind the file
    written, notes = restored(tmp_path, bytes(content), ".tif")
    assert says(notes, "damaged", "XPAuthor") and values_of(written)[33432] == "(c) A. Muster"


def test_directories_that_contain_themselves_or_each_other_end():
    itself = struct.pack("<HHII", 34665, 4, 1, 8) + struct.pack("<HHII", 34853, 4, 1, 8)
    for content in (b"II*\0\x08\0\0\0\2\0" + itself,
                    b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 65000, 13, 1, 8) * 99):
        order, directory, damaged = read_tags(content)
        assert directory == {} and damaged
    deep = {1: Value(3, 1, b"\1\0")}
    for _ in range(40):
        deep = {65010: deep}
    assert read_tags(write_tags(deep, "<")).damaged
    random.seed(3)
    whole = tiff()
    for _ in range(500):
        damaged_file = bytearray(whole)
        for place in random.sample(range(4, len(whole)), 10):
            damaged_file[place] = random.choice((0, 1, 255, random.randrange(256)))
        try:
            found = read_tags(bytes(damaged_file[: random.randrange(8, len(whole))]))
            read_tags(write_tags(found.directory, found.order) or whole)
        except ValueError as error:
            assert says(error, "director")


def test_values_that_all_lie_in_the_same_bytes_take_no_endless_memory():
    entries = b"".join(struct.pack("<HHII", tag, 7, 1 << 20, 8) for tag in range(1, 2001))
    content = b"II*\0" + struct.pack("<I", 8 + (1 << 20)) + bytes(1 << 20) + struct.pack("<H", 2000) + entries
    found = read_tags(content)
    assert len(found.directory) <= 64 and len(found.damaged) > 1900


def test_many_tags_take_no_quadratic_time():
    """Directories at every second byte, each with all that follows as its tags; and EXIF of many tags, shortened."""
    entry = struct.pack("<HHII", 65000, 13, 1, 8)
    crowd = b"".join(struct.pack("<HHII", tag, 13, 1, 10 + 2 * tag) for tag in range(1, 60_000))
    for body in (struct.pack("<H", 65_535) + entry * 65_535, struct.pack("<H", 59_999) + crowd):
        assert read_tags(b"II*\0\x08\0\0\0" + body).damaged
    many = write_tags({tag: Value(7, 8, bytes(8)) for tag in range(1, 30_000)}, "<")
    content, names = shortened(many, 65_000)
    assert 64_000 < len(content) <= 65_000 and len(names) > 20_000
    assert len(read_tags(content).directory) + len(names) == 29_999


def test_a_note_names_no_thousands_and_has_no_control_characters():
    (note,) = note_of("not kept", [f"\x1b[31m{number}" for number in range(1000)])
    assert len(note) < 500 and "\x1b" not in note and says(note, "980 more")
    assert note_of("not kept", []) == ()


def test_exif_of_a_camera_stays_byte_for_byte_in_png_and_webp(tmp_path):
    block = exif(1, thumbnail=True)
    content = encoded(drawn(9, 17), "JPEG", exif=block)
    for suffix in (".jpg", ".png", ".webp"):
        written, _ = restored(tmp_path, content, suffix, "in.jpg")
        assert block[6:] in written
