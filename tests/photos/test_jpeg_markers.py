"""The walk over a JPEG's markers: what is counted lies before the end, whatever bytes follow it or fill its pixels."""

import io

import numpy as np
import pytest
from conftest import photo_pixels
from PIL import Image

from srcnn.data.manifest import decode_picture
from srcnn.photos.jpeg_markers import EOI, MAX_SEGMENTS, SOS, has_all_scans, segments
from srcnn.photos.reading import read_photo
from srcnn.runtime.untrusted import InvalidInput


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(photo_pixels(1, 99, 77)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


KINDS = {"baseline": {}, "grey": {"mode": "L"}, "restarts": {"restart_marker_blocks": 1}, "cmyk": {"mode": "CMYK"},
         "progressive": {"progressive": True}, "progressive grey": {"mode": "L", "progressive": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_segments_end_at_the_end_of_the_picture_and_hold_all_its_scans(kind):
    content = jpeg(**KINDS[kind])
    found = list(segments(content + b"\xff\xda\0\x08" * 9999))
    marker, _, stop = found[-1]
    assert (marker, stop) == (EOI, len(content))
    num_scans = {"progressive": 10, "progressive grey": 6}.get(kind, 1)
    assert [marker for marker, _, _ in found].count(SOS) == num_scans
    assert all(content[start - 4 : start - 3] == b"\xff" for marker, start, _ in found if marker == SOS)
    assert has_all_scans(content)


@pytest.mark.parametrize("kind", ["progressive", "progressive grey"])
def test_a_progressive_jpeg_without_its_last_scan_is_not_whole(kind):
    content = jpeg(**KINDS[kind])
    assert not has_all_scans(content[: content.rindex(b"\xff\xda")])


def test_random_bytes_behind_the_end_are_no_scans(tmp_path):
    content = jpeg() + np.random.default_rng(0).integers(0, 256, 9_000_000, np.uint8).tobytes()
    assert content.count(b"\xff\xda") > 100
    (tmp_path / "motion.jpg").write_bytes(content)
    np.testing.assert_array_equal(read_photo(tmp_path / "motion.jpg"), np.asarray(Image.open(io.BytesIO(jpeg()))))
    np.testing.assert_array_equal(decode_picture(content, 3), read_photo(tmp_path / "motion.jpg"))


def test_endless_segments_are_refused():
    with pytest.raises(InvalidInput):
        list(segments(b"\xff\xd8" + b"\xff\xe0\0\2" * (MAX_SEGMENTS + 1)))
    assert len(list(segments(b"\xff\xd8" + b"\xff\xe0\0\2" * 99))) == 100
