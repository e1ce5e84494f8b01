"""`PairStream` and `ShardDataset` in the loops of others: every pair once an epoch, resumed anywhere, on any ranks."""

import collections
import pickle

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from servers import FaultyServer
from small import small_shards
from torch.utils.data import DataLoader

import srcnn
from srcnn import LoaderConfig, PairStream, ShardDataset
from srcnn.data.loader import train_batches
from srcnn.data.shuffle import BatchPlan
from srcnn.data.training_pairs import DegradationConfig
from srcnn.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
BATCH, NUM_SAMPLES = 8, 75
RUNS = LoaderConfig(order="runs", run_samples=4, window_samples=24, num_lanes=4)
WORKERS = [0, 1, 3]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards")) / "train"


def trainer_batches(shards, num_batches, config=None, rank=0, num_ranks=1):
    """The samples of each batch of a training."""
    plan = BatchPlan(5, 0, num_batches * BATCH, BATCH, rank, num_ranks)
    return [batch.samples.tolist() for batch in train_batches(ShardDataset(shards), config or LoaderConfig(), plan)]


def read(loader, stream, epochs):
    batches = []
    for epoch in epochs:
        stream.set_epoch(epoch)
        batches += [batch.samples.tolist() for batch in loader]
    return batches


@pytest.mark.parametrize("config", [LoaderConfig(), RUNS], ids=["uniform", "runs"])
@pytest.mark.parametrize("num_workers", WORKERS)
def test_batches_are_the_trainers_with_any_number_of_workers(shards, config, num_workers):
    stream = PairStream(shards, BATCH, 5, config=config)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    batches = read(loader, stream, range(3))
    assert batches == trainer_batches(shards, 29, config)
    counts = collections.Counter(sum(batches, [])[: 3 * NUM_SAMPLES])
    assert len(counts) == NUM_SAMPLES and set(counts.values()) == {3}


def test_a_batch_holds_the_pairs_of_its_samples_and_stays_as_it_is(shards):
    batches = list(PairStream(shards, BATCH, 5))
    clean, degraded = ShardDataset(shards).read(np.arange(NUM_SAMPLES))
    for number, batch in enumerate(batches, 1):
        assert np.array_equal(batch.clean, clean[batch.samples])
        assert np.array_equal(batch.degraded, degraded[batch.samples])
        assert batch.position == number * BATCH
    moved = batches[0].to("meta")
    assert moved.clean.is_meta and moved.position == BATCH and type(moved) is type(batches[0])
    floats = srcnn.to_float_batch(batches[0], augment=True)
    assert floats[0].shape == (BATCH, 1, 32, 32) and floats[0].dtype == torch.float32


def test_without_workers_each_iteration_is_the_next_epoch(shards):
    stream = PairStream(shards, BATCH, 5)
    assert next(iter(stream)).position == BATCH, "a look at a batch uses up nothing"
    assert [batch.samples.tolist() for _ in range(3) for batch in stream] == trainer_batches(shards, 29)
    stream.set_epoch(0)
    assert [batch.samples.tolist() for batch in stream] == trainer_batches(shards, 10)


def test_with_workers_an_epoch_that_was_not_set_is_refused_rather_than_repeated(shards):
    loader = DataLoader(PairStream(shards, BATCH, 5), batch_size=None, num_workers=2)
    assert len(list(loader)) == 10
    with pytest.raises(UserError, match="set_epoch"):
        list(loader)


def test_persistent_workers_follow_the_epoch(shards):
    stream = PairStream(shards, BATCH, 5)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    for _ in zip(loader, range(5)):  # left in the midst of an epoch, with the workers ahead of it
        pass
    assert read(loader, stream, range(3)) == trainer_batches(shards, 29)


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("num_used", [1, 9, 10, 13])
def test_continues_after_the_last_batch_used_with_other_workers(shards, num_workers, num_used):
    expected = trainer_batches(shards, 29)
    stream = PairStream(shards, BATCH, 5)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    used = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        for batch in loader:
            used.append(batch.samples.tolist())
            if len(used) == num_used:
                stream.used(batch)
                state = pickle.loads(pickle.dumps(stream.state_dict()))
                break
        else:
            continue
        break
    resumed = PairStream(shards, BATCH, 5)
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=None, num_workers=(num_workers + 1) % 3)
    assert used + read(loader, resumed, range(resumed.epoch, 3)) == expected


def test_continues_on_other_ranks_and_with_another_batch_size(shards):
    first = [PairStream(shards, BATCH, 5, rank, 3) for rank in range(3)]
    states, used = [], []
    for stream in first:
        iterator = iter(stream)
        used += [sample for _ in range(4) for sample in next(iterator).samples.tolist()]
        states.append(stream.state_dict())
    assert states[0] == states[1] == states[2]
    second = [PairStream(shards, 9, 5, rank, 2) for rank in range(2)]
    for stream in second:
        stream.load_state_dict(states[0])
        for epoch in range(3):
            stream.set_epoch(epoch)
            used += sum((batch.samples.tolist() for batch in stream), [])
    counts = collections.Counter(used)
    extra = len(used) - 3 * NUM_SAMPLES
    assert 0 <= extra < 9 and set(counts.values()) <= {3, 4} and sum(count - 3 for count in counts.values()) == extra


def test_a_state_that_is_not_known_or_of_another_stream_is_refused(shards, tmp_path):
    stream = PairStream(shards, BATCH, 5)
    state = stream.state_dict()
    list(DataLoader(stream, batch_size=None, num_workers=1))
    with pytest.raises(UserError, match="used"):
        stream.state_dict()
    for other in (PairStream(shards, BATCH, 6), PairStream(shards, BATCH, 5, config=RUNS),
                  PairStream(small_shards(tmp_path, num_train=4) / "train", BATCH, 5)):
        with pytest.raises(UserError, match="seed|order|manifest_hash"):
            other.load_state_dict(state)


