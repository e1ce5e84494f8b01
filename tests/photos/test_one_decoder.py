"""Photos to restore, photos for shards and members of shards are decoded alike; what is left out of a file is said."""

import io
import struct

import numpy as np
import pytest
from conftest import photo_pixels
from matrix import Made, chunk, drawn, exif, keyed_made, lossy_made, palette_made, png_made, tiff_made
from matrix_cases import CASES, REFUSED
from messages import facts, says
from PIL import Image

from shards.decode import read_original
from srcnn.data.manifest import decode_picture
from srcnn.photos.photo_file import read_photo_file
from srcnn.photos.reading import PhotoRefused, Resize, eight_bit_image, over_white, read_photo

tifffile = pytest.importorskip("tifffile")
PIXELS = photo_pixels(1, 53, 37)


def bmp(pixels, alpha):
    """A BMP with masks for all four channels, as Photoshop writes it."""
    height, width = pixels.shape[:2]
    stored = np.dstack([pixels[::-1, :, ::-1], alpha[::-1]])
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, stored.nbytes, 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    header += struct.pack("<IIII", 4, 0, 0, 0)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + stored.nbytes, 0, 0, start) + header + stored.tobytes()


def read_everywhere(path):
    """The photo over white as each of the ways reads it."""
    photo = read_photo_file(path)
    ways = [np.asarray(over_white(eight_bit_image(photo.image))), read_photo(path)]
    return photo, ways + [read_original(path, Resize.parse("none"), decode, 250)[0] for decode in ("exact", "reduced")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_way_reads_the_same(tmp_path, case):
    path = tmp_path / case.name
    path.write_bytes(case.make().content)
    _, ways = read_everywhere(path)
    assert all(np.array_equal(ways[0], other) for other in ways[1:])


@pytest.mark.parametrize("name", [name for name in REFUSED if name.endswith("tif")])
def test_every_way_refuses_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name]())
    said = set()
    for read in (read_photo_file, read_photo, lambda it: read_original(it, Resize.parse("none"), "exact", 250)):
        with pytest.raises(PhotoRefused, match=facts(name)) as caught:
            read(tmp_path / name)
        said.add(str(caught.value))
    assert len(said) == 1


CLEAR = np.zeros((37, 53), np.uint8)
HIDDEN = {
    "a.bmp": lambda: bmp(PIXELS, CLEAR), "black.bmp": lambda: bmp(PIXELS * 0, CLEAR),
    "rgba.png": lambda: png_made(np.dstack([PIXELS, CLEAR])).content,
    "la.png": lambda: png_made(np.dstack([PIXELS[..., 0], CLEAR])).content,
    "16.png": lambda: png_made(np.dstack([PIXELS.astype(np.uint16) * 257, CLEAR]), 16).content,
    "rgba.tif": lambda: tiff_made(np.dstack([PIXELS, CLEAR]), extrasamples=["unassalpha"]).content,
    "palette.png": lambda: palette_made(37, 53, 4, bytes(16)).content}


@pytest.mark.parametrize("name", HIDDEN)
def test_an_alpha_of_0_everywhere_hides_no_picture(tmp_path, name):
    (tmp_path / name).write_bytes(HIDDEN[name]())
    photo, ways = read_everywhere(tmp_path / name)
    assert not photo.has_alpha and says(photo.notes, "alpha")
    if name not in ("palette.png", "black.bmp"):
        expected = PIXELS[..., 0] if name == "la.png" else PIXELS
        assert all(np.array_equal(way, expected) for way in ways)
    if name in ("rgba.png", "la.png"):
        np.testing.assert_array_equal(decode_picture(HIDDEN[name](), 3)[..., 0], ways[0].reshape(37, 53, -1)[..., 0])


def test_a_little_alpha_is_transparency_and_so_is_a_file_with_nothing_in_it(tmp_path):
    seen = CLEAR.copy()
    seen[3, 4] = 1
    (tmp_path / "a.bmp").write_bytes(bmp(PIXELS, seen))
    Image.new("RGBA", (9, 7)).save(tmp_path / "empty.png")
    for name in ("a.bmp", "empty.png"):
        assert read_photo_file(tmp_path / name).has_alpha and not read_photo_file(tmp_path / name).notes


