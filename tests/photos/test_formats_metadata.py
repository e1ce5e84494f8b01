"""What `srcnn restore` keeps besides the pixels: EXIF, ICC profiles, XMP, resolution, thumbnails, colour chunks."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from matrix import (
    Made,
    chunk,
    decoded,
    drawn,
    encoded,
    exif,
    exif_chunk,
    frames,
    grey_profile,
    lossy_made,
    png,
    png_made,
    profile,
    split,
    xmp,
)
from PIL import ExifTags, Image
from test_formats import call, check_lossy, check_upright, only_file, run, weights  # noqa: F401  (fixtures)

from srcnn.models.device import to_device
from srcnn.models.weights import load_model
from srcnn.restoration.restore import restore_array
from srcnn.restoration.tiled_inference import RestoreOptions

PIXELS_PER_METRE = 11811  # 300 dpi
UNCOMPARED = {"Orientation", "ExifImageWidth", "ExifImageHeight", "JpgFromRawStart", "PreviewImageStart",
              "PreviewImageLength", "PreviewImage", "OtherImageStart"}


def rich_jpeg(orientation: int = 6, channels: int = 3, **options) -> Made:
    icc = profile() if channels == 3 else grey_profile()
    return lossy_made("JPEG", drawn(17, 33, channels), orientation, exif=exif(orientation), xmp=xmp(orientation),
                      **{"icc_profile": icc, "dpi": (300, 300)} | options)


def rich_png(bits: int, channels: int, orientation: int = 6) -> Made:
    packet = b"XML:com.adobe.xmp" + bytes(5) + xmp(orientation)
    icc = grey_profile() if channels < 3 else profile()
    before = [chunk(b"iCCP", b"made\0\0" + zlib.compress(icc)), chunk(b"iTXt", packet), *exif_chunk(orientation),
              chunk(b"pHYs", struct.pack(">IIB", PIXELS_PER_METRE, PIXELS_PER_METRE, 1))]
    return png_made(drawn(17, 33, channels, bits), bits, orientation, before=before)


def rich_tiff(orientation: int = 6) -> Made:
    """By Pillow; with EXIF and GPS."""
    block = Image.Exif()
    block.load(exif(orientation))
    block[700] = xmp(orientation)
    stored = drawn(17, 33)
    content = encoded(stored, "TIFF", exif=block, icc_profile=profile(), dpi=(300, 300))
    return Made(content, *split(stored, orientation))


def rich_tiff_16(orientation: int = 6) -> Made:
    """By tifffile; texts in its own tags."""
    packet = xmp(orientation)
    tags = [(274, 3, 1, orientation, True), (700, 1, len(packet), packet, True), (271, 2, 6, "Maker", True),
            (33432, 2, 12, "(c) someone", True)]
    file = io.BytesIO()
    stored = drawn(17, 33, 3, 16)
    tifffile.imwrite(file, stored, photometric="rgb", metadata=None, extratags=tags, iccprofile=profile(),
                     resolution=(300, 300), resolutionunit="INCH")
    return Made(file.getvalue(), *split(stored, orientation))


RICH = {
    "rich.jpg": (rich_jpeg, ()),
    "upright.jpg": (lambda: rich_jpeg(1), ()),
    "grey.jpg": (lambda: rich_jpeg(channels=1), ()),
    "rich.png": (lambda: rich_png(8, 3), ()),
    "grey alpha.png": (lambda: rich_png(8, 2), ()),
    "rich 16.png": (lambda: rich_png(16, 3), ()),
    "grey 16.png": (lambda: rich_png(16, 1, 3), ()),
    "rich.tif": (rich_tiff, ()),
    "rich 16.tif": (rich_tiff_16, ()),
    "rich.webp": (lambda: lossy_made("WEBP", drawn(17, 33), 6, exif=exif(6), xmp=xmp(6), icc_profile=profile()), ()),
    "to png.jpg": (rich_jpeg, ("--format", "png")),
    "to tiff.jpg": (rich_jpeg, ("--format", "tiff")),
    "to webp.jpg": (rich_jpeg, ("--format", "webp")),
    "to jpg.png": (lambda: rich_png(8, 3), ("--format", "jpg")),
    "16 to tiff.png": (lambda: rich_png(16, 3), ("--format", "tiff")),
    "to png.tif": (rich_tiff, ("--format", "png")),
    "16 to png.tif": (rich_tiff_16, ("--format", "png")),
    "to jpg.tif": (rich_tiff, ("--format", "jpg")),
}


def without_orientation(packet: bytes) -> bytes:
    """Of 1; none says the same."""
    return packet.rstrip(b"\0").replace(b'tiff:Orientation="1"', b"")


def tags_of(image: Image.Image) -> dict[tuple[str, int], object]:
    """EXIF as Pillow finds it: main, Exif and GPS directory; a TIFF's own way of storing left out."""
    found = image.getexif()
    parts = {"main": found, "exif": found.get_ifd(0x8769), "gps": found.get_ifd(0x8825)}
    return {(part, tag): value for part, tags in parts.items() for tag, value in tags.items()}


