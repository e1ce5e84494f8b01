"""The quality of a JPEG by its tables."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, JpegPresets
from small import draw_photo

from srcnn.photos.jpeg_quality import ANNEX_K_LUMA, condition_of_quality, jpeg_save_of, quality_tables

QUALITIES = range(1, 101)


def saved(mode="RGB", **options):
    """The bytes of a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(0, 19, 27)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def told(content):
    with Image.open(io.BytesIO(content)) as image:
        save = jpeg_save_of(image)
        return save and save.quality


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_quality_of_libjpeg_is_told_exactly(mode):
    assert [told(saved(mode, quality=quality)) for quality in QUALITIES] == list(QUALITIES)


@pytest.mark.parametrize("options", [
    {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"progressive": True}, {"optimize": True}, {"keep_rgb": True},
], ids=str)  # fmt: skip
def test_how_else_it_was_saved_does_not_matter(options):
    assert [told(saved(quality=quality, **options)) for quality in (1, 23, 50, 77, 100)] == [1, 23, 50, 77, 100]


def test_steps_beyond_a_baseline_table_count_as_the_coarsest():
    """libjpeg without force_baseline writes steps of 16 bits at low qualities."""
    content = saved(quality=2)
    start = content.index(b"\xff\xdb")
    steps = content[start + 5 : start + 69]
    wide = b"".join(step.to_bytes(2, "big") if step < 255 else b"\x03\xe8" for step in steps)
    content = content[:start] + b"\xff\xdb\x00\x83\x10" + wide + content[start + 69 :]
    assert told(content) == 2


def test_only_the_table_of_the_first_component_counts():
    tables = quality_tables(ANNEX_K_LUMA)
    qtables = [tables[9].tolist(), tables[89].tolist()]  # as Pillow takes them: quality 10 for luma, 90 for chroma
    assert told(saved(qtables=qtables)) == 10


@pytest.mark.parametrize(
    "name, lowest, highest",
    [("web_low", 32, 45), ("web_medium", 60, 70), ("web_high", 85, 90), ("web_very_high", 92, 96), ("low", 75, 85),
     ("medium", 80, 90), ("high", 85, 92), ("maximum", 92, 96)],
)  # fmt: skip
def test_tables_of_photoshop_are_near_the_quality_of_equal_psnr(name, lowest, highest):
    """The bounds hold the quality of libjpeg that had the same PSNR on photographs: 32, 69, 88, 95, 77, 86, 91, 95."""
    assert lowest <= told(saved(qtables=JpegPresets.presets[name]["quantization"])) <= highest


@pytest.mark.parametrize("step, quality", [(1, 100), (2, 99), (8, 92), (16, 82), (255, 1)])
def test_flat_tables_of_finer_steps_are_of_better_quality(step, quality):
    assert told(saved(qtables=[[step] * 64])) == quality


def test_damaged_tables_tell_nothing():
    content = saved(quality=30)
    start = content.index(b"\xff\xdb")
    assert told(content[: start + 20] + b"\0" + content[start + 21 :]) is None, "a step of zero"
    frame = content.index(b"\xff\xc0")
    assert content[frame + 12] == 0, "the number of component 0's table"
    assert told(content[: frame + 12] + b"\3" + content[frame + 13 :]) is None, "a table that is not there"


def test_what_is_no_jpeg_tells_nothing():
    image = Image.fromarray(draw_photo(0, 19, 27))
    assert jpeg_save_of(image) is None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert told(buffer.getvalue()) is None
    with Image.open(io.BytesIO(saved(quality=30))) as opened:
        assert jpeg_save_of(opened.copy()) is None, "a copy has no tables"


def test_photos_of_real_cameras(shared_data):
    paths = sorted((shared_data / "train" / "facades_spb").glob("*.jpg"))
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(jpeg_save_of(image).quality)
    assert len(found) > 100 and min(found) >= 88 and max(found) <= 98 and np.median(found) >= 90


def test_it_starts_without_torch():
    code = "import sys, srcnn.photos.jpeg_quality; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("mode, subsampling", [("RGB", "4:4:4"), ("RGB", "4:2:0"), ("RGB", "4:2:2"), ("L", "4:4:4")])
def test_what_a_network_is_told_of_a_file_is_what_it_is_told_of_its_quality(mode, subsampling):
    for quality in QUALITIES:
        with Image.open(io.BytesIO(saved(mode, quality=quality, subsampling=subsampling))) as image:
            found = jpeg_save_of(image).condition
        expected = condition_of_quality(quality, subsampled=subsampling != "4:4:4", grey=mode == "L")
        assert np.array_equal(found, expected)
        assert found.dtype == np.float32 and 0 <= found.min() <= found.max() <= 1


def test_the_best_quality_tells_a_network_that_nothing_was_quantized():
    assert condition_of_quality(100).tolist() == [1, 1] + [0] * 20