def member(made, channels=3):
    return decode_picture(made.content if isinstance(made, Made) else made, channels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_members_of_shards_are_turned_upright(orientation):
    made = lossy_made("JPEG", drawn(33, 18), orientation, exif=exif(orientation))
    np.testing.assert_array_equal(member(made), made.pixels)
    webp = lossy_made("WEBP", drawn(17, 33), orientation, exif=exif(orientation), lossless=True)
    np.testing.assert_array_equal(member(webp), webp.pixels)
    late = png_made(drawn(17, 7), orientation=orientation, after=[chunk(b"eXIf", exif(orientation)[6:])])
    np.testing.assert_array_equal(member(late), late.pixels)


def test_members_are_what_photos_of_the_same_bytes_are(tmp_path):
    for made in (keyed_made(drawn(9, 33, 1)), keyed_made(drawn(17, 9)), lossy_made("JPEG", drawn(65, 63), quality=20)):
        (tmp_path / "a").write_bytes(made.content)
        expected = read_photo(tmp_path / "a")
        np.testing.assert_array_equal(member(made, 1 if expected.ndim == 2 else 3), expected)


def test_a_member_of_several_frames_or_without_a_byte_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "WEBP", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    with pytest.raises(ValueError, match=facts("frames")):
        member(buffer.getvalue())
    with pytest.raises(ValueError, match=facts(0, "bytes")):
        member(b"")
    for content in (b"no picture", buffer.getvalue()[:99], png_made(PIXELS).content[:60]):
        with pytest.raises(ValueError) as caught:
            member(content)
        assert "_io." not in str(caught.value) and "0x" not in str(caught.value)


def tiff(*pages, big=False):
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big) as writer:
        for pixels, options in pages:
            writer.write(pixels, metadata=None, **({"photometric": "rgb"} | options))
    return file.getvalue()


def test_the_page_that_is_decoded_is_the_one_that_is_checked(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((PIXELS[::9, ::9], {"subfiletype": 1}), (PIXELS, {})))
    assert read_photo(tmp_path / "a.tif", 0.002).shape == PIXELS.shape
    with pytest.raises(PhotoRefused, match=facts("a.tif", "53x37")):
        read_photo(tmp_path / "a.tif", 0.001)


PAGE, SMALL = (PIXELS, {}), (PIXELS[::4, ::4], {"subfiletype": 1})
MASK = (PIXELS[..., 0] > 99, {"subfiletype": 4, "photometric": "minisblack"})
ODD = (PIXELS[..., 0].astype(np.float64), {"subfiletype": 1, "photometric": "minisblack"})


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("others", [([], [SMALL]), ([SMALL], []), ([SMALL], [MASK, SMALL]), ([], [ODD])],
                         ids=["after", "before", "around", "unread"])
@pytest.mark.parametrize("bits", [8, 16])
def test_reduced_copies_and_masks_in_a_tiff_are_left_out_with_a_note(tmp_path, others, big, bits):
    pixels = PIXELS if bits == 8 else PIXELS.astype(np.uint16) * 257
    before, after = others
    (tmp_path / "a.tif").write_bytes(tiff(*before, (pixels, {}), *after, big=big))
    photo, ways = read_everywhere(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo.read_all((slice(0, 37), slice(0, 53))), pixels)
    assert all(np.array_equal(way, PIXELS) for way in ways) and says(photo.notes, "TIFF", "left out")


@pytest.mark.parametrize("pages", [[PAGE] * 2, [(PIXELS, {"subfiletype": 2})] * 2, [PAGE, SMALL, PAGE]],
                         ids=["plain", "of a document", "with a copy"])
def test_two_pages_are_refused(tmp_path, pages):
    (tmp_path / "a.tif").write_bytes(tiff(*pages))
    with pytest.raises(PhotoRefused, match=facts("a.tif", "frames")):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("extra,num_left", [((0, 0), 2), ((0,), 1), ((2, 0), 1)])
def test_further_bands_are_left_out_with_a_note(tmp_path, extra, num_left):
    bands = np.dstack([PIXELS, *(PIXELS[..., :1] | 1 for _ in extra)])
    (tmp_path / "a.tif").write_bytes(tiff((bands, {"extrasamples": extra})))
    photo = read_photo_file(tmp_path / "a.tif")
    assert photo.num_channels == 3 + (extra[0] == 2) and says(photo.notes, "bands", num_left)
    np.testing.assert_array_equal(np.asarray(photo.image)[..., :3], PIXELS)


def test_fewer_bits_are_noted_and_more_are_kept(tmp_path):
    inks = drawn(9, 17, 4).astype(np.uint16) * 257
    (tmp_path / "cmyk.tif").write_bytes(tiff((inks, {"photometric": "separated"})))
    assert says(read_photo_file(tmp_path / "cmyk.tif").notes, 16, 8, "CMYK")
    levels = drawn(9, 17, 1, 12)
    (tmp_path / "twelve.tif").write_bytes(tiff((levels, {"photometric": "minisblack", "bitspersample": 12})))
    photo, ways = read_everywhere(tmp_path / "twelve.tif")
    np.testing.assert_array_equal(photo.image, np.rint(levels * (65535 / 4095)))
    assert np.abs(ways[1] - levels / 4095 * 255).max() < 1


@pytest.mark.parametrize("bands,bits", [(5, 16), (7, 8)])
def test_a_tiff_that_no_decoder_reads_is_called_what_it_is(tmp_path, bands, bits):
    levels = np.zeros((9, 7, bands), np.uint16 if bits == 16 else np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff((levels, {"extrasamples": (0,) * (bands - 3)})))
    with pytest.raises(PhotoRefused, match=facts("a.tif", "TIFF", bands)):
        read_photo(tmp_path / "a.tif")
