"""JPEGs and PNGs whose end is missing: whole pictures are decoded, cut ones refused, or decoded as far as they go."""

import io

import numpy as np
import pytest
from conftest import photo_pixels
from messages import facts, says
from PIL import Image, ImageFile

from shards.decode import read_original
from srcnn.__main__ import main
from srcnn.data.manifest import decode_picture
from srcnn.photos.photo_file import read_photo_file
from srcnn.photos.reading import PhotoRefused, Resize, read_photo

PIXELS = photo_pixels(1, 99, 77)


def jpeg(**options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", **({"quality": 40} | options))
    return buffer.getvalue()


def png(**options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", **options)
    return buffer.getvalue()


KINDS = {"baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1},
         "arithmetic or not": {"optimize": True}, "fine": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [b"", b"\xff", bytes(4000)], ids=["nothing", "half a marker", "zeros"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(tmp_path, kind, rest):
    content, path = jpeg(**KINDS[kind]), tmp_path / "a.jpg"
    path.write_bytes(content[:-2] + rest)
    whole = np.asarray(Image.open(io.BytesIO(content)))
    photo = read_photo_file(path)
    np.testing.assert_array_equal(np.asarray(photo.image), whole)
    assert len(photo.notes) == 1 and says(photo.notes, "end marker") and photo.is_completed and photo.jpeg
    np.testing.assert_array_equal(read_photo(path), whole)
    np.testing.assert_array_equal(decode_picture(path.read_bytes(), 3), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [b"", bytes(8000)], ids=["cut", "padded with zeros"])
def test_a_cut_jpeg_is_refused_with_what_is_there_or_restored_so_far(tmp_path, kind, rest):
    content, path = jpeg(**KINDS[kind]), tmp_path / "a.jpg"
    start = content.rindex(b"\xff\xda") if kind == "progressive" else content.index(b"\xff\xda")
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(content[: start + int(share * (len(content) - start))] + rest)
        for read in (read_photo, read_photo_file, lambda it: decode_picture(it.read_bytes(), 1)):
            with pytest.raises(ValueError, match=facts("--allow-truncated", "%")):
                read(path)
        photo = read_photo_file(path, allow_truncated=True)
        whole, found = np.asarray(Image.open(io.BytesIO(content))), np.asarray(photo.image)
        assert found.shape == whole.shape and len(photo.notes) == 1 and says(photo.notes, "cut off", "%")
        if kind != "progressive":
            num_rows = int(next(word for word in photo.notes[0].split() if word.isdigit())) * 77 // 100
            assert num_rows > (share - 0.4) * 77
            np.testing.assert_array_equal(found[: num_rows - 1], whole[: num_rows - 1])
            assert np.abs(found[-1, -1].astype(int) - 128).max() <= 4, "grey"


def test_the_last_byte_of_the_pixels_counts():
    """A cut in the last bits is found, or does not show."""
    content, num_found = jpeg(quality=95), 0
    whole = np.asarray(Image.open(io.BytesIO(content)))
    for cut in range(3, 40):
        try:
            np.testing.assert_array_equal(decode_picture(content[:-cut], 3), whole)
        except PhotoRefused:
            num_found += 1
    assert num_found >= 34


def test_a_progressive_jpeg_that_lacks_whole_scans_is_cut_off(tmp_path):
    content = jpeg(progressive=True)
    (tmp_path / "a.jpg").write_bytes(content[: content.rindex(b"\xff\xda")])
    with pytest.raises(PhotoRefused, match=facts("a.jpg", "cut off")):
        read_photo(tmp_path / "a.jpg")
    assert read_photo_file(tmp_path / "a.jpg", allow_truncated=True).size == (77, 99)


def test_reduced_decoding_refuses_what_is_cut_too(tmp_path):
    path, content = tmp_path / "a.jpg", jpeg()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PhotoRefused, match=facts("a.jpg", "cut off")):
        read_original(path, Resize.parse("x0.1"), "reduced", 250)
    path.write_bytes(content[:-2])
    assert read_original(path, Resize.parse("x0.1"), "reduced", 250)[0].shape == (8, 10, 3)


def test_a_file_that_ends_before_its_pixels_is_called_that(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg()[:400])
    with pytest.raises(PhotoRefused, match=facts("a.jpg", "cut off")):
        read_photo_file(tmp_path / "a.jpg", allow_truncated=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_a_cut_png_is_refused_or_restored_so_far(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    whole, path = io.BytesIO(), tmp_path / "a.png"
    image.save(whole, "PNG", compress_level=1)
    content = whole.getvalue()
    path.write_bytes(content)
    expected = read_photo_file(path).read_all((slice(0, 77), slice(0, 99)))
    path.write_bytes(content[:-12])
    photo = read_photo_file(path)
    np.testing.assert_array_equal(photo.read_all((slice(0, 77), slice(0, 99))), expected)
    assert says(photo.notes, "end marker")
    path.write_bytes(content[: 2 * len(content) // 3])
    with pytest.raises(PhotoRefused, match=facts("a.png", "--allow-truncated", "%")):
        read_photo(path)
    photo = read_photo_file(path, allow_truncated=True)
    found = photo.read_all((slice(0, 77), slice(0, 99)))
    np.testing.assert_array_equal(found[:30], expected[:30])
    assert says(photo.notes, "cut off") and found.dtype == expected.dtype and found[-1].max() in (0, found[-1, 0].max())


def test_every_cut_of_a_file_is_refused_by_name_or_read(tmp_path):
    path = tmp_path / "a.photo"
    for content in (jpeg(), jpeg(progressive=True), png()):
        for length in range(0, len(content), 97):
            path.write_bytes(content[:length])
            for allow in (False, True):
                try:
                    assert read_photo_file(path, allow_truncated=allow).size == (77, 99)
                except PhotoRefused as error:
                    assert path.name in str(error) and "_io." not in str(error)


def test_the_option_of_the_commands_and_pillows_own_switch_is_left_alone(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    content = jpeg()
    (tmp_path / "in" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "whole.jpg").write_bytes(content[:-2])
    arguments = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    ran = capsys.readouterr()
    assert says(ran.err, "cut.jpg", "--allow-truncated") and says(ran.out, "whole.jpg", "end marker")
    assert main([*arguments, "--allow-truncated"]) == 0 and says(capsys.readouterr().out, "cut.jpg", "cut off")
    assert Image.open(tmp_path / "out" / "cut.jpg").size == (99, 77) and not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_good_jpeg_without_an_end_is_not_copied_as_it_is(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg(quality=95)[:-2])
    assert main(["restore", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "a.jpg").read_bytes().endswith(b"\xff\xd9")
    assert says(capsys.readouterr().out, "end marker")
