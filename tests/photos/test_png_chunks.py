"""Chunks of PNG, WebP and BMP files, and boxes of others: each kept, or named."""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from matrix import chunk, decoded, drawn, encoded, exif, png, profile, xmp
from messages import says
from PIL import Image

from srcnn.photos import boxes, webp_chunks
from srcnn.photos.metadata import metadata_of
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.png_chunks import read_chunks
from srcnn.photos.reading import PhotoRefused

RECORD = b"\x1c\x02\x78\0\x05Haus1"
RESOURCES = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(RECORD)) + RECORD


def raw_profile(name: bytes, content: bytes) -> bytes:
    """As ImageMagick writes it."""
    text = b"\n%s\n%8d\n%s\n" % (name, len(content), content.hex().encode())
    return chunk(b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(text))


def restored(tmp_path: Path, content: bytes, suffix: str, name: str = "in.png") -> tuple[bytes, tuple[str, ...]]:
    """The file written, which a reader takes, and the notes of reading and writing."""
    (tmp_path / name).write_bytes(content)
    photo = read_photo_file(tmp_path / name)
    notes = write_photo_file(tmp_path / f"out{suffix}", photo)
    again = read_photo_file(tmp_path / f"out{suffix}")
    if suffix in (".png", ".tif"):
        np.testing.assert_array_equal(np.asarray(again.image), np.asarray(photo.image))
    return (tmp_path / f"out{suffix}").read_bytes(), (*photo.notes, *notes)


