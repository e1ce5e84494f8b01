from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srcnn.photos.tiling import JPEG_BLOCK_PIXELS, cut, grid, join, windows

SIDES, COLOURS = st.integers(1, 70), st.sampled_from([(), (3,)])


def numbered(height: int, width: int, colours: tuple[int, ...] = ()) -> np.ndarray:
    """An array in which every value is another one."""
    shape = (height, width, *colours)
    return np.arange(np.prod(shape)).reshape(shape)


@given(height=SIDES, width=SIDES, tile=st.integers(1, 24), colours=COLOURS)
def test_joined_tiles_are_the_photo_without_its_remainder(
    height: int, width: int, tile: int, colours: tuple[int, ...]
) -> None:
    photo = numbered(height, width, colours)
    rows, columns = grid(height, width, tile)
    assert 0 <= height - rows * tile < tile and 0 <= width - columns * tile < tile
    parts = cut(photo, tile)
    assert parts.shape == (rows * columns, tile, tile, *colours)
    if rows and columns:
        np.testing.assert_array_equal(join(parts, rows, columns), photo[: rows * tile, : columns * tile])


def test_tiles_of_a_photo_lie_on_the_jpeg_grid_row_by_row() -> None:
    photo, tile = numbered(149, 203), 24
    for index, part in enumerate(cut(photo, tile)):
        top, left = divmod(int(part[0, 0]), 203)
        assert (top % JPEG_BLOCK_PIXELS, left % JPEG_BLOCK_PIXELS) == (0, 0)
        assert (top, left) == (index // 8 * tile, index % 8 * tile)  # 203 // 24 = 8 tiles in a row
        np.testing.assert_array_equal(part, photo[top : top + tile, left : left + tile])


def test_the_sources_photo_gives_64_tiles() -> None:
    assert cut(np.zeros((1024, 1024), np.uint8), 128).shape == (64, 128, 128)
    assert cut(np.zeros((1151, 1152), np.uint8), 128).shape == (72, 128, 128)
    assert cut(np.zeros((127, 4000), np.uint8), 128).shape == (0, 128, 128)


@given(height=SIDES, width=SIDES, tile=st.integers(1, 24), halo=st.integers(0, 12))
def test_windows_cover_the_photo_once_and_see_their_halo(
    height: int, width: int, tile: int, halo: int
) -> None:
    photo = numbered(height, width)
    covered, stitched = np.zeros((height, width), int), np.full((height, width), -1)
    for window in windows(height, width, tile, halo):
        covered[window.target] += 1
        stitched[window.target] = photo[window.source][window.inner]
        for side, (source, target) in zip((height, width), zip(window.source, window.target), strict=True):
            assert source.start == max(0, target.start - halo) and source.stop == min(
                side, target.stop + halo
            )
    assert (covered == 1).all()
    np.testing.assert_array_equal(stitched, photo)


@pytest.mark.parametrize("side", [37, 64, 65, 101])
def test_a_box_filter_over_windows_equals_one_over_the_whole_photo(side: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    photo, radius = np.random.default_rng(side).random((side, side + 13)), 4

    def blur(pixels: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(pixels, 2 * radius + 1, mode="nearest")

    stitched = np.empty_like(photo)
    for window in windows(*photo.shape, 32, radius):
        stitched[window.target] = blur(photo[window.source])[window.inner]
    np.testing.assert_allclose(stitched, blur(photo), atol=1e-12)


@given(length=SIDES, tile=st.integers(1, 24))
def test_tiles_follow_each_other_and_only_the_last_is_short(length: int, tile: int) -> None:
    ends = [(window.target[0].start, window.target[0].stop) for window in windows(length, 1, tile, 0)]
    assert ends[0][0] == 0 and ends[-1][1] == length
    assert all(end == start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
    assert all(end - start == tile for start, end in ends[:-1]) and 0 < ends[-1][1] - ends[-1][0] <= tile


@given(height=SIDES, width=SIDES, tile=st.integers(1, 24), halo=st.integers(0, 9), data=st.data())
def test_windows_of_a_region_cover_it_alone_with_halos_beyond_it(
    height: int, width: int, tile: int, halo: int, data: st.DataObject
) -> None:
    photo = numbered(height, width)
    top, left = (data.draw(st.integers(0, side - 1)) for side in (height, width))
    bottom, right = (data.draw(st.integers(start + 1, side)) for start, side in ((top, height), (left, width)))
    region = slice(top, bottom), slice(left, right)
    stitched = np.full(photo[region].shape, -1)
    for window in windows(height, width, tile, halo, region):
        assert (stitched[window.target] == -1).all()
        stitched[window.target] = photo[window.source][window.inner]
        first, last = (int(photo[window.source].ravel()[index]) for index in (0, -1))
        assert first // width == max(0, top + window.target[0].start - halo)
        assert last % width == min(width, left + window.target[1].stop + halo) - 1
    np.testing.assert_array_equal(stitched, photo[region])
