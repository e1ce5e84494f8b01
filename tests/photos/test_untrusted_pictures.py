"""Pictures, npy files and photos of strangers: refused by their headers, whatever their decoders would do."""

import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from messages import facts
from PIL import Image, PngImagePlugin
from small import draw_photo

from srcnn.commands.output_paths import output_paths
from srcnn.data.manifest import decode_picture, decode_tile
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.photos.metadata import Metadata
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import PhotoRefused, open_image, read_photo
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile, work_on_files
from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import MAX_JPEG_SCANS, InvalidInput


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *more, content=b""):
    """A PNG that says it has so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


BOMBS = {"png": png(50_000, 50_000, content=bytes(10**6)), "thin png": png(2**31 - 1, 1), "long png": png(1, 2**25),
         "larger": png(33, 32)}
NUM_PIXELS = {"png": 50_000**2, "thin png": 2**31 - 1, "long png": 2**25, "larger": (33, 32)}  # in what is said of them


@pytest.mark.parametrize("kind", BOMBS)
def test_a_tile_of_another_size_is_refused_before_it_is_decoded(kind):
    with pytest.raises(ValueError, match=facts(NUM_PIXELS[kind])):
        decode_tile(BOMBS[kind], "png", (32, 32))


def test_a_cut_png_of_255_bits_a_channel_takes_no_memory():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6144, 4104, 255, 0, 0, 0, 0))
    tracemalloc.start()
    with pytest.raises(ValueError):
        decode_picture(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")), 1)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["png", "thin png", "long png"])
def test_a_picture_of_a_stranger_has_a_largest_size(kind):
    with pytest.raises(ValueError, match=facts(NUM_PIXELS[kind])):
        decode_picture(BOMBS[kind], 1)


def npy(text, content=b"", version=b"\x01\x00"):
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + content


HEADERS = {
    "pickle": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04N."),
    "huge": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 999999999), }", b"xx"),
    "negative": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2), }", b"xx"),
    "wraps to nothing": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"),
    "code": npy("__import__('os').mkdir('made')", b"xx"),
    "records": npy("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1, 2), }", b"xx"),
    "no shape": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", b"x"),
    "empty": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 9), }"),
    "length lies": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "version 2": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2), }", b"xx", b"\x02\x00"),
    "complex": npy("{'descr': '<c16', 'fortran_order': False, 'shape': (1, 1), }", bytes(16)),
    "cut": b"\x93NUMPY\x01",
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_an_npy_file_that_is_no_picture_is_refused_by_its_header(kind):
    for read in (lambda it: decode_tile(it, "npy", (1, 2)), lambda it: decode_picture(it, 1)):
        with pytest.raises(ValueError) as caught:
            read(HEADERS[kind])
        assert type(caught.value) is (UserError if kind in ("no shape", "empty") else InvalidInput), "not NumPy's"


def test_an_array_in_fortran_order_is_what_numpy_reads():
    array = np.asfortranarray(draw_photo(1, 9, 7)[..., 0])
    buffer = io.BytesIO()
    np.save(buffer, array)
    np.testing.assert_array_equal(decode_picture(buffer.getvalue(), 1), array)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(made) (w) file closefile\nshowpage\n"
PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"


@pytest.mark.parametrize("content", [POSTSCRIPT, PDF, b"GIF89a" + bytes(99), b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
                                     b"\xd7\xcd\xc6\x9a" + bytes(99), b"<svg/>", b"P6 99999 99999 255\n", b"8BPS\0\1"])
def test_formats_that_no_photo_has_are_refused_and_start_nothing(tmp_path, content, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("something was started"))
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PhotoRefused, match="a.jpg"):
        read_photo(tmp_path / "a.jpg")
    with pytest.raises(ValueError):
        decode_picture(content, 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg", "bmp"])
def test_a_bomb_is_refused_by_its_header_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "webp":
        size = struct.pack("<I", 16_382 | 16_382 << 14 | 1 << 28 & 0)
        body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + size + b"\0"
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
    else:
        Image.new("L", (64, 48)).save(path)
        content, sizes = path.read_bytes(), {"png": (64, 48, ">II"), "jpg": (48, 64, ">HH"), "bmp": (64, 48, "<II")}
        if suffix == "tif":
            content = content.replace(struct.pack("<HHIHH", 256, 4, 1, 64, 0), struct.pack("<HHII", 256, 4, 1, 40_000))
            content = content.replace(struct.pack("<HHIHH", 257, 4, 1, 48, 0), struct.pack("<HHII", 257, 4, 1, 40_000))
        else:
            width, height, layout = sizes[suffix]
            content = content.replace(struct.pack(layout, width, height), struct.pack(layout, 40_000, 40_000), 1)
            if suffix == "png":
                content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
        path.write_bytes(content)
    with pytest.raises(PhotoRefused, match=facts(path, 250)):
        read_photo(path)


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path):
    packed = zlib.compress(bytes(80 << 20), 9)
    for number_, more in enumerate((chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed),
                                    chunk(b"iTXt", b"a\0\1\0\0\0" + packed))):
        path = tmp_path / f"{number_}.png"
        path.write_bytes(png(16, 16, more, content=bytes(17 * 16)))
        try:
            assert len(str(read_photo_file(path).metadata)) < PngImagePlugin.MAX_TEXT_MEMORY
        except PhotoRefused as error:
            assert path.name in str(error)


def progressive(num_scans):
    """A JPEG whose last scan comes again and again: each goes over all pixels."""
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(1, 64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * num_scans + b"\xff\xd9"


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    (tmp_path / "many.jpg").write_bytes(progressive(MAX_JPEG_SCANS + 1))
    (tmp_path / "few.jpg").write_bytes(progressive(1))
    with pytest.raises(PhotoRefused, match=facts("many.jpg", MAX_JPEG_SCANS)):
        read_photo(tmp_path / "many.jpg")
    with pytest.raises(ValueError, match=facts(MAX_JPEG_SCANS)):
        decode_picture(progressive(MAX_JPEG_SCANS + 1), 3)
    assert read_photo(tmp_path / "few.jpg").shape == decode_picture(progressive(1), 3).shape


def test_files_that_are_no_files_are_refused_and_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    model = SRCNN(ModelConfig(filters=(2, 2)))
    for name in ("pipe.png", "endless.png", "folder.png"):
        with pytest.raises(PhotoRefused, match=facts(tmp_path / name)):
            read_photo(tmp_path / name)
        if name != "folder.png":
            targets = output_paths(tmp_path / name, tmp_path / "out").targets
            (outcome,) = work_on_files(targets, RestoreFile(JpegRestorer(model)))
            assert str(tmp_path / name) in outcome.error
    Image.fromarray(draw_photo(1, 20, 30)).save(tmp_path / "real.png")
    targets = output_paths(tmp_path, tmp_path / "out").targets
    assert [outcome.target.name for outcome in work_on_files(targets, RestoreFile(JpegRestorer(model)))] == ["real.png"]


def test_a_photo_of_gigabytes_is_refused_unread(tmp_path):
    with (tmp_path / "a.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(3 << 30)
    with pytest.raises(PhotoRefused, match=facts("a.webp", 3 << 30)):
        read_photo(tmp_path / "a.webp")


def test_a_tiff_of_endless_pages_is_refused_at_the_second(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    first = int.from_bytes(content[4:8], "little")
    place = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    page, start = content[first:place], len(content)
    num_pages = 200_000  # to look through all of them takes Pillow a time that grows with the square
    pages = b"".join(page + struct.pack("<I", start + (number + 1) * (len(page) + 4)) for number in range(num_pages))
    whole = content[:place] + struct.pack("<I", start) + content[place + 4 :] + pages
    (tmp_path / "a.tif").write_bytes(whole)
    with pytest.raises(PhotoRefused, match=facts("a.tif", "frames")):
        read_photo(tmp_path / "a.tif")


def test_pillows_limit_comes_back_when_photos_are_open_at_once(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    first, second = open_image(tmp_path / "a.png"), open_image(tmp_path / "a.png")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == before


ODD_METADATA = [Metadata(dpi=(1e30, 1e30)), Metadata(exif=b"x" * 10), Metadata(exif=b"\0" * 70_000),
                Metadata(icc_profile=b"x"), Metadata(xmp=b"\xff\0" * 9), Metadata(png_chunks=((b"gAMA", b""),))]


@pytest.mark.parametrize("metadata", ODD_METADATA, ids=str)
def test_odd_metadata_is_refused_or_left_out_but_never_an_error_without_a_name(tmp_path, metadata):
    Image.new("L", (8, 8)).save(tmp_path / "a.webp")
    canvas = replace(read_photo_file(tmp_path / "a.webp"), metadata=metadata)
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp"):
        try:
            write_photo_file(tmp_path / f"out{suffix}", canvas)
        except ValueError as error:
            assert f"out{suffix}" in str(error)
