"""The order of samples: a bijection for every key, the same forever, unrelated between epochs."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from srcnn.order import derive_key, permute, samples_at, symmetries_at


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**6))
def test_every_sample_comes_exactly_once_an_epoch(num_samples, seed, epoch):
    positions = epoch * num_samples + np.arange(num_samples)
    assert sorted(samples_at(seed, positions, num_samples).tolist()) == list(range(num_samples))


@given(st.integers(1, 500), st.integers(0, 100), st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_the_sample_at_a_position_does_not_depend_on_what_else_is_asked(num_samples, seed, positions):
    together = samples_at(seed, np.array(positions), num_samples)
    assert together.tolist() == [samples_at(seed, np.array([position]), num_samples)[0] for position in positions]


def test_large_sets_need_no_list_of_all_samples():
    samples = permute(np.arange(1000), 10**12, derive_key(7))
    assert len(set(samples.tolist())) == 1000 and samples.max() > 9 * 10**11 and samples.min() < 10**11


def test_seeds_and_epochs_give_unrelated_orders():
    first = samples_at(0, np.arange(1000), 1000)
    for other in (samples_at(1, np.arange(1000), 1000), samples_at(0, 1000 + np.arange(1000), 1000)):
        assert (first == other).sum() < 10  # one in expectation
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


def test_symmetries_are_even_and_differ_between_epochs():
    counts = np.bincount(symmetries_at(0, np.arange(80_000)), minlength=8)
    assert counts.min() > 9600 and counts.max() < 10_400  # 10,000 each, over four standard deviations
    assert (symmetries_at(0, np.arange(1000)) == symmetries_at(0, 1000 + np.arange(1000))).mean() < 0.2


def test_the_order_never_changes_by_accident():
    positions = np.arange(10_000)
    content = samples_at(42, positions, 13_056).tobytes() + symmetries_at(42, positions).tobytes()
    assert hashlib.sha256(content).hexdigest() == "cbcb0de4a88b9b36a3d2f8bc21056f1908fb25f1c0e98a20123529f52720c759"
