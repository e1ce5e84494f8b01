"""What a JPEG has besides its pixels is kept, or named; gain maps and videos behind it are found by other readers."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matrix import drawn, encoded, exif
from messages import says
from PIL import Image

from srcnn.photos.jpeg_parts import parts_of, read_parts, walk_jpeg
from srcnn.photos.metadata import with_size
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.xmp_claims import without_claims

RESOURCE = b"8BIM\x04\x0a\0\0" + struct.pack(">I", 1) + b"\1\0"  # copyrighted
RECORD = b"\x1c\x02\x78\0\x05Haus1"
IPTC = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(RECORD)) + RECORD
XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
VIDEO = struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + b"\xff\xda video" * 200  # more scans than any JPEG has
HDR = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
       b'<rdf:Description rdf:about="" xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/" h:Version="1.0" '
       b'xmlns:C="http://ns.google.com/photos/1.0/container/" '
       b'xmlns:I="http://ns.google.com/photos/1.0/container/item/" '
       b'xmlns:G="http://ns.google.com/photos/1.0/camera/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" '
       b'G:MotionPhoto="1" G:MicroVideoOffset="%d">'
       b'<C:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><C:Item I:Semantic="Primary" I:Mime="image/jpeg"/>'
       b'</rdf:li><rdf:li rdf:parseType="Resource"><C:Item I:Semantic="GainMap" I:Mime="image/jpeg" I:Length="%d"/>'
       b'</rdf:li><rdf:li rdf:parseType="Resource"><C:Item I:Semantic="MotionPhoto" I:Length="%d"/></rdf:li></rdf:Seq>'
       b'</C:Directory></rdf:Description></rdf:RDF></x:xmpmeta>')


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def with_segments(*segments: bytes, content: bytes | None = None) -> bytes:
    small = content or encoded(drawn(24, 40), "JPEG", quality=60)
    return small[:2] + b"".join(segments) + small[2:]


def gain_map() -> np.ndarray:
    return drawn(24, 40, 1, seed=7)


def mpf(order: str, content: bytes, sizes: list[int]) -> bytes:
    """The picture with an MP index (CIPA DC-007): header, directory of three tags, then entries of 16 bytes."""
    mark, entries = (b"II*\0" if order == "<" else b"MM\0*"), 8 + 2 + 3 * 12 + 4
    directory = struct.pack(order + "H", 3) + struct.pack(order + "HHI4s", 0xB000, 7, 4, b"0100")
    directory += struct.pack(order + "HHII", 0xB001, 4, 1, 1 + len(sizes))
    directory += struct.pack(order + "HHII", 0xB002, 7, 16 * (1 + len(sizes)), entries) + bytes(4)
    total = len(content) + 4 + 4 + entries + 16 * (1 + len(sizes))
    table, place = struct.pack(order + "IIIHH", 0x030000, total, 0, 0, 0), total - (2 + 4 + 4)
    for size in sizes:
        table += struct.pack(order + "IIIHH", 0, size, place, 0, 0)
        place += size
    body = b"MPF\0" + mark + struct.pack(order + "I", 8) + directory + table
    return with_segments(segment(0xE2, body), content=content)


def phone_photo(orientation: int = 1, order: str = "<", video: bytes = VIDEO) -> bytes:
    """An Ultra HDR motion photo: primary with XMP and MPF, gain map, video."""
    gain = encoded(gain_map(), "JPEG", quality=95)
    photo = encoded(drawn(48, 80), "JPEG", exif=exif(orientation), xmp=HDR % (len(video), len(gain), len(video)))
    iso = segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4))
    return mpf(order, with_segments(iso, content=photo), [len(gain)]) + gain + video


def index_of(content: bytes) -> list[tuple[int, int]]:
    """(start, size) of each picture, as another reader finds them: Pillow's parser of the MP index."""
    with Image.open(io.BytesIO(content)) as image:
        found = image._getmp()
        base = content.index(b"MPF\0") + 4
        return [(entry["DataOffset"] + (base if number else 0), entry["Size"])
                for number, entry in enumerate(found[0xB002])]


