"""Shards -> this rank's batches: which samples (`shuffle`), their pixels (`dataset`, `prefetch`); and where shards hold
clean tiles alone, pairs made of them (`training_pairs`).

Every stage takes an iterator and gives one, and can be tried alone with a list.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from srcnn.data.dataset import Allocate, PairBuffer, PairDataset, ShardDataset
from srcnn.data.prefetch import BlockFetcher, BufferRing, read_ahead
from srcnn.data.shuffle import (
    ORDER_VERSION,
    BatchNumbers,
    BatchPlan,
    BlockShuffle,
    Shuffle,
    UniformShuffle,
    batch_numbers,
    sequential_batches,
)
from srcnn.data.training_pairs import PairMaker
from srcnn.runtime.object_store import AccessConfig
from srcnn.runtime.parallel import in_order_until_stopped, result_or_stop

BLOCKS_IN_A_LANE = 32  # at least: a block at the border of two lanes is read twice
BATCHES_IN_USE = 3  # the ranks agree on one, one is being copied, one is trained on


class Batch(NamedTuple):
    """Pairs of tiles as they lie in the shards; NumPy arrays on the host, tensors on a device.

    Attributes:
        clean, degraded: uint8, (N, H, W) or (N, H, W, 3).
        samples: (N,) int64, the numbers of the pairs in their split.
        symmetries: (N,) uint8, 0..7, what `augment` is to do with each pair.
        conditions: float32 (N, CONDITION_SIZE), the input of a conditioned network beside each
            picture (`jpeg_quality.condition_of`); None where nothing is known.
    """

    clean: Any
    degraded: Any
    samples: Any
    symmetries: Any
    conditions: Any = None

    def map(self, function: Callable[[Any], Any]) -> Batch:
        """The same with `function(array)` in place of each array that is there."""
        return Batch(*(None if array is None else function(array) for array in self))


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: small, the same on every rank, valid for any number of ranks."""

    seed: int
    epoch: int
    consumed_samples: int
    manifest_hash: str
    order: str
    order_version: int = ORDER_VERSION


