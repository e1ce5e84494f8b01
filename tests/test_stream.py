"""Shards -> batches: every sample exactly once, the same global batches on any number of ranks."""

import collections
import threading
import time

import numpy as np
import pytest
import webdataset
from small import small_shards

from srcnn.sample import ShardError, decode_tile
from srcnn.stream import ShardReader, prefetch, train_batches, val_batches


@pytest.fixture(scope="module", params=["npy", "png"])
def shards(request, tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp(request.param), encoding=request.param)


def test_the_reader_gives_what_stock_webdataset_gives(shards):
    reader = ShardReader(shards / "train")
    urls = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    assert len(urls) == 3
    stock = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(stock) == reader.num_samples == 75
    clean, degraded = reader.read(np.arange(75))
    encoding = reader.manifest.encoding
    for number, sample in enumerate(stock):
        assert np.array_equal(clean[number], decode_tile(sample[f"clean.{encoding}"], encoding))
        assert np.array_equal(degraded[number], decode_tile(sample[f"degraded.{encoding}"], encoding))


def test_rgb_tiles_keep_their_channels(tmp_path):
    reader = ShardReader(small_shards(tmp_path, color="rgb") / "train")
    clean, degraded = reader.read(np.array([3, 0]))
    assert clean.shape == degraded.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 13])
def test_ranks_share_each_global_batch_and_see_each_sample_once_an_epoch(shards, num_ranks, batch_size):
    reader = ShardReader(shards / "train")
    stop = 2 * reader.num_samples
    ranks = [list(train_batches(reader, 5, 0, stop, batch_size, rank, num_ranks)) for rank in range(num_ranks)]
    assert len({len(batches) for batches in ranks}) == 1, "every rank runs the same number of steps"
    samples = [sample for step in zip(*ranks, strict=True) for batch in step for sample in batch.samples.tolist()]
    alone = [sample for batch in train_batches(reader, 5, 0, stop, 1) for sample in batch.samples.tolist()]
    assert samples[:stop] == alone
    for epoch in range(2):
        part = samples[epoch * reader.num_samples : (epoch + 1) * reader.num_samples]
        assert sorted(part) == list(range(reader.num_samples))


def test_a_stream_continued_on_other_ranks_goes_on_with_the_same_samples(shards):
    reader = ShardReader(shards / "train")

    def samples(start, stop, batch_size, num_ranks):
        ranks = [train_batches(reader, 1, start, stop, batch_size, rank, num_ranks) for rank in range(num_ranks)]
        return [(s, k) for step in zip(*ranks, strict=True) for b in step for s, k in zip(b.samples, b.symmetries)]

    assert samples(0, 24, 4, 2) + samples(24, 60, 4, 3) + samples(60, 90, 5, 1) == samples(0, 90, 1, 1)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 50])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_validation_sees_every_sample_exactly_once_over_all_ranks(shards, num_ranks, batch_size):
    reader = ShardReader(shards / "val")
    counts = collections.Counter(
        sample
        for rank in range(num_ranks)
        for batch in val_batches(reader, batch_size, rank, num_ranks)
        for sample in batch.samples.tolist()
    )
    assert counts == dict.fromkeys(range(45), 1)


def test_a_reader_of_few_samples_keeps_to_the_first(shards):
    reader = ShardReader(shards / "train", max_samples=7)
    batches = list(train_batches(reader, 0, 0, 14, 7))
    assert [sorted(batch.samples.tolist()) for batch in batches] == [list(range(7))] * 2


def test_missing_cut_and_foreign_shards_are_named(tmp_path):
    shards = small_shards(tmp_path)
    with pytest.raises(FileNotFoundError, match="make shards"):
        ShardReader(tmp_path)
    shard = shards / "train" / "000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(ShardError, match="000001.tar: has .* bytes"):
        ShardReader(shards / "train")
    shard.unlink()
    with pytest.raises(ShardError, match="000001.tar: is missing"):
        ShardReader(shards / "train")


def test_prefetch_keeps_the_order_and_reads_ahead_no_further_than_its_depth():
    made = []

    def numbers():
        for number in range(20):
            made.append(number)
            yield number

    ahead = prefetch(numbers(), 3)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1
    assert list(ahead) == list(range(1, 20))


def test_prefetch_raises_the_producers_error_at_its_place():
    def broken():
        yield 1
        raise ShardError("000007.tar: damaged")

    ahead = prefetch(broken(), 2)
    assert next(ahead) == 1
    with pytest.raises(ShardError, match="000007"):
        next(ahead)


def test_prefetch_leaves_no_thread_behind():
    before = threading.active_count()
    ahead = prefetch(iter(range(1000)), 2)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
