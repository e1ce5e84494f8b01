"""The index of very large sets: from a server shard by shard, each checked, and written without all of it in memory."""

import numpy as np
import pytest
from messages import facts
from servers import FaultyServer, parse_range
from small import small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.index import INDEX_DTYPE, encode_index, index_file
from srcnn.data.manifest import ShardError
from srcnn.runtime.object_store import AccessConfig


@pytest.fixture
def server(tmp_path):
    with FaultyServer(small_shards(tmp_path) / "train") as started:
        yield started


def test_an_index_is_what_numpy_reads(tmp_path):
    for num_rows in (0, 1, 75, 10**4):
        rows = np.zeros(num_rows, INDEX_DTYPE)
        rows["hash"] = np.arange(num_rows)
        (tmp_path / "index.npy").write_bytes(encode_index(rows))
        assert np.array_equal(np.load(tmp_path / "index.npy", allow_pickle=False), rows)
        assert (tmp_path / "index.npy").stat().st_size == index_file(num_rows).bytes


@pytest.mark.parametrize("most_rows_kept", [10**6, 1])
def test_a_large_index_is_asked_for_shard_by_shard_and_checked(server, monkeypatch, most_rows_kept):
    monkeypatch.setattr("srcnn.data.index.MAX_LOADED_BYTES", 0)
    monkeypatch.setattr("srcnn.data.index.MAX_CACHED_ENTRIES", most_rows_kept)
    access = AccessConfig(timeout_seconds=10, give_up_seconds=20)
    reader, local = ShardDataset(server.url, access=access), ShardDataset(server.folder)
    for samples in (np.arange(75), np.array([70, 3, 40, 4, 71])):
        for ours, expected in zip(reader.read(samples), local.read(samples), strict=True):
            assert np.array_equal(ours, expected)
    ranges = [parse_range(request.range) for request in server.asked("index.npy")]
    assert len(set(ranges)) == 1 + len(reader.manifest.shards)  # the header, and the rows of each
    assert (len(ranges) == len(set(ranges))) == (most_rows_kept > 75)
    assert max(stop - start for start, stop in ranges) == 30 * INDEX_DTYPE.itemsize
    index = server.folder / "index.npy"
    content = bytearray(index.read_bytes())
    content[-20] ^= 1
    index.write_bytes(content)
    reader = ShardDataset(server.url, access=access)
    reader.read(np.arange(60))
    with pytest.raises(ShardError, match=facts("index.npy", "000002.tar")):
        reader.read(np.arange(60, 62))