@dataclass(frozen=True)
class StreamConfig:
    """How samples are ordered and brought to the device.

    Args:
        order: "uniform": a pseudo-random permutation of an epoch's samples, for shards on a local disk; "runs": blocks
            of neighbours are read together and mixed in windows, for object stores and slow disks; "auto": by where the
            shards lie.
        run_samples: neighbouring samples in a block ("runs").
        window_samples: samples mixed with each other ("runs"); all ranks together hold these and `lead_samples`.
        lead_samples: samples fetched before they are needed ("runs"): the rate wanted, times what a request takes.
        num_lanes: independent streams of blocks that are dealt to the ranks ("runs"); a batch takes as many samples of
            each, so as many lanes as a global batch has samples mix best; fewer are used for small sets.
        lanes: "anew": each epoch deals the blocks to lanes anew; "kept": once for all, so that ranks that keep to their
            lanes read the same part of the data set in every epoch, out of their machine's cache ("runs").
        resident: "host" or "device": read all samples into its memory once, on every rank; "no": read as needed.
        num_threads: threads that fill batches.
        prefetch_batches: batches kept ahead.
        access: how object stores are read.
    """

    order: Literal["auto", "uniform", "runs"] = "auto"
    run_samples: int = 16
    window_samples: int = 32_768
    lead_samples: int = 8192
    num_lanes: int = 1024
    lanes: Literal["anew", "kept"] = "anew"
    resident: Literal["no", "host", "device"] = "no"
    num_threads: int = 2
    prefetch_batches: int = 4
    access: AccessConfig = field(default_factory=AccessConfig)

    def __post_init__(self) -> None:
        for key in ("run_samples", "window_samples", "lead_samples", "num_lanes", "num_threads", "prefetch_batches"):
            if getattr(self, key) < 1:
                raise ValueError(f"stream.{key} {getattr(self, key)}: expected at least 1")

    def order_of(self, seed: int, dataset: PairDataset) -> Shuffle:
        """The order of this dataset's samples."""
        if self.order == "uniform" or (self.order == "auto" and dataset.is_local):
            return UniformShuffle(seed, dataset.num_samples)
        most = max(1, dataset.num_samples // (BLOCKS_IN_A_LANE * self.run_samples))
        redeal, lanes = self.lanes == "anew", self.num_lanes
        if redeal:
            lanes = min(lanes, most)
        while lanes > most:  # halves: what a multiple of num_lanes is dealt to evenly stays a multiple
            lanes = -(-lanes // 2)
        return BlockShuffle(seed, dataset.num_samples, self.run_samples, lanes, self.window_samples, redeal)


def train_batches(
    dataset: PairDataset,
    config: StreamConfig,
    plan: BatchPlan,
    allocate: Allocate | None = None,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """This rank's part of the global batches, see `batch_numbers`, read ahead by threads.

    The arrays are used again: a batch is valid until three more have been asked for. `allocate` makes them (uint8 of a
    shape; pinned memory for a GPU). Of clean tiles the `maker` makes pairs, in threads too.

    Raises (where the batch in question is due):
        ReadFailed, ShardError: samples that cannot be read, or are not what the manifest says.
    """
    order = config.order_of(plan.seed, dataset)
    batches = batch_numbers(order, plan, with_crops=dataset.needs_crops)
    if dataset.in_memory or dataset.is_local and isinstance(order, UniformShuffle):
        return _random_access(dataset, config, batches, allocate, maker)
    assert isinstance(dataset, ShardDataset)
    if maker is None:
        filled = _filled_by_blocks(dataset, config, batches, plan.batch_size, order, allocate, BATCHES_IN_USE)
        return (_read_batch(dataset, numbers, buffer) for numbers, buffer in filled)
    filled = _filled_by_blocks(dataset, config, batches, plan.batch_size, order, None, 1 + config.prefetch_batches)
    return _made_ahead(filled, config, maker, allocate)


def val_batches(
    dataset: ShardDataset, config: StreamConfig, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """This rank's share of every sample exactly once, see `sequential_batches`; arrays as those of `train_batches`."""
    return _random_access(dataset, config, sequential_batches(dataset.num_samples, batch_size, rank, num_ranks))


def _random_access(
    dataset: PairDataset, config: StreamConfig, batches: Iterator[BatchNumbers], allocate: Allocate | None = None,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """Batches of samples read one by one, several batches at a time."""

    def fill(item: tuple[BatchNumbers, PairBuffer]) -> Batch:
        numbers, buffer = item
        if maker is not None:
            return _made_batch(maker, dataset.read(numbers.samples)[0], numbers, buffer)
        dataset.read(numbers.samples, buffer, numbers.crops)
        return _read_batch(dataset, numbers, buffer)

    shape, num_members = (maker.pair_shape, 2) if maker else (dataset.tile_shape, dataset.num_members)
    buffers = BufferRing(shape, config.prefetch_batches + BATCHES_IN_USE, allocate, num_members)
    items = ((numbers, buffers.take(len(numbers.samples))) for numbers in batches)
    return in_order_until_stopped(fill, items, config.num_threads, config.prefetch_batches)


def _read_batch(dataset: PairDataset, numbers: BatchNumbers, buffer: PairBuffer) -> Batch:
    """The batch whose tiles were read into `buffer`."""
    conditions = dataset.conditions(numbers.samples)
    return Batch(buffer.clean, buffer.degraded, numbers.samples, numbers.symmetries, conditions)


def _made_batch(maker: PairMaker, tiles: np.ndarray, numbers: BatchNumbers, buffer: PairBuffer) -> Batch:
    """The batch of pairs made of clean tiles, which are transformed already."""
    conditions = maker.fill(tiles, numbers.positions, numbers.symmetries, buffer)
    return Batch(buffer.clean, buffer.degraded, numbers.samples, np.zeros_like(numbers.symmetries), conditions)


def _made_ahead(
    filled: Generator[tuple[BatchNumbers, PairBuffer], None, None], config: StreamConfig, maker: PairMaker,
    allocate: Allocate | None,
) -> Iterator[Batch]:
    """The batches of pairs made of clean tiles that were read, several made at a time."""
    buffers = BufferRing(maker.pair_shape, config.prefetch_batches + BATCHES_IN_USE, allocate)

    def make(item: tuple[BatchNumbers, PairBuffer, PairBuffer]) -> Batch:
        numbers, tiles, buffer = item
        return _made_batch(maker, tiles.clean, numbers, buffer)

    with closing(filled):
        items = ((numbers, tiles, buffers.take(len(numbers.samples))) for numbers, tiles in filled)
        yield from in_order_until_stopped(make, items, config.num_threads, config.prefetch_batches)


def _filled_by_blocks(
    dataset: ShardDataset, config: StreamConfig, batches: Iterator[BatchNumbers], batch_size: int, order: Shuffle,
    allocate: Allocate | None, num_in_use: int,
) -> Generator[tuple[BatchNumbers, PairBuffer], None, None]:
    """Batches filled out of blocks that are read ahead, each once; a block's samples go straight to the batches they
    are for. A buffer is valid until `num_in_use` more have been asked for.
    """
    block_samples, window = 1, 0
    if isinstance(order, BlockShuffle):
        block_samples, window = order.block_samples, order.window_samples
    span, lead = window + batch_size, config.lead_samples
    num_buffers = -(-(span + lead) // batch_size) + 1 + num_in_use
    buffers = BufferRing(dataset.tile_shape, num_buffers, allocate, dataset.num_members)
    items = ((numbers, buffers.take(len(numbers.samples))) for numbers in batches)
    fetcher = BlockFetcher(dataset, config.access.num_connections)
    try:
        for numbers, buffer, blocks in read_ahead(items, fetcher.fetch, block_samples, span, lead):
            for block in blocks:
                result_or_stop(block.done)
            yield numbers, buffer
    finally:
        fetcher.close()
