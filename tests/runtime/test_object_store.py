"""Streams over shards behind a web server and in S3: as those of a folder, whatever goes wrong on the way."""

import contextlib
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import quiet_env
from messages import facts, numbers
from servers import FaultyServer, nginx, s3
from small import small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig, train_batches, val_batches
from srcnn.data.manifest import ShardError
from srcnn.data.shuffle import BatchPlan
from srcnn.runtime.object_store import AccessConfig, ReadFailed

NUM_TRAIN, NUM_VAL, STRIDE = 75, 45, 4096  # what small_shards makes, 30 pairs a shard
RUN, NUM_RUNS = 5, 15  # a run lies within a shard


def runs(order="runs", window_samples=20, **access):
    access = AccessConfig(**({"timeout_seconds": 10, "give_up_seconds": 20, "num_connections": 4} | access))
    return LoaderConfig(order, RUN, window_samples, lead_samples=8, num_lanes=2, prefetch_batches=2, access=access)


def train(reader, config, num_epochs=1, batch_size=15, rank=0, num_ranks=1):
    return train_batches(reader, config, BatchPlan(7, 0, num_epochs * NUM_TRAIN, batch_size, rank, num_ranks))


def copied(batches):
    """Batches whose arrays nobody will use again."""
    return (batch.map(np.array) for batch in batches)


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert all(np.array_equal(*arrays) for arrays in zip(batch, other, strict=True))


def open_train(location, config):
    return ShardDataset(f"{location}/train", access=config.access)


@pytest.fixture(scope="module", params=["npy over http", "png over http", "npy over s3"])
def remote(request, tmp_path_factory):
    """The folder of the shards, and where they can be had from a real server."""
    folder = small_shards(tmp_path_factory.mktemp("shards"), encoding=request.param[:3])
    if request.param.endswith("http"):
        with nginx(folder, tmp_path_factory.mktemp("nginx") / "work") as server:
            yield folder, server.url
    else:
        with s3(folder, "tiles"):
            yield folder, "s3://tiles"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def server(shards, tmp_path):
    """The server of a copy of the shards, which may be damaged."""
    with FaultyServer(shutil.copytree(shards, tmp_path / "copy")) as server:
        yield server


def local(shards, num_epochs=1):
    return list(copied(train(open_train(shards, runs()), runs(), num_epochs)))


@pytest.mark.parametrize(("order", "num_ranks"), [("runs", 1), ("runs", 2), ("runs", 3), ("uniform", 2)])
def test_ranks_get_the_batches_a_folder_gives(remote, order, num_ranks):
    folder, url = remote
    config = runs(order)
    seen = []
    for rank in range(num_ranks):
        expected = list(copied(train(open_train(folder, config), config, 2, 15, rank, num_ranks)))
        assert_same(train(open_train(url, config), config, 2, 15, rank, num_ranks), expected)
        seen += [sample for batch in expected for sample in batch.samples.tolist()]
    assert sorted(seen) == sorted([*range(NUM_TRAIN)] * 2), "each sample exactly once an epoch, over all ranks"


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_gives_every_pair_of_the_folder_once(remote, num_ranks):
    folder, url = remote
    seen = []
    for rank in range(num_ranks):
        expected = list(copied(val_batches(ShardDataset(f"{folder}/val"), runs(), 8, rank, num_ranks)))
        assert_same(val_batches(ShardDataset(f"{url}/val"), runs(), 8, rank, num_ranks), expected)
        seen += [sample for batch in expected for sample in batch.samples.tolist()]
    assert seen == list(range(NUM_VAL))


def test_a_remote_stream_is_by_runs_unless_said_otherwise_and_each_is_asked_for_once(shards, server):
    server.fault = lambda path, *_: time.sleep(0.1 * path.endswith("index.npy"))  # time for others to want it too
    assert_same(train(open_train(server.url, runs()), runs("auto")), local(shards))
    asked = Counter(server.asked(".tar"))
    assert len(asked) == NUM_RUNS and set(asked.values()) == {1}
    assert len(server.asked("index.npy")) == len(server.asked("manifest.json")) == 1