@pytest.mark.parametrize("name", RICH)
def test_exif_profile_xmp_and_resolution_are_kept(tmp_path, run, name):  # noqa: F811
    make, options = RICH[name]
    made = make()
    assert (ran := run(name, made.content, *options)).status == 0, ran.err
    path = only_file(tmp_path / "out")
    check_upright(path)
    with Image.open(io.BytesIO(made.content)) as source, Image.open(path) as image:
        source.load(), image.load()
        assert image.size == made.pixels.shape[1::-1]
        assert image.info.get("icc_profile") == source.info["icc_profile"]
        assert without_orientation(image.info["xmp"]) == without_orientation(xmp(1))
        if "dpi" in source.info and path.suffix != ".webp":
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.5)
        before, after = tags_of(source), tags_of(image)
    wanted = [("main", 271), ("main", 33432)]
    if name not in ("rich 16.tif", "16 to png.tif"):
        wanted += [("main", 272), ("main", 306), ("exif", 0x9003), ("exif", 0x9291), ("exif", 0x829A), ("exif", 0x927C),
                   ("exif", 0x9286), ("exif", 0xA434), ("gps", 1), ("gps", 2), ("gps", 3), ("gps", 4)]
    assert {key: after.get(key) for key in wanted} == {key: before[key] for key in wanted}


def exiftool(*paths: Path) -> list[dict[str, object]]:
    """Every tag exiftool finds, by group and name; a list where a name occurs several times."""
    if not shutil.which("exiftool"):
        pytest.skip("no exiftool on this machine")
    command = ["exiftool", "-j", "-G1", "-a", "-n", "-U", *map(str, paths)]
    return json.loads(subprocess.run(command, capture_output=True, timeout=100).stdout)


def comparable(tags: dict[str, object]) -> dict[str, object]:
    """Without what tells of the file, and where in it other pictures lie."""
    others = ("SourceFile", "ExifTool:", "System:", "File:", "Composite:", "JFIF:", "MPF", "IFD1:")
    return {name: value for name, value in tags.items()
            if not name.startswith(others) and name.split(":")[-1] not in UNCOMPARED}


def with_cameras_head(camera: bytes, small: bytes) -> bytes:
    """A small JPEG that has a camera's APP1 to APP15 segments and comments instead of its own."""

    def head(content: bytes) -> tuple[list[bytes], int]:
        segments, at = [], 2
        while content[at + 1] in range(0xE0, 0xF0) or content[at + 1] == 0xFE:
            length = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            segments.append(content[at : at + length])
            at += length
        return segments, at

    kept = [segment for segment in head(camera)[0] if segment[1] not in (0xE0, 0xEE)]
    return small[:2] + b"".join(kept) + small[head(small)[1] :]


@pytest.mark.slow
def test_exiftool_finds_what_cameras_wrote(tmp_path, weights, shared_data):  # noqa: F811
    """Maker notes, GPS, dates, comments: all tags of real cameras, also where the photo is turned."""
    (tmp_path / "photos").mkdir()
    cameras = sorted((shared_data / "train" / "camera_samples").iterdir())
    for path in cameras:
        small = encoded(drawn(24, 32), "JPEG", quality=30)
        (tmp_path / "photos" / path.name).write_bytes(with_cameras_head(path.read_bytes(), small))
    assert call("restore", tmp_path / "photos", "-o", tmp_path / "out", "--model", weights).status == 0
    before = exiftool(*(tmp_path / "photos" / path.name for path in cameras))
    after = exiftool(*(tmp_path / "out" / path.name for path in cameras))
    assert sum(len(comparable(tags)) for tags in before) > 500
    lost = {}
    for path, old, new in zip(cameras, map(comparable, before), map(comparable, after), strict=True):
        if differing := {name: (value, new.get(name)) for name, value in old.items() if new.get(name) != value}:
            lost[path.name] = differing
    assert not lost


