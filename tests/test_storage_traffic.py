"""What the traffic of storage is said to be, beside what a server counts of real ranks."""

import json
from collections import Counter
from concurrent.futures import wait
from dataclasses import fields

import pytest
from servers import FaultyServer
from small import small_shards

from benchmarks.scaling import PAGE
from benchmarks.scaling_model import RESULTS, SHARD_BYTES
from benchmarks.storage import SCENARIOS, Scenario, page_part, simulate
from benchmarks.traffic import Job, layout_of, missed, requests
from srcnn import loader
from srcnn.dataset import ShardDataset
from srcnn.loader import StreamConfig, train_batches
from srcnn.object_store import AccessConfig
from srcnn.prefetch import BlockFetcher
from srcnn.shuffle import BatchPlan

NUM_RANKS, NUM_NODES, NUM_EPOCHS, SEED = 8, 2, 2, 5
NUM_PAIRS, STRIDE = 1050, 4096  # 70 photos of 15 tiles, 30 pairs a shard: runs of 4 are cut by shards
DEADLINE_SECONDS = 120


pytestmark = pytest.mark.slow  # of what is measured once, not of the product


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FaultyServer(small_shards(tmp_path_factory.mktemp("shards"), num_train=70)) as server:
        yield server


def config_of(order="runs", lanes="anew", num_lanes=8, cache="", num_bytes=10**9):
    access = AccessConfig(num_connections=1, cache=str(cache), cache_gigabytes=num_bytes / 1e9)
    return StreamConfig(order, 4, window_samples=64, lead_samples=40, num_lanes=num_lanes, lanes=lanes, access=access)


def counted(server, configs, batch_size, monkeypatch):
    """What the server is asked for by all ranks in step, [Counter of (path, range)] by step, and besides."""
    fetches = []

    class Watched(BlockFetcher):
        def fetch(self, run):
            fetches.append(super().fetch(run))
            return fetches[-1]

    monkeypatch.setattr(loader, "BlockFetcher", Watched)
    server.clear()
    readers = [ShardDataset(f"{server.url}/train", access=config.access) for config in configs]
    ranks = [train_batches(reader, config, BatchPlan(SEED, 0, NUM_EPOCHS * NUM_PAIRS, batch_size, rank, NUM_RANKS))
             for rank, (reader, config) in enumerate(zip(readers, configs, strict=True))]
    steps, seen = [], 0
    for _ in range(-(-NUM_EPOCHS * NUM_PAIRS // batch_size)):
        for batches in ranks:
            next(batches)
            assert not wait(fetches, DEADLINE_SECONDS).not_done
        asked = server.asked(".tar")
        steps.append(Counter((request.path, request.range) for request in asked[seen:]))
        seen = len(asked)
    assert all(next(batches, None) is None for batches in ranks)
    for reader in readers:
        reader.close()
    return steps, Counter(request.path for request in server.requests if not request.path.endswith(".tar"))


def simulated(reader, config, batch_size, num_bytes):
    """The same, as `benchmarks.traffic` has it."""
    job = Job(config.order_of(SEED, reader), layout_of(reader.manifest), batch_size, NUM_RANKS, NUM_RANKS // NUM_NODES,
              config.lead_samples, NUM_EPOCHS * NUM_PAIRS)
    made = requests(job)
    if num_bytes:
        made = made.where(missed(made, job, num_bytes))
    steps = [Counter() for _ in range(job.num_steps)]
    for step, shard, first, stop in zip(made.step, made.shard, made.first, made.stop, strict=True):
        start, end = ((pair - job.layout.starts[shard]) * STRIDE for pair in (first, stop))
        steps[step][f"train/{reader.manifest.shards[shard].name}", f"bytes={start}-{end - 1}"] += 1
    return steps


WHOLE, SMALL = 10**9, 400 * STRIDE  # bytes of a cache
RANKS_IN_STEP = [  # order, lanes, num_lanes, batch, cache; lanes of one rank each, and others
    ("runs", "anew", 8, 16, 0), ("runs", "anew", 8, 16, WHOLE), ("runs", "kept", 8, 16, WHOLE),
    ("runs", "kept", 8, 24, SMALL), ("runs", "anew", 7, 20, 0), ("runs", "anew", 7, 20, WHOLE),
    ("runs", "kept", 5, 27, WHOLE), ("uniform", "anew", 8, 50, SMALL),
]


@pytest.mark.parametrize(("order", "lanes", "num_lanes", "batch_size", "num_bytes"), RANKS_IN_STEP)
def test_a_server_is_asked_for_what_is_simulated_step_by_step(
    server, tmp_path, monkeypatch, order, lanes, num_lanes, batch_size, num_bytes
):
    nodes = [tmp_path / f"node {rank * NUM_NODES // NUM_RANKS}" if num_bytes else "" for rank in range(NUM_RANKS)]
    configs = [config_of(order, lanes, num_lanes, node, num_bytes or 1) for node in nodes]
    steps, others = counted(server, configs, batch_size, monkeypatch)
    assert others == {"train/manifest.json": NUM_RANKS, "train/index.npy": NUM_RANKS}
    assert steps == simulated(ShardDataset(f"{server.url}/train"), configs[0], batch_size, num_bytes)
    second_epoch = sum(steps[NUM_PAIRS // batch_size :], Counter()).total()
    assert (second_epoch < 80) == (lanes == "kept" and num_bytes == WHOLE), "of 262 runs; the rest is in the cache"


def test_a_node_reads_its_share_once_where_lanes_are_kept():
    kept, anew = (simulate(Scenario(65_536, 2048, lanes)) for lanes in ("kept", "anew"))
    share = 65_536 * SHARD_BYTES
    assert kept["cache"]["bytes_by_epoch"] == pytest.approx([share, 0, 0], abs=0.01 * share)
    assert max(kept["cache"]["node_bytes_by_epoch"]["most"]) < 1.01 * share / 8
    assert anew["cache"]["bytes_by_epoch"] == pytest.approx([share, share * 7 / 8, share * 49 / 64], rel=0.02)
    for record in (kept, anew):
        assert 0.96 < record["no_cache"]["amplification"] <= 1, "runs at the turn of an epoch are read once for both"
        assert 0.96 < sum(record["no_cache"]["requests_by_epoch"]) / (3 * 65_536 / 16) < 1 + 1 / 16


def test_the_page_holds_what_was_simulated():
    records = json.loads((RESULTS / "storage.json").read_text())
    found = [Scenario(**{field.name: record[field.name] for field in fields(Scenario)}) for record in records]
    assert found == SCENARIOS
    part = PAGE.read_text().partition("<!-- storage -->\n")[2].partition("<!-- end -->")[0]
    assert part == page_part(records), "python -m benchmarks.storage --page"
    assert simulate(SCENARIOS[1]) == records[1], "the order or the reading has changed: benchmarks.storage --page"