@pytest.mark.parametrize("changes", [{"rank": 1}, {"rank": 2, "world_size": 2}, {"rank": 0, "world_size": 9},
                                     {"batch_size": 0}, {"config": LoaderConfig(resident="host")},
                                     {"degradation": DegradationConfig(16, damages={"clean": {}})}])
def test_arguments_that_do_not_fit_are_refused(shards, changes):
    with pytest.raises(UserError):
        PairStream(**{"shards": shards, "batch_size": BATCH} | changes)


def test_the_folder_above_the_splits_is_answered_with_the_split(shards):
    with pytest.raises(FileNotFoundError, match=f"in {shards}"):
        PairStream(shards.parent, BATCH)


def test_rank_comes_from_the_launcher(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK"):
        PairStream(shards, BATCH)
    monkeypatch.setenv("RANK", "1")
    stream = PairStream(shards, BATCH)
    assert (stream.rank, stream.world_size) == (1, 2)


def test_clean_tiles_become_the_pairs_of_a_training(tmp_path):
    folder = small_shards(tmp_path, contents="clean") / "train"
    degradation = DegradationConfig(16, damages={"jpeg": {"quality": [5, 95]}})
    with pytest.raises(UserError, match="degradation"):
        PairStream(folder, BATCH)
    alone = list(PairStream(folder, BATCH, 5, degradation=degradation))
    shared = list(DataLoader(PairStream(folder, BATCH, 5, degradation=degradation), batch_size=None, num_workers=2))
    assert alone[0].clean.shape == (BATCH, 16, 16) and alone[0].conditions is not None
    for batch, same in zip(alone, shared, strict=True):
        assert all(torch.equal(*tensors) for tensors in zip(batch[:5], same[:5], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shard_dataset_is_a_map_style_dataset(shards, num_workers):
    dataset = ShardDataset(shards)
    clean, degraded = dataset.read(np.arange(NUM_SAMPLES))
    assert len(dataset) == NUM_SAMPLES
    assert np.array_equal(dataset[-1][0], clean[-1]) and np.array_equal(dataset[3][1], degraded[3])
    for wrong in (NUM_SAMPLES, -NUM_SAMPLES - 1):
        with pytest.raises(IndexError):
            dataset[wrong]
    loader = DataLoader(dataset, batch_size=8, num_workers=num_workers)
    found = [torch.cat(members) for members in zip(*loader, strict=True)]
    assert np.array_equal(found[0], clean) and np.array_equal(found[1], degraded)


def test_a_pickled_dataset_is_the_same_dataset(shards):
    dataset = ShardDataset(shards, max_samples=7)
    dataset.read_qualities()
    same = pickle.loads(pickle.dumps(dataset))
    assert len(same) == 7 and np.array_equal(same[6], dataset[6])
    assert np.array_equal(same.conditions(np.arange(7)), dataset.conditions(np.arange(7)))


@pytest.mark.parametrize("num_workers, persistent", [(0, False), (2, True), (3, False)])
@pytest.mark.parametrize("num_used", [0, 9, 10, 13])
def test_stateful_data_loader_continues_exactly(shards, num_workers, persistent, num_used):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected, used, state, saved_epoch = trainer_batches(shards, 29), [], None, 0
    options = {"batch_size": None, "num_workers": num_workers, "persistent_workers": persistent}
    for limit in (num_used, 99):
        stream = PairStream(shards, BATCH, 5)
        loader = stateful(stream, **options)
        if state:
            stream.set_epoch(saved_epoch)
            loader.load_state_dict(state)
        if not limit:
            state = loader.state_dict()
            continue
        for epoch in range(stream.epoch, 3):
            stream.set_epoch(epoch)
            for batch in loader:
                used.append(batch.samples.tolist())
                if len(used) == limit:
                    state, saved_epoch = pickle.loads(pickle.dumps(loader.state_dict())), epoch
                    break
            else:
                continue
            break
    assert used == expected


def test_stateful_data_loader_continues_on_other_ranks(shards):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    used, state = [], None
    for num_ranks, num_batches in ((2, 7), (3, 99)):
        states = []
        for rank in range(num_ranks):
            stream = PairStream(shards, BATCH, 5, rank, num_ranks)
            loader = stateful(stream, batch_size=None, num_workers=2)
            if state:
                loader.load_state_dict(state)
            for _, batch in zip(range(num_batches), loader):
                used += batch.samples.tolist()
            states.append(loader.state_dict())
        state = states[0]
    loader = stateful(PairStream(shards, BATCH + 1, 5), batch_size=None, num_workers=2)
    loader.load_state_dict(state)
    with pytest.raises(UserError, match="batch_size"):
        next(iter(loader))
    assert sorted(used) == sorted(sum(trainer_batches(shards, 10), []))


def _read_forked(dataset, queue):
    try:
        queue.put(len(dataset[0]))
    except UserError as error:
        queue.put(str(error))


@pytest.mark.slow
def test_spawned_workers_read_shards_at_an_address(shards):
    with FaultyServer(shards) as server:
        stream = PairStream(server.url, BATCH, 5, config=RUNS)
        loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn")
        assert read(loader, stream, range(2)) == trainer_batches(shards, 19, RUNS)
        with pytest.raises(UserError, match="set_epoch"):
            next(iter(loader))


# The last test, as processes forked after obstore was used take five seconds to end.
def test_shards_at_an_address_are_refused_in_a_forked_process(shards):
    with FaultyServer(shards) as server:
        context = mp.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_read_forked, args=(ShardDataset(server.url), queue))
        process.start()
        assert "spawn" in queue.get(timeout=60)
        process.join()
