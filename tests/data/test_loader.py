"""Shards -> batches: every sample exactly once, the same global batches on any number of ranks."""

import collections
import gc
import os
import threading
import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import small_shards

from srcnn.data.dataset import PairBuffer, ShardDataset
from srcnn.data.loader import BATCHES_IN_USE, LoaderConfig, train_batches, val_batches
from srcnn.data.manifest import ShardError
from srcnn.data.prefetch import BufferRing, read_ahead
from srcnn.data.shuffle import BatchPlan, BlockShuffle, UniformShuffle, batch_numbers, sequential_batches
from srcnn.runtime.parallel import in_order, in_order_until_stopped

RUNS = LoaderConfig(order="runs", run_samples=4, window_samples=24, num_lanes=4, prefetch_batches=2)
ORDERS = [LoaderConfig(order="uniform", prefetch_batches=2), RUNS, replace(RUNS, lanes="kept")]
ORDER_IDS = ["uniform", "runs", "kept"]


@pytest.fixture(scope="module", params=["npy", "png"])
def shards(request, tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp(request.param), encoding=request.param)


def all_ranks(order, start, stop, batch_size, num_ranks):
    """The global batches, each as the ranks' lists of samples."""
    plans = [BatchPlan(order.seed, start, stop, batch_size, rank, num_ranks) for rank in range(num_ranks)]
    ranks = [list(batch_numbers(order, plan)) for plan in plans]
    assert len({len(parts) for parts in ranks}) == 1, "every rank runs the same number of steps"
    return [[part.samples.tolist() for part in step] for step in zip(*ranks, strict=True)]


def global_batches(order, start, stop, batch_size, num_ranks):
    return [sorted(sum(step, [])) for step in all_ranks(order, start, stop, batch_size, num_ranks)]


@given(st.data())
def test_an_epoch_is_every_sample_once_whatever_the_shards_ranks_and_batches(data):
    num_samples, num_ranks = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 8))
    batch_size, seed = data.draw(st.integers(num_ranks, 90)), data.draw(st.integers(0, 99))
    of_blocks = st.just(seed), st.just(num_samples), st.integers(1, 20), st.integers(1, 70), st.integers(1, 500)
    orders = st.just(UniformShuffle(seed, num_samples)) | st.builds(BlockShuffle, *of_blocks, st.booleans())
    order = data.draw(orders)
    num_epochs = data.draw(st.integers(1, 3))
    steps = all_ranks(order, 0, num_epochs * num_samples, batch_size, num_ranks)
    assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in steps)
    assert all(len(sum(step, [])) == batch_size for step in steps)
    counts = collections.Counter(sum(sum(steps, []), []))
    carried = len(steps) * batch_size - num_epochs * num_samples  # the tail of the last batch, out of the next epoch
    assert 0 <= carried < batch_size
    ahead_epochs, rest = divmod(carried, num_samples)
    assert set(counts) == set(range(num_samples))
    assert all(0 <= count - num_epochs - ahead_epochs <= (1 if rest else 0) for count in counts.values())
    assert sum(counts.values()) == len(steps) * batch_size


@given(st.data())
def test_global_batches_are_the_same_on_any_number_of_ranks_and_after_any_stop(data):
    num_samples, batch_size = data.draw(st.integers(1, 300)), data.draw(st.integers(4, 60))
    order = data.draw(st.sampled_from([UniformShuffle(1, num_samples), BlockShuffle(1, num_samples, 8, 6, 64),
                                       BlockShuffle(1, num_samples, 8, 6, 64, redeal=False)]))
    whole = global_batches(order, 0, 12 * batch_size, batch_size, 1)
    cuts = [0, *sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12)))), 12]
    resumed = []
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        num_ranks = data.draw(st.integers(1, 4))
        resumed += global_batches(order, first * batch_size, last * batch_size, batch_size, num_ranks)
    assert resumed == whole