def restored(tmp_path: Path, content: bytes, suffix: str = ".jpg") -> tuple[bytes, tuple[str, ...]]:
    """The file written, and the notes of reading and writing."""
    (tmp_path / "in.jpg").write_bytes(content)
    photo = read_photo_file(tmp_path / "in.jpg")
    notes = write_photo_file(tmp_path / f"out{suffix}", photo)
    read_photo_file(tmp_path / f"out{suffix}")
    return (tmp_path / f"out{suffix}").read_bytes(), (*photo.notes, *notes)


SEGMENTS = {  # what of it is named where it is lost
    "comment": (segment(0xFE, b"a remark"), b"a remark", "comment"),
    "maker": (segment(0xE3, b"Meta\0\0unknown"), b"unknown", "APP3"),
    "thermal": (segment(0xE1, b"FLIR\0\1\0\0thermal"), b"thermal", "FLIR"),
    "ducky": (segment(0xEC, b"Ducky\0\1\0\4"), b"Ducky", "Ducky"),
    "adobe_cm": (segment(0xED, b"Adobe_CM\0\2"), b"Adobe_CM", "Adobe_CM"),
    "ciff": (segment(0xE0, b"II\x1a\0\0\0HEAPJPGM"), b"HEAPJPGM", "APP0"),
    "no name": (segment(0xEF, bytes(range(99))), bytes(range(99)), "APP15"),
    "extended xmp": (segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + b"depth"), b"depth", "XMP"),
    "photoshop": (segment(0xED, b"Photoshop 3.0\0" + RESOURCE), RESOURCE, "Photoshop's"),
    "iptc": (segment(0xED, b"Photoshop 3.0\0" + RESOURCE + IPTC), RECORD, "IPTC"),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("name", SEGMENTS)
