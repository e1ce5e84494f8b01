"""The order of samples: a bijection for every key, the same forever, unrelated between epochs."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srcnn.data.shuffle import (
    BatchPlan,
    BlockShuffle,
    UniformShuffle,
    crops_at,
    derive_key,
    permute,
    permute_each,
    symmetries_at,
)

SEEDS = st.integers(0, 2**63)
BLOCKS = SEEDS, st.integers(1, 3000), st.integers(1, 70), st.integers(1, 90), st.integers(1, 5000)
KEPT_ORDERS = st.builds(BlockShuffle, *BLOCKS, st.just(False))
BLOCK_ORDERS = st.builds(BlockShuffle, *BLOCKS) | KEPT_ORDERS
ORDERS = st.builds(UniformShuffle, SEEDS, st.integers(1, 3000)) | BLOCK_ORDERS


@given(ORDERS, st.integers(0, 10**6))
def test_every_sample_comes_exactly_once_an_epoch(order, epoch):
    positions = epoch * order.num_samples + np.arange(order.num_samples)
    assert sorted(order.samples_at(positions).tolist()) == list(range(order.num_samples))


@given(ORDERS, st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
def test_the_sample_at_a_position_does_not_depend_on_what_else_is_asked(order, positions):
    together = order.samples_at(np.array(positions))
    assert together.tolist() == [order.samples_at(np.array([position]))[0] for position in positions]


@given(st.lists(st.tuples(st.integers(1, 2**40), SEEDS), min_size=1, max_size=20))
def test_permuting_in_sets_of_many_sizes_is_permuting_in_each(sets):
    sizes, keys = (np.array(column, np.uint64) for column in zip(*sets, strict=True))
    positions = sizes // np.uint64(3)
    together = permute_each(positions, sizes, keys)
    assert together.tolist() == [int(permute(p, int(n), k)) for p, n, k in zip(positions, sizes, keys, strict=True)]
    assert (together < sizes.astype(np.int64)).all()


@pytest.mark.parametrize("order", [UniformShuffle(7, 10**12), BlockShuffle(7, 10**12, 8, 64, 16_384),
                                   BlockShuffle(7, 10**12, 8, 64, 16_384, redeal=False)], ids=str)
def test_large_sets_need_no_list_of_all_samples(order):
    samples = order.samples_at(np.arange(1000))
    assert len(set(samples.tolist())) == 1000 and samples.max() > 9 * 10**11 and samples.min() < 10**11


@pytest.mark.parametrize("make", [UniformShuffle, lambda seed, n: BlockShuffle(seed, n, 8, 4, 256),
                                  lambda seed, n: BlockShuffle(seed, n, 8, 4, 256, redeal=False)],
                         ids=["uniform", "runs", "kept"])
def test_seeds_and_epochs_give_unrelated_orders(make):
    order, other_seed = make(0, 2000), make(1, 2000)
    first = order.samples_at(np.arange(2000))
    for other in (other_seed.samples_at(np.arange(2000)), order.samples_at(2000 + np.arange(2000))):
        assert (first == other).sum() < 12  # one in expectation
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


@given(BLOCK_ORDERS, st.data())
def test_neighbours_of_a_run_come_within_a_window_of_each_other(order, data):
    run = data.draw(st.integers(0, (order.num_samples - 1) // order.block_samples))
    samples = order.samples_at(np.arange(order.num_samples))
    positions = np.flatnonzero(samples // order.block_samples == run)
    places, lanes = np.divmod(positions, order.num_lanes)
    window = max(1, order.window_samples // order.num_lanes)
    # Behind the dataset's last block, if that is shorter, windows of the same lane divide blocks: they lie in two.
    num_windows = 2 if order.num_samples % order.block_samples else 1
    for lane_places in (places[lanes == lane] for lane in lanes):
        assert np.ptp(lane_places) < num_windows * window + 2 * order.block_samples
    assert len(set(lanes.tolist())) <= -(-order.block_samples // max(1, order.num_samples // order.num_lanes)) + 1


def samples_of_lanes(order, epoch):
    """The set of samples of each lane in an epoch."""
    positions = epoch * order.num_samples + np.arange(order.num_samples)
    samples, lanes = order.samples_at(positions), positions % order.num_lanes
    return [set(samples[lanes == lane].tolist()) for lane in range(order.num_lanes)]


@given(KEPT_ORDERS, st.integers(0, 10**6), st.data())
def test_kept_lanes_keep_their_samples_but_for_less_than_one_of_each_lane(order, epoch, data):
    before, after = samples_of_lanes(order, 0), samples_of_lanes(order, epoch)
    if order.num_samples % order.num_lanes == 0:
        assert before == after
    first = data.draw(st.integers(0, order.num_lanes - 1))
    last = data.draw(st.integers(first + 1, order.num_lanes))
    ours, again = (set().union(*lanes[first:last]) for lanes in (before, after))
    assert len(ours - again) < 2 * order.num_lanes, "of neighbouring lanes, where they begin and where they end"


def test_in_kept_lanes_every_sample_comes_anywhere_in_the_epoch():
    order = BlockShuffle(0, 1000, 8, 4, 64, redeal=False)
    places = np.argsort([order.samples_of_epoch(epoch, np.arange(1000)) for epoch in range(400)], axis=1)
    assert np.abs(places.mean(0) - 499.5).max() < 75, "five standard deviations"
    assert (places.min(0) < 40).all() and (places.max(0) > 960).all()


def positions(start, batch_size, rank, num_ranks, num_lanes):
    """A rank's positions of the global batch from `start` on."""
    return BatchPlan(0, start, start + batch_size, batch_size, rank, num_ranks).positions(start, num_lanes)