def parts_of_nodes(order, batch_size, num_ranks, num_nodes, num_epochs):
    """The samples of each node in each epoch: [epoch][node]; ranks side by side share a node."""
    found = [[set() for _ in range(num_nodes)] for _ in range(num_epochs + 1)]
    for rank in range(num_ranks):
        plan = BatchPlan(order.seed, 0, num_epochs * order.num_samples, batch_size, rank, num_ranks)
        for part in batch_numbers(order, plan):
            epoch = (part.position - batch_size) // order.num_samples
            found[epoch][rank * num_nodes // num_ranks].update(part.samples.tolist())
    return found


@pytest.mark.parametrize("num_samples", [4096, 5003])
@pytest.mark.parametrize(("batch_size", "num_ranks", "num_nodes"), [(32, 8, 4), (64, 6, 3), (16, 4, 2), (96, 5, 5)])
def test_a_node_reads_its_own_part_again_where_lanes_are_kept(num_samples, batch_size, num_ranks, num_nodes):
    parts = parts_of_nodes(BlockShuffle(2, num_samples, 4, 32, 512, redeal=False), batch_size, num_ranks, num_nodes, 4)
    anew = parts_of_nodes(BlockShuffle(2, num_samples, 4, 32, 512), batch_size, num_ranks, num_nodes, 4)
    for epoch in (1, 2, 3):
        for node in range(num_nodes):
            new = len(parts[epoch][node] - parts[0][node]) / len(parts[epoch][node])
            assert new < 0.06 + 0.15 * (num_ranks == 5), "lanes that two nodes share, and the last batch of an epoch"
            if num_samples % batch_size == 0 == 32 % num_ranks:
                assert new == 0
            assert len(anew[epoch][node] - anew[0][node]) / len(anew[epoch][node]) > 0.7 * (1 - 1 / num_nodes)


def test_kept_lanes_are_halved_for_small_sets_and_make_another_order():
    reader = SimpleNamespace(num_samples=1_000_000, is_local=False)
    kept = LoaderConfig(lanes="kept")
    assert kept.make_shuffle(0, reader).num_lanes == 1024
    names = {str(config.make_shuffle(0, reader)) for config in (kept, LoaderConfig(), LoaderConfig(order="uniform"))}
    assert len(names) == 3, "a run does not continue with another"
    for num_samples, anew, halved in ((222_080, 433, 256), (13_000, 25, 16), (600, 1, 1), (3, 1, 1)):
        reader.num_samples = num_samples
        assert [config.make_shuffle(0, reader).num_lanes for config in (LoaderConfig(), kept)] == [anew, halved]


@pytest.mark.parametrize("config", ORDERS, ids=ORDER_IDS)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_batches_hold_the_picked_pairs(shards, config, num_ranks):
    reader = ShardDataset(shards / "train")
    clean, degraded = reader.read(np.arange(reader.num_samples))
    clean, degraded = clean.copy(), degraded.copy()
    order = config.make_shuffle(5, reader)
    for rank in range(num_ranks):
        parts = batch_numbers(order, BatchPlan(order.seed, 40, 2 * reader.num_samples, 13, rank, num_ranks))
        batches = train_batches(reader, config, BatchPlan(5, 40, 2 * reader.num_samples, 13, rank, num_ranks))
        for part, batch in zip(parts, batches, strict=True):
            assert np.array_equal(batch.samples, part.samples) and np.array_equal(batch.symmetries, part.symmetries)
            assert np.array_equal(batch.clean, clean[part.samples])
            assert np.array_equal(batch.degraded, degraded[part.samples])


@pytest.mark.parametrize("config", ORDERS, ids=ORDER_IDS)
def test_one_sample_in_all_fills_every_batch(tmp_path, config):
    reader = ShardDataset(small_shards(tmp_path) / "train", max_samples=1)
    batches = [batch.samples.tolist() for batch in train_batches(reader, config, BatchPlan(0, 0, 6, 3))]
    assert batches == [[0, 0, 0]] * 2


def test_continuing_takes_no_longer_far_into_the_stream(shards):
    reader = ShardDataset(shards / "train")
    for config in ORDERS:
        begin = time.process_time()  # which a busy machine does not change
        next(train_batches(reader, config, BatchPlan(0, 10**12, 10**12 + 100, 8)))
        assert time.process_time() - begin < 5


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 50])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_validation_sees_every_sample_exactly_once_over_all_ranks(shards, num_ranks, batch_size):
    reader = ShardDataset(shards / "val")
    counts = collections.Counter(
        sample
        for rank in range(num_ranks)
        for batch in val_batches(reader, LoaderConfig(), batch_size, rank, num_ranks)
        for sample in batch.samples.tolist()
    )
    assert counts == dict.fromkeys(range(45), 1)


def test_a_reader_of_few_samples_keeps_to_the_first(shards):
    reader = ShardDataset(shards / "train", max_samples=7)
    batches = list(train_batches(reader, LoaderConfig(), BatchPlan(0, 0, 14, 7)))
    assert [sorted(batch.samples.tolist()) for batch in batches] == [list(range(7))] * 2


def test_a_batch_stays_whole_while_the_next_ones_are_asked_for(shards):
    reader = ShardDataset(shards / "train")
    batches = train_batches(reader, LoaderConfig(prefetch_batches=1), BatchPlan(0, 0, 75, 5))
    kept = [next(batches) for _ in range(BATCHES_IN_USE)]
    copies = [batch.clean.copy() for batch in kept]
    time.sleep(0.1)
    assert all(np.array_equal(batch.clean, copy) for batch, copy in zip(kept, copies, strict=True))
    buffers = {id(batch.clean) for batch in [*kept, *batches]}
    assert len(buffers) == 1 + BATCHES_IN_USE, "the arrays are used again"


