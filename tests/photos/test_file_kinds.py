"""A file that is not read is called what it is, whatever its name."""

import sys

import numpy as np
import pytest
from conftest import photo_pixels
from messages import facts, says
from PIL import Image

from srcnn.__main__ import main
from srcnn.commands.output_paths import output_paths
from srcnn.photos.file_kinds import unread_kind
from srcnn.photos.reading import PhotoRefused, read_photo

PIXELS = np.ascontiguousarray(photo_pixels(1, 32, 24))
HEADS = {
    "PSD": b"8BPS\0\1", "GIF": b"GIF89a",
    "RAW": b"II*\0\x10\0\0\0CR\2\0", "OpenEXR": b"v/1\1", "PNM": b"P6\n3 4 255\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_an_image_of_another_kind_is_named_by_its_first_bytes(tmp_path, name):
    for path in (tmp_path / "photo.jpg", tmp_path / "photo.unknown"):
        path.write_bytes(HEADS[name] + bytes(300))
        assert says(unread_kind(path), name)
        with pytest.raises(PhotoRefused, match=facts(path, name)):
            read_photo(path)


READ_HEADS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "AVIF": b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf",
    "JPEG XL": b"\xff\x0a\x12\x34", "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
}


@pytest.mark.parametrize("name", READ_HEADS)
def test_a_damaged_image_of_a_kind_that_is_read_is_named_where_it_is_refused(tmp_path, name):
    path = tmp_path / "photo.jpg"
    path.write_bytes(READ_HEADS[name] + bytes(300))
    with pytest.raises(PhotoRefused, match=facts(path, name)):
        read_photo(path)


@pytest.mark.parametrize("name", READ_HEADS)
def test_what_this_installation_lacks_is_said_with_the_cure(tmp_path, name, monkeypatch):
    path = tmp_path / "photo.dat"
    path.write_bytes(READ_HEADS[name] + bytes(300))
    monkeypatch.setattr("srcnn.photos.file_kinds.pillow_formats", lambda: frozenset(("JPEG", "PNG")))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    if name != "JPEG XL":  # which imagecodecs reads
        assert says(unread_kind(path), name, "pip install")
        with pytest.raises(PhotoRefused, match=facts(path, name, "pip install")):
            read_photo(path)


@pytest.mark.parametrize("kind", ["GIF", "ICO", "DDS", "PPM"])
def test_files_that_pillow_writes_are_recognized(tmp_path, kind):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", kind)
    assert unread_kind(tmp_path / "a.jpg")


@pytest.mark.parametrize("content,told", [(b"\0\0\0\x14ftypisom", "video"), (b"PK\3\4", "ZIP"), (b"%PDF-1.7", "PDF"),
                                          (b"<!DOCTYPE html>", "web page"), (b"", "empty")])
def test_other_files_are_said_when_named_as_a_photo_and_no_images(tmp_path, content, told):
    (tmp_path / "a.jpg").write_bytes(content)
    assert unread_kind(tmp_path / "a.jpg") == ""
    with pytest.raises(PhotoRefused, match=facts(tmp_path / "a.jpg", told)):
        read_photo(tmp_path / "a.jpg")


def test_unread_variants_of_formats_that_are_read_are_said(tmp_path):
    imagecodecs, tifffile = pytest.importorskip("imagecodecs"), pytest.importorskip("tifffile")
    twelve = imagecodecs.jpeg_encode(PIXELS.astype(np.uint16) * 16, level=40, bitspersample=12)
    (tmp_path / "twelve.jpg").write_bytes(twelve)
    for big in (False, True):
        tifffile.imwrite(tmp_path / f"float-{big}.tif", PIXELS.astype(np.float32), photometric="rgb", bigtiff=big)
    tifffile.imwrite(tmp_path / "wide.tif", PIXELS.astype(np.uint32), photometric="rgb")
    tifffile.imwrite(tmp_path / "jp2.tif", PIXELS, photometric="rgb", compression="jpeg2000")
    for name, told in (("twelve.jpg", ("JPEG", 12)), ("float-False.tif", ("TIFF", "floating-point")),
                       ("float-True.tif", ("TIFF", "floating-point")), ("wide.tif", ("TIFF", 32)),
                       ("jp2.tif", ("TIFF", "JPEG 2000"))):
        with pytest.raises(PhotoRefused, match=facts(tmp_path / name, *told)):
            read_photo(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_photos_that_are_read_are_not_called_unread(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    assert unread_kind(tmp_path / f"a.{suffix}") == ""


def test_images_of_other_kinds_in_a_folder_are_named_and_other_files_counted(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "in" / "good.jpg", quality=20)
    (tmp_path / "in" / "old.gif").write_bytes(HEADS["GIF"])
    (tmp_path / "in" / "camera.NEF").write_bytes(b"MM\0*")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "list.txt").write_text("P1 12 points: no image either")
    (tmp_path / "in" / "film.mp4").write_bytes(b"\0\0\0\x14ftypisom")
    Image.fromarray(PIXELS).save(tmp_path / "in" / "scan.tga")
    Image.fromarray(PIXELS).save(tmp_path / "in" / "named.gif", "JPEG")
    for sources in ([tmp_path / "in"], [str(tmp_path / "in" / "*")]):
        targets, errors, num_others = output_paths(sources, tmp_path / "out")
        assert [path.name for path in targets] == ["good.jpg"] and len(errors) == 3
        assert says(errors[0], "camera.NEF", "RAW") and says(errors[1], "old.gif", "GIF")
        assert says(errors[2], "scan.tga", "TGA")
        assert num_others == (4 if sources == [tmp_path / "in"] else 0)
    assert main(["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    assert says(capsys.readouterr().err, "old.gif", "GIF", "camera.NEF", "RAW")
    assert main(["restore", str(tmp_path / "in" / "camera.NEF"), "-o", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.jpg"]


SEGMENTS = [b"", b"\xff\xe0\0\0", 9 * b"\xff\xe0\0\1", 30_000 * b"\xff\xe0\0\2"]


@pytest.mark.parametrize("segments", SEGMENTS, ids=["none", "of 0 bytes", "of 1 byte", "very many"])
def test_a_jpeg_whose_segments_lead_nowhere_ends_the_search(tmp_path, segments):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8" + segments)
    assert unread_kind(path) == ""