@pytest.mark.slow
def test_a_cameras_photo_of_12_megapixels(tmp_path, weights, shared_data):  # noqa: F811
    source = shared_data / "train" / "camera_samples" / "Samsung_SM-G935L_(Galaxy_S7_Edge).jpg"
    content = source.read_bytes()
    assert call("restore", source, "-o", tmp_path, "--model", weights, "--exact", "--keep-chroma",
                "--quality", 95).status == 0
    path = only_file(tmp_path)
    assert source.read_bytes() == content
    network = to_device(load_model(weights), torch.device("cpu"))
    check_lossy(path, restore_array(decoded(content), network, RestoreOptions(exact=True)))
    before, after = map(comparable, exiftool(source, path))
    assert any(name.startswith("Samsung:SamsungTrailer") for name in before), "behind the picture"
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_thumbnail_is_not_left_sideways(tmp_path, run, orientation):  # noqa: F811
    """Kept, turned with its photo, or left out."""
    stored = drawn(120, 160)
    content = encoded(stored, "JPEG", exif=exif(orientation, thumbnail=True))
    assert run("a.jpg", content).status == 0
    with Image.open(only_file(tmp_path / "out")) as image:
        found = image.getexif().get_ifd(ExifTags.IFD.IFD1)
        block = image.info["exif"]
    if 0x0201 in found:
        start = 6 + found[0x0201]
        with Image.open(io.BytesIO(block[start : start + found[0x0202]])) as thumbnail:
            assert thumbnail.size == ((160, 120) if orientation == 1 else (120, 160))


def test_a_large_profile_is_kept_byte_for_byte(tmp_path, run):  # noqa: F811
    """In a JPEG it takes several segments."""
    large = profile(size=150_001)
    for options in ((), ("--format", "png", "--overwrite"), ("--format", "tiff")):
        assert run("a.jpg", encoded(drawn(9, 17), "JPEG", icc_profile=large), *options).status == 0
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.info["icc_profile"] == large, path.name


@pytest.mark.parametrize("bits", [8, 16])
def test_what_a_png_says_of_its_colours_is_kept(tmp_path, run, bits):  # noqa: F811
    chunks = [chunk(b"gAMA", struct.pack(">I", 55556)), chunk(b"cHRM", struct.pack(
        ">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))]
    assert run("a.png", png(drawn(9, 17, 3, bits), bits, chunks)).status == 0
    written = only_file(tmp_path / "out").read_bytes()
    assert all(part in written for part in chunks)


def with_segments(*segments: tuple[int, bytes]) -> bytes:
    """A small JPEG with segments (marker, content) after its start."""
    small = encoded(drawn(9, 17), "JPEG")
    parts = b"".join(bytes((255, marker)) + struct.pack(">H", len(part) + 2) + part for marker, part in segments)
    return small[:2] + parts + small[2:]


def extended_xmp() -> bytes:
    """XMP too large for one segment: the rest of it in two "extension" segments."""
    guid, more = b"0" * 32, xmp(padding=90_000).replace(b"Rating", b"Label")
    attribute = b' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="' + guid + b'"'
    main = xmp().replace(b' xmp:Rating="4"', b' xmp:Rating="4"' + attribute)
    parts = [guid + struct.pack(">II", len(more), start) + more[start : start + 60_000] for start in (0, 60_000)]
    return with_segments((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main),
                         *((0xE1, b"http://ns.adobe.com/xmp/extension/\0" + part) for part in parts))


def iptc() -> bytes:
    """A caption in IPTC-IIM, as press agencies and Photoshop write it."""
    record = b"\x1c\x02\x78" + struct.pack(">H", 9) + b"A caption"
    return with_segments((0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record))


BESIDES = {  # what is looked for in the file written, or else the word in what is printed
    "extended XMP": (extended_xmp, b'xmp:Label="4"', "XMP"),
    "IPTC": (iptc, b"A caption", "IPTC"),
    "comment": (lambda: with_segments((0xFE, b"a remark")), b"a remark", "comment"),
}


@pytest.mark.parametrize("name", BESIDES)
def test_other_metadata_is_kept_or_its_loss_is_said(tmp_path, run, name):  # noqa: F811
    make, content, word = BESIDES[name]
    ran = run("a.jpg", make())
    assert ran.status == 0
    assert content in only_file(tmp_path / "out").read_bytes() or word in ran.said


def test_that_a_second_picture_is_left_out_is_said(tmp_path, run):  # noqa: F811
    """The gain map of a HDR photo, the preview of a camera's MPO."""
    ran = run("a.jpg", frames("MPO"))
    assert ran.status == 0
    with Image.open(only_file(tmp_path / "out")) as image:
        num_frames = getattr(image, "n_frames", 1)
    assert num_frames == 2 or any(word in ran.said for word in ("picture", "image", "frame", "preview", "MPO"))


def test_a_profile_of_another_colour_space_does_no_harm(tmp_path, run):  # noqa: F811
    """A grey profile in an RGB file: as it was, for the reader to ignore; the pixels are not converted by it."""
    made = lossy_made("JPEG", drawn(17, 33), icc_profile=grey_profile(), quality=30)
    assert run("a.jpg", made.content).status == 0
    with Image.open(only_file(tmp_path / "out")) as image:
        assert image.mode == "RGB" and image.info.get("icc_profile") in (grey_profile(), None)
        assert np.abs(np.asarray(image).astype(int).mean() - made.pixels.mean()) < 60
