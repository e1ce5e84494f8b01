"""What ranks ask an object store for: every request of their streams, without a byte moved.

The samples come from the stream's own `batch_numbers`. How runs are made of them, when they are fetched, where shards
cut them and what a machine's cache answers follows `srcnn.prefetch.read_ahead`, `ShardDataset.fetch` and
`SparseCache`, with arrays in place of loops; `tests/test_storage_traffic.py` holds it against what a server counts
of real ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from srcnn.loader import batch_numbers
from srcnn.manifest import Manifest
from srcnn.shuffle import BatchPlan, Shuffle, UniformShuffle


class Layout(NamedTuple):
    """Where pairs of one size lie.

    Attributes:
        starts: the first pair of each shard, and the number of all.
        byte_starts: the first byte of each shard, were they one file: a cache's places.
        stride: bytes of a pair.
    """

    starts: np.ndarray
    byte_starts: np.ndarray
    stride: int


def layout_of(manifest: Manifest) -> Layout:
    assert manifest.stride is not None, "pairs of npy shards only"
    starts, byte_starts = ([getattr(shard, key) for shard in manifest.shards] for key in ("num_samples", "bytes"))
    return Layout(np.cumsum([0, *starts]), np.cumsum([0, *byte_starts]), manifest.stride)


def layout(num_pairs: int, pairs_per_shard: int, stride: int) -> Layout:
    """Full shards but for the last; the zeros at the end of a tar are left out."""
    starts = np.append(np.arange(0, num_pairs, pairs_per_shard), num_pairs)
    return Layout(starts, starts * stride, stride)


@dataclass(frozen=True)
class Job:
    """Ranks that read one split, some of them on each machine.

    Args:
        stop: positions of the stream that are trained on, from its beginning; the last batch may pass it.
    """

    order: Shuffle
    layout: Layout
    batch_size: int
    num_ranks: int
    ranks_per_node: int
    lead_samples: int
    stop: int

    @property
    def num_steps(self) -> int:
        return -(-self.stop // self.batch_size)


class Requests(NamedTuple):
    """Requests in the order they are made, as columns (n,) int64.

    Attributes:
        step: the batch that was asked for when a rank began to fetch; 0 is the start of the training.
        epoch: of the first batch that wants it.
        rank: who asks.
        shard, first, stop: for which pairs of the split.
    """

    step: np.ndarray
    epoch: np.ndarray
    rank: np.ndarray
    shard: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def where(self, chosen: np.ndarray) -> Requests:
        return Requests(*(column[chosen] for column in self))


def requests(job: Job) -> Requests:
    """What all ranks would read, were there no cache; ranks are in step, and one after the other within a step."""
    every = [_requests_of_rank(job, rank) for rank in range(job.num_ranks)]
    joined = Requests(*(np.concatenate(columns) for columns in zip(*every, strict=True)))
    return joined.where(np.lexsort((joined.rank, joined.step)))


def _requests_of_rank(job: Job, rank: int) -> Requests:
    parts = list(batch_numbers(job.order, BatchPlan(job.order.seed, 0, job.stop, job.batch_size, rank, job.num_ranks)))
    samples = np.concatenate([part.samples for part in parts])
    batches = np.repeat(np.arange(len(parts)), [len(part.samples) for part in parts])
    order = job.order
    run_samples, window = (1, 0) if isinstance(order, UniformShuffle) else (order.block_samples, order.window_samples)
    span = window + job.batch_size
    by_run = np.argsort(samples // run_samples, kind="stable")
    begins = _begins(samples[by_run] // run_samples, batches[by_run], -(-span // job.batch_size))
    leaders = by_run[begins]
    firsts, lasts = (of.reduceat(samples[by_run], begins) for of in (np.minimum, np.maximum))
    in_turn = np.argsort(leaders)
    lead = -(-(span + job.lead_samples) // job.batch_size)  # batches planned before the first is given
    wanted = batches[leaders][in_turn]
    steps = np.clip(wanted + -(-span // job.batch_size) - lead, 0, max(0, job.num_steps - lead))
    epochs = wanted * job.batch_size // job.order.num_samples
    return _within_shards(job.layout, Requests(steps, epochs, np.full(len(steps), rank), np.zeros_like(steps),
                                               firsts[in_turn], lasts[in_turn] + 1))


def _begins(runs: np.ndarray, batches: np.ndarray, span: int) -> np.ndarray:
    """Where fetches begin among uses sorted by run, then batch: one serves all uses until `span` batches after."""
    leads = np.append(True, runs[1:] != runs[:-1])
    while True:
        leaders = np.maximum.accumulate(np.where(leads, np.arange(len(runs)), 0))
        late = batches - batches[leaders] > span
        first_late = late & ~np.append(False, late[:-1] & (leaders[1:] == leaders[:-1]))
        if not first_late.any():
            return np.flatnonzero(leads)
        leads |= first_late


def _within_shards(layout: Layout, whole: Requests) -> Requests:
    """Cut where one shard ends and another begins."""
    first_shards, last_shards = (np.searchsorted(layout.starts, place, "right") - 1
                                 for place in (whole.first, whole.stop - 1))
    pieces = last_shards - first_shards + 1
    rows = np.repeat(np.arange(len(pieces)), pieces)
    shards = first_shards[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut = whole.where(rows)
    first, stop = np.maximum(cut.first, layout.starts[shards]), np.minimum(cut.stop, layout.starts[shards + 1])
    return cut._replace(shard=shards, first=first, stop=stop)


def missed(made: Requests, job: Job, cache_bytes: float) -> np.ndarray:
    """(n,) bool: which of these no cache answers, where each machine has one of so many bytes, empty at first.

    A range is in the cache when all of its pairs are. Ranks of a machine that want the same pairs at the same time may
    all ask for them; here the first does.
    """
    layout, is_missed = job.layout, np.ones(len(made.step), bool)
    nodes = (made.rank // job.ranks_per_node).tolist()
    places = layout.byte_starts[made.shard] - layout.starts[made.shard] * layout.stride
    kept = (places + made.stop * layout.stride <= cache_bytes).tolist()
    held = np.zeros((max(nodes) + 1, layout.starts[-1]), bool)
    for number, (node, first, stop) in enumerate(zip(nodes, made.first.tolist(), made.stop.tolist(), strict=True)):
        if kept[number]:
            pairs = held[node, first:stop]
            is_missed[number] = not pairs.all()
            pairs[:] = True
    return is_missed