@pytest.mark.parametrize("fault", ["503", "close", "reset", "short", "flip"])
def test_faults_that_pass_change_nothing_in_the_stream(shards, server, fault):
    kind = ".tar" if fault == "flip" else ""  # a manifest has no hash above it
    server.fault = lambda path, start, stop, number: fault if number == 1 and path.endswith(kind) else None
    assert_same(train(open_train(server.url, runs()), runs()), local(shards))
    assert len(server.asked(".tar")) == 2 * NUM_RUNS


def test_a_shard_that_vanishes_ends_the_stream_at_its_place_with_its_name(shards, server):
    config = runs(window_samples=2, num_connections=1)
    server.fault = lambda path, *_: "404" if path.endswith(".tar") and len(server.asked(".tar")) >= 8 else None
    expected = list(copied(train(open_train(shards, config), config, batch_size=5)))
    got = []
    with pytest.raises(ReadFailed, match=r"train/00000\d\.tar\D+\d+\D+\d+"):
        got.extend(copied(train(open_train(server.url, config), config, batch_size=5)))
    assert 0 < len(got) < len(expected)
    assert_same(got, expected[: len(got)])


def assert_refused(server, error, message):
    """A stream ends with this error; gives its text."""
    with pytest.raises(error, match=message) as caught:
        list(train(open_train(server.url, runs()), runs()))
    return str(caught.value)


def test_bytes_that_stay_damaged_are_refused_with_shard_and_pair(server):
    server.fault = lambda path, *_: "flip" if path.endswith("000001.tar") else None
    told = assert_refused(server, ShardError, "train/000001.tar")
    (pair,) = (number for number in numbers(told) if 30 <= number < 60)
    assert pair % RUN == RUN // 2, "the damage is in the middle of a run"


@pytest.mark.parametrize("change", [-512, 512])
def test_a_shard_of_another_length_is_refused_with_both_lengths(server, change):
    size = (shard := server.folder / "train" / "000002.tar").stat().st_size
    os.truncate(shard, size + change)
    assert_refused(server, (ReadFailed, ShardError), facts("train/000002.tar", size + change, size))


def test_swapped_shards_are_refused(server):
    one, two = (server.folder / "train" / f"00000{number}.tar" for number in range(2))
    content = one.read_bytes()
    shutil.copy(two, one)
    two.write_bytes(content)
    assert_refused(server, ShardError, r"train/00000[01]\.tar")


def test_a_missing_damaged_or_foreign_manifest_or_index_is_named(server):
    manifest, index = (server.folder / "train" / name for name in ("manifest.json", "index.npy"))
    content = index.read_bytes()
    for broken in (content[:-7], content[:-1] + bytes([content[-1] ^ 1]), b""):
        index.write_bytes(broken)
        assert_refused(server, ShardError, "train/index.npy")
    index.unlink()
    assert_refused(server, ShardError, "train/index.npy")
    manifest.write_text("{}")
    assert_refused(server, ShardError, "train/manifest.json")
    manifest.unlink()
    assert_refused(server, FileNotFoundError, "train/manifest.json")


def stream_through(server, cache, **access):
    """An epoch by a new reader; its batches and the requests for data."""
    config = runs(cache=str(cache), **access)
    server.clear()
    reader = open_train(server.url, config)
    batches = list(copied(train(reader, config)))
    reader.close()
    return batches, len(server.asked(".tar"))


def test_a_second_epoch_comes_from_the_cache(shards, server, tmp_path):
    config = runs(cache=str(tmp_path / "cache"))
    assert_same(train(open_train(server.url, config), config, 2), local(shards, 2))
    assert len(server.asked(".tar")) == NUM_RUNS
    assert stream_through(server, tmp_path / "cache")[1] == 0, "so does that of a reader opened later"


# Some bytes in two runs, what follows the first shard (six runs), all of it.
DAMAGES = {
    "overwritten": (slice(4 * RUN * STRIDE - 500, 4 * RUN * STRIDE + 500), bytes(1000), 2),
    "cut": (slice(6 * RUN * STRIDE + 1, None), b"", NUM_RUNS - 6),
    "emptied": (slice(None), b"", NUM_RUNS),
}