KEPT = {  # chunk, and the words for its loss; "" where that is no loss
    "cICP": (b"\x09\x10\0\1", "cICP"), "mDCV": (bytes(24), "mDCV"),
    "cLLI": (struct.pack(">II", 10**7, 4 * 10**6), "cLLI"),
    "gAMA": (struct.pack(">I", 55556), "gAMA"), "cHRM": (bytes(range(32)), "cHRM"), "sRGB": (b"\1", ""),
    "sPLT": (b"name\0\x08abcdef", "sPLT"), "tIME": (b"\x07\xe0\1\2\3\4\5", "tIME"), "oFFs": (bytes(9), "oFFs"),
    "sTER": (b"\0", "sTER"), "pHYs": (struct.pack(">IIB", 3, 2, 0), "pHYs"), "bKGD": (bytes(6), "bKGD"),
    "sBIT": (b"\5\6\5", "sBIT"), "tEXt": (b"Author\0someone", "Author"),
    "zTXt": (b"Title\0\0" + zlib.compress(b"t"), "Title"),
    "iTXt": (b"Description\0\0\0de\0\0Br\xc3\xbccke", "Description"), "prVt": (b"private", "prVt"),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", KEPT)
def test_every_chunk_is_kept_or_named(tmp_path, name, bits):
    body, word = KEPT[name]
    if bits == 16 and name == "bKGD":
        body = bytes(range(6))
    content = png(drawn(9, 17, 3, bits), bits, [chunk(name.encode(), body)])
    written, notes = restored(tmp_path, content, ".png")
    assert notes == () and chunk(name.encode(), body) in written
    assert written.index(name.encode()) < written.index(b"IDAT")
    for suffix in (".jpg", ".tif", ".webp", ".bmp"):
        _, notes = restored(tmp_path, content, suffix)
        assert says(notes, word) if word else not says(notes, "cannot hold")


def test_a_chunk_behind_the_pixels_stays_behind_them(tmp_path):
    late = chunk(b"tEXt", b"Comment\0late"), chunk(b"prVt", b"later")
    written, notes = restored(tmp_path, png(drawn(9, 17), after=late), ".png")
    assert notes == () and written.endswith(b"".join(late) + chunk(b"IEND", b""))
    assert says(restored(tmp_path, png(drawn(9, 17), after=late), ".jpg")[1], "Comment", "prVt")


@pytest.mark.parametrize(("before", "word"), [
    (chunk(b"caBX", b"jumb c2pa"), "C2PA"), (chunk(b"dSIG", b"signature"), "signature"),
    (chunk(b"prVT", b"unsafe to copy"), "prVT"), (chunk(b"puBL", b"unsafe"), "puBL"),
    (chunk(b"PLTE", bytes(12)), "palette"),
    (raw_profile(b"weird", b"content"), "weird"),
])
def test_what_does_not_fit_other_pixels_is_left_out_and_named(tmp_path, before, word):
    written, notes = restored(tmp_path, png(drawn(9, 17), before=[before]), ".png")
    assert len(notes) == 1 and says(notes, word) and before not in written


def test_of_any_number_of_chunks_the_last_is_kept():
    content = png(drawn(9, 17), after=[chunk(b"tEXt", b"a\0b")] * 100_000 + [chunk(b"prVt", b"last")])
    parts = read_chunks(content)
    assert len(parts.after) == 100_001 and parts.after[-1] == (b"prVt", b"last") and not parts.lost


def test_a_chunk_that_is_too_long_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr("srcnn.photos.png_chunks.MAX_CHUNK_BYTES", 9)
    parts = read_chunks(png(drawn(9, 17), before=[chunk(b"prVt", bytes(9)), chunk(b"loNg", bytes(10))]))
    assert parts.before == ((b"prVt", bytes(9)),) and says(parts.lost, "loNg")


def test_how_the_pixels_were_stored_is_no_metadata(tmp_path):
    parts = [chunk(b"iDOT", bytes(28)), chunk(b"acTL", struct.pack(">II", 1, 0))]
    written, notes = restored(tmp_path, png(drawn(9, 17), before=parts[:1]), ".png")
    assert notes == () and b"iDOT" not in written


def test_of_a_palette_its_own_chunks_are_named(tmp_path):
    stored, colours = np.zeros((9, 17), np.uint8), np.zeros((256, 3), np.uint8)
    content = png(stored, before=[chunk(b"sBIT", b"\5\5\5")], palette=colours)
    _, notes = restored(tmp_path, content, ".png")
    assert says(notes, "sBIT")


def test_profiles_in_texts_are_taken_as_what_they_are(tmp_path):
    before = [raw_profile(b"exif", exif(1)), raw_profile(b"iptc", RESOURCES), raw_profile(b"icm", profile()),
              raw_profile(b"xmp", xmp(1))]
    content = png(drawn(9, 17), before=before)
    written, notes = restored(tmp_path, content, ".jpg")
    assert notes == () and RECORD in written
    with Image.open(io.BytesIO(written)) as image:
        assert image.getexif()[0x010F] == "Maker" and image.info["icc_profile"] == profile()
        assert image.info["xmp"] == xmp(1)


def test_iptc_goes_from_a_jpeg_through_a_png_into_a_tiff(tmp_path):
    body = b"Photoshop 3.0\0" + RESOURCES
    small = encoded(drawn(9, 17), "JPEG")
    content = small[:2] + struct.pack(">BBH", 0xFF, 0xED, 2 + len(body)) + body + small[2:]
    through, notes = restored(tmp_path, content, ".png", "in.jpg")
    assert notes == ()
    written, notes = restored(tmp_path, through, ".tif")
    assert notes == () and RESOURCES in written and written.count(RECORD) == 2
    if shutil.which("exiftool"):
        for suffix in (".png", ".tif"):
            command = ["exiftool", "-s3", "-IPTC:Caption-Abstract", str(tmp_path / f"out{suffix}")]
            assert subprocess.run(command, capture_output=True, timeout=100).stdout.strip() == b"Haus1"


def test_pngcheck_finds_no_fault(tmp_path):
    if not shutil.which("pngcheck"):
        pytest.skip("no pngcheck on this machine")
    known = [chunk(name.encode(), body) for name, (body, _) in KEPT.items()
             if name not in ("cICP", "mDCV", "cLLI", "sTER", "prVt", "cHRM", "sBIT", "bKGD")]
    content = png(drawn(9, 17, 4), before=[*known, chunk(b"bKGD", bytes(6)), *[chunk(b"eXIf", exif(1)[6:])]])
    restored(tmp_path, content, ".png")
    checked = subprocess.run(["pngcheck", str(tmp_path / "out.png")], capture_output=True, timeout=100)
    assert checked.returncode == 0 and checked.stdout.startswith(b"OK"), checked.stdout


def test_bytes_behind_a_png_are_named(tmp_path):
    written, notes = restored(tmp_path, png(drawn(9, 17)) + b"a video", ".png")
    assert says(notes, "behind") and written.endswith(chunk(b"IEND", b""))


@pytest.mark.parametrize("options", [{}, {"exif": exif(1)}, {"lossless": True}, {"lossless": True, "alpha": True}])
def test_a_chunk_of_webp_is_kept_or_named(tmp_path, options):
    options = dict(options)
    stored = drawn(9, 17, 4 if options.pop("alpha", False) else 3)
    small = encoded(stored, "WEBP", **options)
    file = io.BytesIO(small)
    alpha = stored.shape[2] == 4
    webp_chunks.append_chunks(file, ((b"ABCD", b"odd"), (b"C2PA", b"jumb")), 17, 9, alpha)
    content = file.getvalue()
    np.testing.assert_array_equal(decoded(content), decoded(small))
    written, notes = restored(tmp_path, content + b"behind", ".webp", "in.webp")
    assert says(notes, "C2PA", "behind") and b"C2PA" not in written
    assert webp_chunks.read_chunks(written) == (((b"ABCD", b"odd"),), ())
    assert says(restored(tmp_path, content, ".png", "in.webp")[1], "ABCD")
    if shutil.which("webpinfo"):
        checked = subprocess.run(["webpinfo", str(tmp_path / "out.webp")], capture_output=True, timeout=100)
        assert checked.returncode == 0 and b"No error detected" in checked.stdout, checked.stdout


def test_of_too_many_chunks_of_webp_the_rest_is_named():
    content = encoded(drawn(9, 17), "WEBP")
    num_before = sum(1 for _ in webp_chunks.walk_chunks(content, len(content)))
    for num_more, has_more in ((webp_chunks.MAX_CHUNKS - num_before, False), (webp_chunks.MAX_CHUNKS, True)):
        body = content[8:] + (b"ABCD" + struct.pack("<I", 1) + b"x\0") * num_more
        chunks, lost = webp_chunks.read_chunks(b"RIFF" + struct.pack("<I", len(body)) + body)
        assert bool(lost) == has_more and len(chunks) == webp_chunks.MAX_CHUNKS - num_before


def bmp(space: bytes, profile_bytes: bytes = b"") -> bytes:
    """A BMP of 8x2 pixels with the header of version 5."""
    pixels = bytes(range(48))
    header = struct.pack("<IiiHHIIiiII", 124, 8, 2, 1, 24, 0, len(pixels), 2835, 2835, 0, 0) + bytes(16) + space
    header += bytes(range(48)) + struct.pack("<IIII", 4, 124 + len(pixels), len(profile_bytes), 0)
    total = 14 + 124 + len(pixels) + len(profile_bytes)
    return b"BM" + struct.pack("<IHHI", total, 0, 0, 14 + 124) + header + pixels + profile_bytes


def test_the_colours_of_a_bmp_are_kept_or_named(tmp_path):
    _, notes = restored(tmp_path, bmp(b"DEBM", profile()), ".png", "in.bmp")
    with Image.open(tmp_path / "out.png") as image:
        assert notes == () and image.info["icc_profile"] == profile()
    for space, word in ((b"\0\0\0\0", "gamma"), (b"KNIL", "profile")):
        assert says(restored(tmp_path, bmp(space), ".png", "in.bmp")[1], word)
    assert says(restored(tmp_path, bmp(b"DEBM", profile())[:-9], ".png", "in.bmp")[1], "profile")
    assert restored(tmp_path, bmp(b"BGRs"), ".png", "in.bmp")[1] == ()


C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


@pytest.mark.parametrize(("behind", "word"), [
    (box(b"mpvd", b"video"), "video"), (box(b"uuid", C2PA + b"c"), "C2PA"), (box(b"jumb", b"c"), "C2PA"),
    (box(b"odds", b"c"), "odds"), (box(b"uuid", bytes(16)), "00000000"), (b"\0\0\0\1mdat", "behind"),
    (b"\0\0\1\0mdat", "behind"), (box(b"free", b""), ""), (b"\0\0\0\0mdat123", ""),
    (struct.pack(">I4sQ", 1, b"odds", 17) + b"a", "odds"),
])
def test_what_else_is_in_a_file_of_boxes_is_named(behind, word):
    content = encoded(drawn(16, 16), "AVIF", exif=exif(1), xmp=xmp(1))
    assert boxes.lost_names(content, True, True) == () and boxes.lost_names(content, False, False) == ("EXIF", "XMP")
    names = boxes.lost_names(content + behind, True, True)
    assert len(names) == bool(word) and says(names, word)


def test_the_colour_space_of_an_avif_is_told_by_the_png():
    content = encoded(drawn(16, 16), "AVIF")
    place = content.index(b"colrnclx") + 8
    for space, chunks in ((b"\0\1\0\x0d", ()), (b"\0\x09\0\x10", ((b"cICP", b"\x09\x10\0\1"),))):
        changed = content[:place] + space + content[place + 4 :]
        with Image.open(io.BytesIO(changed)) as image:
            metadata, lost = metadata_of(image, changed)
            assert metadata.png_chunks == chunks and lost == ()


def test_walks_over_damaged_chunks_end_and_never_refuse_the_pixels(tmp_path):
    random.seed(2)
    whole = png(drawn(9, 17), before=[chunk(name.encode(), body) for name, (body, _) in KEPT.items()])
    webp = encoded(drawn(9, 17), "WEBP", exif=exif(1), xmp=xmp(1))
    for content, read in ((whole, read_chunks), (webp, webp_chunks.read_chunks)):
        for _ in range(300):
            damaged = bytearray(content)
            for place in random.sample(range(30, len(content)), 6):
                damaged[place] = random.choice((0, 255, random.randrange(256)))
            read(bytes(damaged[: random.randrange(33, len(damaged))]))
    (tmp_path / "a.png").write_bytes(png(drawn(9, 17), after=[chunk(b"prVt", b"")])[:-12] + b"\x7f\xff\xff\xffprVt")
    try:
        assert says(read_photo_file(tmp_path / "a.png").notes, "damaged")
    except PhotoRefused as error:  # Pillow's own walk
        assert says(error, "a.png")


def test_imagecodecs_reads_every_png_that_is_written(tmp_path):
    """By libpng, which is strict about the order of chunks."""
    for bits in (8, 16):
        before = [chunk(name.encode(), body) for name, (body, _) in KEPT.items() if name not in ("cHRM", "bKGD")]
        written, _ = restored(tmp_path, png(drawn(9, 17, 3, bits), bits, before), ".png")
        np.testing.assert_array_equal(imagecodecs.png_decode(written), drawn(9, 17, 3, bits))