def test_every_segment_is_kept_or_named(tmp_path, name, suffix):
    part, content, word = SEGMENTS[name]
    written, notes = restored(tmp_path, with_segments(part), suffix)
    is_in_png = suffix == ".png" and name in ("iptc", "photoshop")  # as text of hexadecimal digits
    if content in written or is_in_png and b"Raw profile type iptc" in written:
        assert notes == ()
    else:
        assert suffix != ".jpg" and says(notes, word)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_signature_of_the_picture_as_it_was_is_left_out_and_named(tmp_path, suffix):
    box = b"JP\0\1\0\0\0\1" + struct.pack(">I", 40) + b"jumb" + b"\0\0\0\x20jumdc2pa" + bytes(20)
    written, notes = restored(tmp_path, with_segments(segment(0xEB, box), segment(0xEB, box)), suffix)
    assert b"c2pa" not in written and len(notes) == 1 and says(notes, "C2PA")
    written, notes = restored(tmp_path, with_segments(segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x10jumbother---")), suffix)
    assert b"jumb" not in written and says(notes, "JUMBF")


def test_what_describes_how_the_pixels_were_stored_is_no_metadata(tmp_path):
    old = segment(0xE0, b"JFXX\0\x10 small picture") + segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")
    written, notes = restored(tmp_path, with_segments(old))
    assert notes == () and b"JFXX" not in written and b"Adobe" not in written


def test_an_aspect_of_pixels_that_cannot_be_written_is_named(tmp_path):
    content = bytearray(encoded(drawn(24, 40), "JPEG"))
    assert content[6:11] == b"JFIF\0" and content[13] == 0
    content[14:18] = b"\0\2\0\1"
    assert says(restored(tmp_path, bytes(content))[1], "aspect")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_gain_map_and_a_video_stay_where_the_file_says_they_are(tmp_path, order, orientation):
    written, notes = restored(tmp_path, phone_photo(orientation, order))
    assert notes == () and written.endswith(VIDEO)
    (first, size), (start, length) = index_of(written)
    assert first == 0 and size == start == walk_jpeg(written)[1] and start + length + len(VIDEO) == len(written)
    with Image.open(io.BytesIO(written[start : start + length])) as image:
        found = np.asarray(image).astype(int)
    turned = np.rot90(gain_map(), {1: 0, 3: 2, 6: 3}[orientation])
    assert found.shape == turned.shape and np.abs(found - turned).max() <= 12
    assert b'I:Semantic="GainMap" I:Mime="image/jpeg" I:Length="%d"' % length in written
    assert b'G:MicroVideoOffset="%d"' % len(VIDEO) in written and b"21496" in written


def test_exiftool_finds_the_gain_map(tmp_path):
    if not shutil.which("exiftool"):
        pytest.skip("no exiftool on this machine")
    restored(tmp_path, phone_photo(6))
    command = ["exiftool", "-b", "-MPImage2", str(tmp_path / "out.jpg")]
    found = subprocess.run(command, capture_output=True, timeout=100, check=True).stdout
    with Image.open(io.BytesIO(found)) as image:
        assert image.size == (24, 40)
    command = ["exiftool", "-j", "-validate", "-error", "-DirectoryItemLength", str(tmp_path / "out.jpg")]
    checked = subprocess.run(command, capture_output=True, timeout=100, check=True).stdout
    (tags,) = json.loads(checked)
    assert "Error" not in tags and tags["DirectoryItemLength"] == len(found)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_in_another_format_they_are_named_and_nothing_claims_them(tmp_path, suffix):
    written, notes = restored(tmp_path, phone_photo(), suffix)
    assert len(notes) == 1 and says(notes, "gain map", "video") and not says(notes, "further")
    with Image.open(io.BytesIO(written)) as image:
        image.load()
        packet = image.info["xmp"]
    assert b'xmp:Rating="4"' in packet
    assert not any(word in packet for word in (b"h:Version", b"GainMap", b"MotionPhoto", b"MicroVideo", b"Directory"))
    assert b"MPF\0" not in written and b"21496" not in written


def test_an_enlarged_photo_keeps_its_gain_map(tmp_path):
    (tmp_path / "in.jpg").write_bytes(phone_photo())
    photo = read_photo_file(tmp_path / "in.jpg")
    large = PhotoFile(Image.new("RGB", (160, 96)), with_size(photo.metadata, 160, 96, 2))
    assert write_photo_file(tmp_path / "large.jpg", large) == ()
    written = (tmp_path / "large.jpg").read_bytes()
    (_, _), (start, length) = index_of(written)
    assert written[start : start + length] == phone_photo()[-len(VIDEO) - length : -len(VIDEO)]


def test_a_gain_map_that_cannot_be_turned_goes_with_its_claims_and_the_video_stays(tmp_path):
    content = phone_photo(6)
    place = content.rindex(b"\xff\xc0")  # the gain map's frame header
    written, notes = restored(tmp_path, content[:place] + b"\xff\xc5" + content[place + 2 :])
    assert says(notes, "pictures", "turned") and written.endswith(VIDEO)
    assert b"MPF\0" not in written and b"GainMap" not in written and b"h:Version" not in written
    assert b'I:Semantic="MotionPhoto"' in written and b'G:MotionPhoto="1"' in written


def test_the_further_pictures_of_a_camera_are_kept(tmp_path):
    """A preview that tells its own orientation is not turned with the photo."""
    first, second = drawn(24, 40), drawn(12, 20, seed=3)
    preview = encoded(second, "JPEG", exif=exif(6), quality=90)
    content = mpf(">", encoded(first, "JPEG", exif=exif(6)), [len(preview)]) + preview
    written, notes = restored(tmp_path, content)
    assert notes == () and written.endswith(preview)
    with Image.open(io.BytesIO(written)) as image:
        assert image.format == "MPO" and image.n_frames == 2 and image.size == (24, 40)
        image.seek(1)
        assert image.size == (20, 12) and image.getexif()[0x0112] == 6
    _, notes = restored(tmp_path, content, ".png")
    assert says(notes, "further pictures") and not says(notes, "gain map")


@pytest.mark.parametrize(("behind", "word"), [(VIDEO, "video"), (b"MotionPhoto_Data" + VIDEO, "video"),
                                              (b"\0\0\1\x0aImage_UTC_Data\0SEFH\0SEFT", "data"), (b"anything", "data")])
def test_what_follows_the_end_is_kept_or_named(tmp_path, behind, word):
    content = encoded(drawn(24, 40), "JPEG") + behind
    written, notes = restored(tmp_path, content)
    assert notes == () and written.endswith(b"\xff\xd9" + behind)
    assert says(restored(tmp_path, content, ".png")[1], word)


def test_zeros_behind_the_end_are_nothing(tmp_path):
    content = encoded(drawn(24, 40), "JPEG")
    for suffix in (".jpg", ".png"):
        written, notes = restored(tmp_path, content + bytes(999), suffix)
        assert notes == () and (suffix != ".jpg" or written.endswith(b"\xff\xd9"))


def test_claims_of_parts_that_the_file_has_not_are_removed(tmp_path):
    content = phone_photo(video=b"")
    cut = content[: walk_jpeg(content)[1]]
    written, notes = restored(tmp_path, cut)
    assert notes == () and b"MPF\0" not in written and b"GainMap" not in written and b'xmp:Rating="4"' in written


def test_an_index_that_points_elsewhere_is_left_out_and_said(tmp_path):
    content = bytearray(phone_photo())
    place = content.index(b"MPF\0") + 4 + 50 + 16 + 8  # the second picture's offset
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    written, notes = restored(tmp_path, bytes(content))
    assert says(notes, "index") and b"MPF\0" not in written and written.endswith(VIDEO)


def test_a_long_block_of_photoshop_takes_several_segments(tmp_path):
    data = bytes(range(256)) * 500
    block = b"8BIM\x04\x0f\0\0" + struct.pack(">I", len(data)) + data + IPTC
    places = range(0, len(block), 60_000)
    parts = [segment(0xED, b"Photoshop 3.0\0" + block[place : place + 60_000]) for place in places]
    written, notes = restored(tmp_path, with_segments(*parts))
    assert notes == () and read_parts(written).photoshop == block


def test_a_photoshop_thumbnail_of_a_turned_photo_is_left_out(tmp_path):
    thumbnail = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 6) + b"small."
    part = segment(0xED, b"Photoshop 3.0\0" + thumbnail + IPTC)
    for orientation in (1, 6):
        photo = encoded(drawn(24, 40), "JPEG", exif=exif(orientation))
        written, _ = restored(tmp_path, with_segments(part, content=photo))
        assert (b"small." in written) == (orientation == 1) and RECORD in written


def test_walks_over_damaged_files_end_in_linear_time():
    random.seed(1)
    content = phone_photo()
    hostile = [b"\xff\xd8" + b"\xff" * 1_000_000, b"\xff\xd8" + b"\xff\xe1\0\0" * 100_000, b"\xff\xd8\xff\xe0\xff\xff",
               b"\xff\xd8" * 100_000, (b"\xff\xd8\xff\xd9" * 100_000), b"", b"\xff\xd8"]
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.sample(range(len(content)), 8):
            damaged[place] = random.choice((0, 255, random.randrange(256)))
        hostile.append(bytes(damaged[: random.randrange(len(damaged))]))
    for each in hostile:
        segments, end = walk_jpeg(each)
        assert end <= max(2, len(each)) and sum(len(part.content) for part in segments) <= len(each)
        read_parts(each)
        assert all(part.start < part.end <= len(each) for part in parts_of(each))


@pytest.mark.parametrize("packet", [HDR[:200], HDR.replace(b"</rdf:Seq>", b""), HDR.decode().encode("utf-16"),
                                    b'<!DOCTYPE a [<!ENTITY b "c">]>' + HDR, b"<a>" * 9999 + HDR])
def test_xmp_that_cannot_be_mended_is_left_out(packet):
    assert without_claims(packet) in (b"", packet)


def test_long_runs_of_spaces_in_xmp_take_no_quadratic_time():
    spaces = b" " * 1_000_000
    packet = (HDR % (1, 2, 3)).replace(b' h:Version="1.0"', spaces + b'h:Version' + spaces + b'="1.0"' + spaces)
    left = without_claims(packet)
    assert b"h:Version" not in left and b'xmp:Rating="4"' in left


def test_only_claims_are_cut_out_of_xmp():
    others = (b'xmp:Rating="4"', b'G:BurstID="a > b"', b"xmp:Label='h:Version=\"1\"'")
    packet = (HDR % (1, 2, 3)).replace(others[0], b" ".join(others))
    packet = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>' + packet + b"  \n<?xpacket end='w'?>\0\0"
    left = without_claims(packet)
    for words in (*others, b"<?xpacket begin", b"end='w'"):
        assert words in left
    assert left.count(b"h:Version") == 1 and b"Directory" not in left and b"Motion" not in left
    without_map = without_claims(packet, keep_video=True)
    assert b"GainMap" not in without_map and b'I:Semantic="MotionPhoto"' in without_map and b"Primary" in without_map
