"""What is taken from Pillow beside its documented interface means what srcnn takes it for."""

import io

import numpy as np
import pytest
from PIL import Image
from small import draw_photo

from srcnn.photos.pillow_internals import forget_source, jpeg_components

SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}


def opened(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_components_of_a_jpeg_are_those_of_its_frame_header(subsampling):
    image = opened(Image.fromarray(draw_photo(0, 40, 56)), "JPEG", subsampling=subsampling)
    assert jpeg_components(image) == [(1, *SUBSAMPLINGS[subsampling], 0), (2, 1, 1, 1), (3, 1, 1, 1)]
    assert set(image.quantization) == {0, 1}


def test_grey_jpegs_have_one_component_and_other_files_none():
    grey = Image.fromarray(draw_photo(0, 40, 56)).convert("L")
    assert [component[1:] for component in jpeg_components(opened(grey, "JPEG"))] == [(1, 1, 0)]
    assert jpeg_components(opened(grey, "PNG")) == jpeg_components(grey) == []


def test_nothing_of_a_file_but_its_pixels_is_written_again():
    pixels = draw_photo(0, 40, 56)
    image = opened(Image.fromarray(pixels), "TIFF", compression="tiff_lzw", description="secret", software="told")
    image.load()
    assert b"secret" in written(image)
    forget_source(image)
    assert b"secret" not in written(image) and b"told" not in written(image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written(image)))), pixels)


def written(image):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()
