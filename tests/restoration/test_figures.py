"""The parts that pictures before and after are drawn of."""

import numpy as np
from small import draw_photo

from srcnn.restoration.figures import magnify, strongest_part


def test_a_detail_is_enlarged_by_whole_pixels():
    pixels = draw_photo(3, 5, 7)
    squares = np.stack([np.kron(pixels[..., c], np.ones((4, 4), np.uint8)) for c in range(3)], -1)
    assert np.array_equal(magnify(pixels, 4), squares)


def test_the_strongest_part_is_the_cell_with_the_largest_sum_at_the_edges_too():
    amount = np.zeros((3 * 40 + 7, 4 * 40 + 5, 3))
    amount[49:70, 83:100] = 1
    assert strongest_part(amount, 40) == (slice(40, 80), slice(80, 120))
    amount[121:, 161:] = 99
    assert strongest_part(amount, 40) == (slice(120, 127), slice(160, 165))
