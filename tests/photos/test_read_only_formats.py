"""AVIF, HEIC, JPEG 2000 and JPEG XL are read, upright and with all their bits, and become PNGs."""

import importlib.util
import io
import struct

import numpy as np
import pytest
from conftest import photo_pixels
from messages import facts, says
from PIL import Image, ImageCms, features

from srcnn.__main__ import main
from srcnn.commands.output_paths import output_paths
from srcnn.photos.file_kinds import unread_kind
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import PhotoRefused, find_photos, open_image, read_photo, suffix_of

imagecodecs = pytest.importorskip("imagecodecs")
PIXELS = np.ascontiguousarray(photo_pixels(1, 53, 37))
DEEP = PIXELS.astype(np.uint16) * 257
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


def exif(orientation=1):
    block = Image.Exif()
    block[0x010F], block[0x0112] = "Maker", orientation
    return block.tobytes()


def by_pillow(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def avif(bits=8):
    return imagecodecs.avif_encode(DEEP >> (16 - bits) if bits > 8 else PIXELS, level=100, bitspersample=bits)


def heic(bits=8, orientation=1):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pixels, mode = (DEEP, "RGB;16") if bits > 8 else (PIXELS, "RGB")
    image = pillow_heif.from_bytes(mode, (53, 37), pixels.tobytes())
    image.save(buffer, quality=-1, chroma=444, exif=exif(orientation))
    return buffer.getvalue()


def jxl(pixels=PIXELS, bits=8, **options):
    return imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=bits, **options)


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


def jxl_with_metadata(packed=False):
    parts = [(b"Exif", bytes(4) + exif(6)[6:]), (b"xml ", XMP)]
    if packed:
        parts = [(b"brob", kind + imagecodecs.brotli_encode(content)) for kind, content in parts]
    boxes = [box(b"JXL ", b"\r\n\x87\n"), box(b"ftyp", b"jxl \0\0\0\0jxl "), *(box(*part) for part in parts)]
    return b"".join(boxes) + box(b"jxlc", jxl())


MADE = {  # name: (content, levels of 8 bits by which lossy ones may differ on average)
    "a.avif": (lambda: by_pillow("AVIF", quality=100, subsampling="4:4:4"), 2),
    "a.jp2": (lambda: by_pillow("JPEG2000"), 0), "b.j2k": (lambda: by_pillow("JPEG2000", no_jp2=True), 0),
    "a.jxl": (jxl, 0), "b.jxl": (lambda: jxl(usecontainer=True), 0), "a.heic": (heic, 2)}


@pytest.fixture
def made(request, tmp_path):
    name = request.param
    feature = {".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000"}.get(name[-5:].lstrip("ab"))
    if feature and feature not in features.get_supported():
        pytest.skip(f"this Pillow has no {feature}")
    (tmp_path / name).write_bytes(MADE[name][0]())
    return tmp_path / name, MADE[name][1]


@pytest.mark.parametrize("made", MADE, indirect=True)
def test_pixels_are_those_that_were_encoded(made):
    path, tolerance = made
    assert np.abs(read_photo(path).astype(int) - PIXELS).mean() <= tolerance
    photo = read_photo_file(path)
    assert photo.size == (37, 53) and not photo.notes and photo.dtype == np.uint8
    assert unread_kind(path) == "" and suffix_of(path) == ".png"
    assert find_photos(path.parent) == ([path], [])


@pytest.mark.parametrize("made", ["a.avif", "a.jxl"], indirect=True)
def test_the_result_is_a_png_unless_another_format_is_asked_for(made, capsys):
    path, _ = made
    assert main(["restore", str(path), "-o", str(path.parent / "out")]) == 0
    assert main(["restore", str(path), "--format", "jpg"]) == 0
    for result, kind in ((f"out/{path.stem}.png", "PNG"), (f"{path.stem}_restored.jpg", "JPEG")):
        with Image.open(path.parent / result) as image:
            assert (image.format, image.size) == (kind, (53, 37))
    with pytest.raises(ValueError, match=facts(path.suffix)):
        write_photo_file(path, read_photo_file(path))


