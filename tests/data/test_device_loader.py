"""The way to the device: resident or streamed, the same batches."""

import itertools

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from messages import facts
from small import small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.device_loader import LARGEST_SHARE, ResidentDataset, device_batches
from srcnn.data.loader import LoaderConfig
from srcnn.data.manifest import ShardError
from srcnn.data.shuffle import BatchPlan
from srcnn.data.transforms import to_float_batch
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.runtime.distributed import DistributedError
from srcnn.training.validation import validate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return ShardDataset(small_shards(tmp_path_factory.mktemp("shards")) / "train")


def everything(reader, config, rank=0, num_ranks=1):
    batches = device_batches(reader, config, BatchPlan(5, 30, 180, 12, rank, num_ranks), CPU, None)
    return [batch.map(torch.clone)[:4] for batch in batches]


@pytest.mark.parametrize("order", ["uniform", "runs"])
@pytest.mark.parametrize("resident", ["host", "device"])
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_resident_sets_give_the_batches_of_the_stream(tmp_path, order, resident, encoding):
    reader = ShardDataset(small_shards(tmp_path, encoding=encoding) / "train")
    for rank in range(2):
        streamed = everything(reader, LoaderConfig(order=order, num_lanes=3), rank, 2)
        held = everything(reader, LoaderConfig(order=order, num_lanes=3, resident=resident), rank, 2)
        assert len(streamed) == len(held) == 13
        for batch, other in zip(streamed, held, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_resident_reader_fills_the_room_it_is_given(reader):
    held = ResidentDataset(reader, LoaderConfig())
    samples = np.array([74, 0, 3, 3])
    for ours, theirs in zip(held.read(samples), reader.read(samples), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_set_that_does_not_fit_is_refused_with_both_sizes(reader, monkeypatch):
    needed = 2 * 75 * 32 * 32
    free = type("Memory", (), {"available": int(needed / LARGEST_SHARE) - 10})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(DistributedError, match=facts(reader.location, "0.0 GB", "cpu", "--stream.resident no")):
        next(device_batches(reader, LoaderConfig(resident="host"), BatchPlan(0, 0, 10, 1, 0, 1), CPU, None))
    free.available += 20
    next(device_batches(reader, LoaderConfig(resident="host"), BatchPlan(0, 0, 10, 1, 0, 1), CPU, None))


def test_an_error_of_the_stream_comes_in_the_place_of_its_batch(reader, monkeypatch):
    monkeypatch.setattr(reader, "read", failing_at(reader.read, 3))
    batches = device_batches(reader, LoaderConfig(num_threads=1), BatchPlan(0, 0, 120, 12, 0, 1), CPU, None)
    assert [len(next(batches).samples) for _ in range(3)] == [12] * 3
    with pytest.raises(ShardError, match="000007.tar: damaged"):
        next(batches)


def failing_at(read, number):
    calls = itertools.count()

    def reading(*arguments):
        if next(calls) == number:
            raise ShardError("000007.tar: damaged")
        return read(*arguments)

    return reading


def test_pairs_that_validation_cannot_read_fail_it_on_all_ranks(reader, monkeypatch):
    def missing(first, stop):
        raise ShardError("000002.tar: damaged")

    monkeypatch.setattr(reader, "read", lambda *_: missing(0, 0))
    with pytest.raises(DistributedError, match="000002.tar: damaged"):
        validate(SRCNN(ModelConfig(filters=(2, 2))), reader, Accelerator(cpu=True))


def test_floats_are_levels_over_255_channels_first(reader):
    batch = next(device_batches(reader, LoaderConfig(), BatchPlan(0, 0, 10, 7, 0, 1), CPU, None))
    clean, degraded = to_float_batch(batch)
    assert clean.shape == degraded.shape == (7, 1, 32, 32) and clean.dtype == torch.float32
    np.testing.assert_array_equal((clean * 255).round().byte()[:, 0].numpy(), batch.clean.numpy())
    np.testing.assert_array_equal((degraded * 255).round().byte()[:, 0].numpy(), batch.degraded.numpy())