@pytest.mark.parametrize(("place", "damage", "num_damaged"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_places_of_a_cache_are_read_again(shards, server, tmp_path, place, damage, num_damaged):
    stream_through(server, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[place] = damage
    file.write_bytes(content)
    batches, num_requests = stream_through(server, tmp_path / "cache")
    assert_same(batches, local(shards))
    assert num_requests == num_damaged
    assert stream_through(server, tmp_path / "cache")[1] == 0


def test_a_cache_keeps_within_its_bound(shards, server, tmp_path):
    num_bytes = 32 * STRIDE + 100
    for _ in range(2):
        batches, num_requests = stream_through(server, tmp_path / "cache", cache_gigabytes=num_bytes / 1e9)
        assert_same(batches, local(shards))
    assert num_requests == NUM_RUNS - 32 // RUN, "what is in the cache is not asked for"
    assert sum(file.stat().st_blocks for file in (tmp_path / "cache").iterdir()) * 512 <= num_bytes + 4096


@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_a_cache_that_cannot_be_written_is_warned_of_once(shards, server, tmp_path, disk, caplog):
    cache = Path("/proc/cache") if disk == "read-only" else tmp_path / "cache"
    if disk == "full":
        stream_through(server, cache)
        (file,) = cache.iterdir()
        file.unlink()
        file.symlink_to("/dev/full")
    caplog.clear()
    batches, num_requests = stream_through(server, cache)
    assert_same(batches, local(shards))
    assert num_requests == NUM_RUNS
    assert [str(cache) in record.getMessage() for record in caplog.records].count(True) == 1


DIGEST = """
import hashlib, sys
from srcnn.data.loader import AccessConfig, BatchPlan, ShardDataset, LoaderConfig, train_batches
config = LoaderConfig("runs", 5, 20, num_lanes=2)
reader = ShardDataset(sys.argv[1], access=AccessConfig(cache=sys.argv[2]))
for batch in train_batches(reader, config, BatchPlan(7, 0, 75, 15)):
    print(hashlib.sha256(batch.clean.tobytes() + batch.degraded.tobytes()).hexdigest())
"""


def test_two_processes_share_a_cache(shards, server, tmp_path):
    command = [sys.executable, "-c", DIGEST, f"{server.url}/train", tmp_path / "cache"]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(subprocess.check_output, command, env=quiet_env(), timeout=60) for _ in range(2)]
    expected = [hashlib.sha256(batch.clean.tobytes() + batch.degraded.tobytes()).hexdigest() for batch in local(shards)]
    assert [process.result().decode().split() for process in both] == [expected] * 2
    assert stream_through(server, tmp_path / "cache")[1] == 0


def held():
    """This process' Python threads, its sockets, its other open files."""
    files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    sockets = sum("/socket:" in file for file in files)
    return threading.active_count(), sockets, len(files) - sockets


def test_twenty_epochs_hold_no_more_than_one(shards, tmp_path):
    config = runs(cache=str(tmp_path / "cache"), cache_gigabytes=1e-4)
    with nginx(shards, tmp_path / "work") as server:
        gc.collect()
        before, after = held(), []
        reader, val = open_train(server.url, config), ShardDataset(f"{server.url}/val", access=config.access)
        for _ in range(20):
            assert len(list(train(reader, config))) + len(list(val_batches(val, config, 8))) == 5 + 6
            with contextlib.closing(train(reader, config)) as batches:
                next(batches)
            after.append(held())
        threads, sockets, files = zip(*after, strict=True)
        assert set(threads) == {before[0]} and len(set(files)) == 1
        assert max(sockets) <= before[1] + 2 * config.access.num_connections + config.num_threads
        assert {request.status for request in server.requests() if request.path.endswith(".tar")} == {206}
        del reader, val, batches
        assert eventually(lambda: np.all(np.less_equal(held(), before))), f"{before} before, {held()} after"


def eventually(fact, seconds=60.0):
    end = time.monotonic() + seconds
    while not (done := fact()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    return done


@pytest.mark.parametrize("fault", ["503", "slow"])
def test_a_stream_is_closed_promptly_while_the_server_fails(server, fault):
    config = runs(window_samples=NUM_TRAIN, give_up_seconds=12, timeout_seconds=1, num_connections=1)
    server.fault = lambda path, *_: fault if path.endswith(".tar") and len(server.asked(".tar")) >= 2 else None
    batches = train(open_train(server.url, config), config, batch_size=2)
    next(batches)
    assert eventually(lambda: len(server.asked(".tar")) > 2)
    end = time.monotonic() + 3
    batches.close()
    assert time.monotonic() < end