def test_photos_of_one_name_get_results_of_their_own(tmp_path):
    for name in ("a.avif", "a.jxl", "b.jp2", "b.png"):
        (tmp_path / name).touch()
    paths = output_paths(tmp_path, tmp_path / "out")
    assert not paths.errors and {path.name: target.name for path, target in paths.targets.items()} == {
        "a.avif": "a.avif.png", "a.jxl": "a.jxl.png", "b.jp2": "b.jp2.png", "b.png": "b.png.png"}


DEEPER = {"a.avif": (lambda: avif(10), 10), "b.avif": (lambda: avif(12), 12), "a.heic": (lambda: heic(10), 10),
          "a.jp2": (lambda: imagecodecs.jpeg2k_encode(DEEP >> 4, level=0, bitspersample=12), 12),
          "b.jp2": (lambda: imagecodecs.jpeg2k_encode(DEEP, level=0, bitspersample=16), 16),
          "a.jxl": (lambda: jxl(DEEP >> 6, 10), 10), "b.jxl": (lambda: jxl(DEEP, 16), 16)}


@pytest.mark.parametrize("name", DEEPER)
def test_more_than_8_bits_are_kept_as_16(tmp_path, name):
    make, bits = DEEPER[name]
    (tmp_path / name).write_bytes(make())
    photo = read_photo_file(tmp_path / name)
    assert photo.dtype == np.uint16 and photo.image.shape == (37, 53, 3)
    levels = np.rint((DEEP >> (16 - bits)) * (65535 / ((1 << bits) - 1)))
    difference = np.abs(photo.image - levels)
    assert difference.mean() < 400 if name.endswith(("avif", "heic")) else difference.max() == 0
    assert np.abs(read_photo(tmp_path / name).astype(int) - PIXELS).mean() < 2
    write_photo_file(tmp_path / "out.png", photo)
    np.testing.assert_array_equal(read_photo_file(tmp_path / "out.png").image, photo.image)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_an_avif_and_a_heic_are_turned_once(tmp_path, orientation):
    """The orientation is a property of the file (irot, imir): in the EXIF it says nothing."""
    (tmp_path / "a.avif").write_bytes(by_pillow("AVIF", quality=100, exif=exif(orientation)))
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif(orientation))
    expected = read_photo(tmp_path / "a.png")
    if importlib.util.find_spec("pillow_heif"):
        (tmp_path / "a.heic").write_bytes(heic(orientation=orientation))
    for name in sorted(path.name for path in tmp_path.glob("*.[ah]*i[fc]")):
        found = read_photo(tmp_path / name)
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 5
        tags = Image.Exif()
        tags.load(read_photo_file(tmp_path / name).metadata.exif)
        assert tags.get(0x0112, 1) == 1 and tags[0x010F] == "Maker"


def test_the_exif_of_a_jpeg_xl_turns_nothing(tmp_path):
    for packed in (False, True):
        (tmp_path / "a.jxl").write_bytes(jxl_with_metadata(packed))
        photo = read_photo_file(tmp_path / "a.jxl")
        np.testing.assert_array_equal(np.asarray(photo.image), PIXELS)
        tags = Image.Exif()
        tags.load(photo.metadata.exif)
        assert tags.get(0x0112, 1) == 1 and tags[0x010F] == "Maker" and photo.metadata.xmp == XMP


def test_the_metadata_of_a_jpeg_2000_are_kept(tmp_path):
    content = by_pillow("JPEG2000")
    place = content.index(b"jp2c") - 4
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    old = content[content.index(b"colr") - 4 :][:15]
    new = box(b"colr", b"\2\0\0" + profile)
    header = content.index(b"jp2h") - 4
    size = int.from_bytes(content[header : header + 4], "big") + len(new) - len(old)
    uuids = box(b"uuid", b"JpgTiffExif->JP2" + exif(6)[6:])
    uuids += box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + XMP)
    head = content[:header] + struct.pack(">I", size) + content[header + 4 : place].replace(old, new)
    (tmp_path / "a.jp2").write_bytes(head + uuids + content[place:])
    photo = read_photo_file(tmp_path / "a.jp2")
    np.testing.assert_array_equal(np.asarray(photo.image), np.rot90(PIXELS, -1))
    tags = Image.Exif()
    tags.load(photo.metadata.exif)
    assert tags[0x010F] == "Maker" and photo.metadata.xmp == XMP and photo.metadata.icc_profile == profile