def test_no_thread_file_or_memory_is_left_over_20_epochs(shards):
    reader = ShardDataset(shards / "train")

    def standing():
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def epoch(number, config):
        batches = train_batches(reader, config, BatchPlan(0, number * 75, (number + 1) * 75, 8))
        for _ in range(3 if number % 2 else 100):  # every second one is left half way
            if next(batches, None) is None:
                break
        batches.close()

    for number in range(4):  # until the files are mapped
        for config in ORDERS:
            epoch(number, config)
    tracemalloc.start()
    try:
        epoch(0, RUNS)
        before, memory = standing(), tracemalloc.get_traced_memory()[0]
        for number in range(20):
            for config in ORDERS:
                epoch(number, config)
        assert all(now <= then for now, then in zip(standing(), before, strict=True))
        assert tracemalloc.get_traced_memory()[0] - memory < 200_000, "20 batches take 320 kB"
    finally:
        tracemalloc.stop()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) <= before[1]


def test_results_keep_the_order_and_threads_work_ahead_no_further_than_its_depth():
    made = []

    def work(number):
        time.sleep(0.01 * (number % 3))
        made.append(number)
        return number

    results = in_order_until_stopped(work, range(20), 3, 4)
    assert next(results) == 0
    while len(made) < 1 + 4:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + 4
    assert list(results) == list(range(1, 20))


def test_after_an_error_in_order_cancels_what_a_shared_pool_has_not_started():
    release, worked_on = threading.Event(), []

    def work(item):
        if item == 0:
            raise ValueError("the first item")
        release.wait(10)
        worked_on.append(item)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="the first item"):
            list(in_order(pool, work, range(9), 5))
        release.set()
    assert len(worked_on) <= 1  # the one that had started


def test_in_order_raises_an_error_in_its_place_and_leaves_no_thread():
    def work(number):
        if number == 2:
            raise ShardError("000007.tar: damaged")
        return number

    before = threading.active_count()
    results = in_order_until_stopped(work, range(9), 2, 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ShardError, match="000007"):
        next(results)
    assert threading.active_count() == before


BUFFER = PairBuffer(16, (2, 2))


def planned(order, num_steps, fetch, span, lead):
    parts = ((part, BUFFER) for part in batch_numbers(order, BatchPlan(order.seed, 0, num_steps * 16, 16)))
    return read_ahead(parts, fetch, order.block_samples, span, lead)


@pytest.mark.parametrize("redeal", [True, False])
@pytest.mark.parametrize("num_samples", [64, 1000, 5003])
def test_blocks_are_fetched_in_the_order_of_need_with_all_their_uses_known(num_samples, redeal):
    order = BlockShuffle(3, num_samples, 8, 4, 256, redeal)
    fetched = []

    def fetch(block):
        fetched.append((block, len(block.uses)))
        return Future()

    batches = list(planned(order, num_samples // 16, fetch, 256 + 16, 64))
    assert all(num_uses == len(block.uses) for block, num_uses in fetched), "a use was found after the fetch"
    numbers = [block.uses[0][0] // 8 for block, _ in fetched]
    assert all({use[0] // 8 for use in block.uses} == {number} for (block, _), number in zip(fetched, numbers))
    # Blocks are cut by the borders of lanes, and in one lane, behind the short block, by those of windows.
    assert len(numbers) - len(set(numbers)) <= order.num_lanes + num_samples // order.window_samples + 1
    assert [block.first_position for block, _ in fetched] == sorted(block.first_position for block, _ in fetched)
    for part, _, blocks in batches:
        uses = {use[0] for block in blocks for use in block.uses if use[0] in part.samples}
        assert uses == set(part.samples.tolist())


def test_reading_ahead_leads_by_so_many_positions_and_no_more():
    order = BlockShuffle(0, 100_000, 8, 16, 2048)
    fetched, taken = [], 0

    def fetch(block):
        fetched.append(block.first_position)
        return Future()

    for part, _, blocks in planned(order, 4000, fetch, 2048, 512):
        taken += 1
        if part.position < 60_000:
            assert part.position + 512 - 128 <= fetched[-1] <= part.position + 512 + 16
        assert all(block.first_position <= part.position for block in blocks)
    assert taken == 4000


def test_buffers_are_used_in_turn_and_a_short_last_batch_gets_its_own():
    ring = BufferRing((2, 2), 5)
    buffers = [ring.take(size) for size in (4, 4, 4, 4, 4, 4, 3)]
    assert [len(buffer.tiles) for buffer in buffers] == [4] * 6 + [3]
    assert buffers[5] is buffers[0] and len({id(buffer) for buffer in buffers[:5]}) == 5


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 9))
def test_sequential_batches_share_all_samples_in_order(num_samples, batch_size, num_ranks):
    parts = [part for rank in range(num_ranks) for part in sequential_batches(num_samples, batch_size, rank, num_ranks)]
    assert np.concatenate([part.samples for part in parts]).tolist() == list(range(num_samples))
