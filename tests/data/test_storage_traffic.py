"""What the ranks of two nodes ask a server for: each range about once an epoch, less where a cache holds it."""

from concurrent.futures import wait

import pytest
from servers import FaultyServer
from small import small_shards

from srcnn.data import loader
from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig, train_batches
from srcnn.data.prefetch import BlockFetcher
from srcnn.data.shuffle import BatchPlan
from srcnn.runtime.object_store import AccessConfig

NUM_RANKS, NUM_NODES, NUM_EPOCHS, SEED, BATCH_SIZE = 8, 2, 2, 5, 16
NUM_PAIRS, RUN = 1050, 4  # 70 photos of 15 tiles, 30 pairs a shard: runs are cut by shards
NUM_RUNS = NUM_PAIRS / RUN
DEADLINE_SECONDS = 120

pytestmark = pytest.mark.slow  # eight readers in step


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FaultyServer(small_shards(tmp_path_factory.mktemp("shards"), num_train=70)) as server:
        yield server


def requests_by_epoch(server, folder, monkeypatch, lanes, with_cache):
    """Requests for shards in each epoch, all ranks reading the same step at a time."""
    fetches = []

    class Watched(BlockFetcher):
        def fetch(self, run):
            fetches.append(super().fetch(run))
            return fetches[-1]

    monkeypatch.setattr(loader, "BlockFetcher", Watched)
    server.clear()
    readers, ranks = [], []
    for rank in range(NUM_RANKS):
        cache = str(folder / f"node {rank * NUM_NODES // NUM_RANKS}") if with_cache else ""
        config = LoaderConfig("runs", RUN, window_samples=64, lead_samples=40, num_lanes=8, lanes=lanes,
                              access=AccessConfig(num_connections=1, cache=cache, cache_gigabytes=1))
        readers.append(ShardDataset(f"{server.url}/train", access=config.access))
        plan = BatchPlan(SEED, 0, NUM_EPOCHS * NUM_PAIRS, BATCH_SIZE, rank, NUM_RANKS)
        ranks.append(train_batches(readers[-1], config, plan))
    totals = []
    for step in range(1, -(-NUM_EPOCHS * NUM_PAIRS // BATCH_SIZE) + 1):
        for batches in ranks:
            next(batches)
            assert not wait(fetches, DEADLINE_SECONDS).not_done
        if step * BATCH_SIZE >= NUM_PAIRS * (len(totals) + 1):
            totals.append(len(server.asked(".tar")))
    assert all(next(batches, None) is None for batches in ranks)
    for reader in readers:
        reader.close()
    return [totals[0], totals[1] - totals[0]]


@pytest.mark.parametrize(("lanes", "with_cache", "second_epoch"), [
    ("anew", False, (0.7, 1.3)), ("anew", True, (0.3, 0.9)), ("kept", True, (0, 0.3)),
])
def test_kept_lanes_read_the_second_epoch_from_the_cache(
    server, tmp_path, monkeypatch, lanes, with_cache, second_epoch
):
    first, second = requests_by_epoch(server, tmp_path, monkeypatch, lanes, with_cache)
    assert NUM_RUNS <= first < 1.6 * NUM_RUNS, "read ahead into the second epoch included"
    least, most = second_epoch
    assert least * NUM_RUNS <= second < most * NUM_RUNS