def test_colours_that_are_not_those_of_srgb_are_noted(tmp_path):
    content = by_pillow("AVIF")
    assert content.count(b"colrnclx") == 1
    place = content.index(b"colrnclx") + 8
    hdr = struct.pack(">HH", 9, 16)  # the primaries of BT.2020, the curve PQ
    (tmp_path / "hdr.avif").write_bytes(content[:place] + hdr + content[place + 4 :])
    assert says(read_photo_file(tmp_path / "hdr.avif").notes, "9/16")


SHAPES = [(37, 53), (37, 53, 4), (37, 53, 2), (1, 1, 3), (8, 8, 3), (300, 1, 3), (256, 512, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_header_of_a_jpeg_xl_tells_size_bits_and_channels(tmp_path, shape, bits):
    pixels = np.random.default_rng(0).integers(0, 1 << bits, shape, np.uint8 if bits == 8 else np.uint16)
    for options in ({}, {"usecontainer": True}):
        (tmp_path / "a.jxl").write_bytes(jxl(pixels, bits, **options))
        with open_image(tmp_path / "a.jxl") as image:
            assert (image.height, image.width, image.bits) == (*shape[:2], bits)
            assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[shape[2] if len(shape) == 3 else 1]
        found = read_photo_file(tmp_path / "a.jxl")
        np.testing.assert_array_equal(found.read_all((slice(0, shape[0]), slice(0, shape[1]))), pixels)


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(photo_pixels(seed, 33, 21)) for seed in (1, 2)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(np.stack([PIXELS, PIXELS]), lossless=True))
    for name in ("a.avif", "a.jxl"):
        with pytest.raises(PhotoRefused, match=facts(name, "frames")):
            read_photo(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jp2", "b.j2k", "a.jxl", "a.avif"])
def test_a_bomb_is_refused_by_its_header(tmp_path, name):
    content, side = MADE[name][0](), 16_000 if name == "a.avif" else 40_000  # libavif refuses more than 268 megapixels
    if name == "a.jxl":  # both sizes of 30 bits, then all by default
        bits = 0 | 3 << 1 | 39_999 << 3 | 0 << 33 | 3 << 36 | 39_999 << 38 | 1 << 68
        content = b"\xff\x0a" + bits.to_bytes(9, "little") + content[9:]
    else:
        old = struct.pack(">II", *((37, 53) if name == "a.jp2" else (53, 37)))
        assert old in content
        content = content.replace(old, struct.pack(">II", side, side))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoRefused, match=facts(name, f"{side}x{side}", 250)):
        read_photo(tmp_path / name)


def test_a_jpeg_2000_whose_codestream_is_larger_than_it_says_is_refused(tmp_path):
    content = by_pillow("JPEG2000")
    assert content.count(struct.pack(">II", 53, 37)) >= 1
    (tmp_path / "a.jp2").write_bytes(content.replace(struct.pack(">II", 53, 37), struct.pack(">II", 50_000, 50_000)))
    with pytest.raises(PhotoRefused, match=facts("a.jp2", "50000x50000")):
        read_photo(tmp_path / "a.jp2")


@pytest.mark.parametrize("made", MADE, indirect=True)
def test_cut_and_changed_files_are_refused_by_name_or_read(made):
    path, _ = made
    content, random = path.read_bytes(), np.random.default_rng(0)
    for number in range(60):
        changed = bytearray(content[: random.integers(0, len(content))] if number % 2 else content)
        for place in random.integers(0, max(1, len(changed)), number % 4):
            changed[place : place + 1] = bytes([random.integers(0, 256)])
        path.write_bytes(changed)
        try:
            read_photo_file(path, 1.0)
        except PhotoRefused as error:
            assert path.name in str(error) and "_io." not in str(error)