@given(st.integers(0, 10**9), st.integers(1, 300), st.integers(1, 9), st.integers(1, 90))
def test_ranks_part_a_global_batch_evenly(start, batch_size, num_ranks, num_lanes):
    parts = [positions(start, batch_size, rank, num_ranks, num_lanes) for rank in range(num_ranks)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(start, start + batch_size))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 100), st.sampled_from([(16, 64), (64, 64), (256, 64), (512, 16)]), st.sampled_from([1, 2, 4, 8]))
def test_a_rank_keeps_to_its_lanes(number, sizes, num_ranks):
    batch_size, num_lanes = sizes
    lanes = [set((positions(number * batch_size, batch_size, rank, num_ranks, num_lanes) % num_lanes).tolist())
             for rank in range(num_ranks)]
    assert sum(map(len, lanes)) == len(set().union(*lanes)) == min(batch_size, num_lanes)


def test_symmetries_are_even_and_differ_between_epochs():
    counts = np.bincount(symmetries_at(0, np.arange(80_000)), minlength=8)
    assert counts.min() > 9600 and counts.max() < 10_400  # 10,000 each, over four standard deviations
    assert (symmetries_at(0, np.arange(1000)) == symmetries_at(0, 1000 + np.arange(1000))).mean() < 0.2


def test_crops_are_spread_evenly_and_independent_in_rows_and_columns():
    crops = crops_at(0, np.arange(80_000))
    assert crops.min() >= 0 and crops.max() < 1 and np.abs(crops.mean(axis=0) - 0.5).max() < 0.005
    assert abs(np.corrcoef(crops.T)[0, 1]) < 0.02


GOLDEN = {
    ("uniform", 0, 0): "0b3111917a5428f3307765a1c5364079e4d0f07dccf69ff7bbf983eeceb72372",
    ("uniform", 42, 0): "cbcb0de4a88b9b36a3d2f8bc21056f1908fb25f1c0e98a20123529f52720c759",
    ("uniform", 42, 3): "2fea884d67fac900ffa13560b67db4cc8066c581482cc26ce023416f357ba6d6",
    ("runs", 0, 0): "0f2fc5673087acce9471604516823d17d8f867c1773a1feb4d06982c2906eb92",
    ("runs", 42, 0): "6d9fff8d78fb45a12afbd2349f53a724ebca3770cb856153fbf9f0105d75fd35",
    ("runs", 42, 3): "6f181d463b0304eeb75f542413652e0bfe7ee623b71b499dedb1f8d0bde3fe20",
    ("kept", 0, 0): "a2a4145ff0d5ee79fc5c2c8822a2992d9ed817cba0e89a450e7e18bb6c1e8815",
    ("kept", 42, 0): "cd2c9bdd5ae19025295aed1a69e812ef04b8f48215e77e190fab10b7026db160",
    ("kept", 42, 3): "7f2a9b99995f9fbbf5f242d84b5b6ea55b2c0abf76d214bb695f622334b2d278",
}


@pytest.mark.parametrize("kind,seed,epoch", GOLDEN, ids=str)
def test_the_order_never_changes_by_accident(kind, seed, epoch):
    order = UniformShuffle(seed, 13_056)
    if kind != "uniform":
        order = BlockShuffle(seed, 13_056, 8, 64, 4096, redeal=kind == "runs")
    positions = epoch * 13_056 + np.arange(10_000)
    content = order.samples_at(positions).tobytes() + symmetries_at(seed, positions).tobytes()
    assert hashlib.sha256(content).hexdigest() == GOLDEN[kind, seed, epoch], "raise ORDER_VERSION if it has to change"


def test_keys_depend_on_every_number_and_their_order():
    keys = [derive_key(*numbers) for numbers in [(0,), (0, 0), (1, 0), (0, 1), (2**64 - 1, 1), (-1, 2)]]
    assert len(set(map(int, keys))) == len(keys)
