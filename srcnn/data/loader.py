"""The loader: iterators over this rank's batches, in the order of `shuffle`, read by threads ahead of time.

If shards hold clean tiles only, the loader makes pairs of them (`training_pairs`).
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
from srcnn.runtime.errors import UserError
from srcnn.runtime.object_store import AccessConfig
from srcnn.runtime.parallel import in_order_until_stopped, result_or_stop

MIN_BLOCKS_PER_LANE = 32  # as a block at the boundary of two lanes is read twice
BATCHES_IN_USE = 3  # outside of the loader: pending, being copied to the device, being trained on


class Batch(NamedTuple):
    """A batch of pairs of tiles; NumPy arrays on the host, tensors on a device.

    Attributes:
        clean, degraded: uint8 (N, H, W) or (N, H, W, 3).
        samples: int64 (N,), the numbers of the samples in their split.
        symmetries: uint8 (N,), 0..7, the augmentation of each pair (`transforms.apply_symmetries`).
        conditions: float32 (N, CONDITION_SIZE), the second input of a conditioned network
            (`jpeg_quality.condition_of`); None if nothing is known.
    """

    clean: Any
    degraded: Any
    samples: Any
    symmetries: Any
    conditions: Any = None

    def map(self, function: Callable[[Any], Any]) -> Batch:
        """Applies `function` to each array that is not None."""
        return Batch(*(None if array is None else function(array) for array in self))


@dataclass(frozen=True)
class LoaderState:
    """The position of the loader: the same on every rank, and valid for any number of ranks."""

    seed: int
    epoch: int
    consumed_samples: int
    manifest_hash: str
    order: str
    order_version: int = ORDER_VERSION


@dataclass(frozen=True)
class LoaderConfig:
    """The order of the samples, and how they are read.

    Args:
        order: "uniform": a random permutation of all samples, for shards on a local disk; "runs": blocks of
            neighbouring samples are read together and shuffled in windows, for object stores and slow disks; "auto":
            uniform for folders, runs for URLs.
        run_samples: neighbouring samples in a block ("runs").
        window_samples: samples that are shuffled with each other ("runs"); these and `lead_samples` are in memory, over
            all ranks.
        lead_samples: samples requested before they are needed ("runs"): the rate wanted, times the time of a request.
        num_lanes: independent sequences of blocks, which are divided among the ranks ("runs"). A batch has equally many
            samples of each lane; as many lanes as samples in a global batch shuffle best. Small datasets use fewer.
        lanes: "anew": each epoch assigns the blocks to other lanes; "kept": the assignment is fixed, so that a rank
            reads the same part of the dataset in every epoch, from its machine's cache ("runs").
        resident: "host" or "device": every rank reads all samples into that memory once; "no": they are read as needed.
        num_threads: threads that fill batches.
        prefetch_batches: batches prepared ahead of time.
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
                raise UserError(f"stream.{key} {getattr(self, key)}: expected at least 1")

    def make_shuffle(self, seed: int, dataset: PairDataset) -> Shuffle:
        """The order of the samples of a dataset."""
        if self.order == "uniform" or (self.order == "auto" and dataset.is_local):
            return UniformShuffle(seed, dataset.num_samples)
        max_lanes = max(1, dataset.num_samples // (MIN_BLOCKS_PER_LANE * self.run_samples))
        redeal, num_lanes = self.lanes == "anew", self.num_lanes
        if redeal:
            num_lanes = min(num_lanes, max_lanes)
        while num_lanes > max_lanes:  # halved, so that batches and ranks that divide num_lanes evenly go on doing so
            num_lanes = -(-num_lanes // 2)
        return BlockShuffle(seed, dataset.num_samples, self.run_samples, num_lanes, self.window_samples, redeal)


def train_batches(
    dataset: PairDataset, config: LoaderConfig, plan: BatchPlan, allocate: Allocate | None = None,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """Yields this rank's part of each global batch (`batch_numbers`), read ahead by threads.

    The arrays are reused: a batch is valid until BATCHES_IN_USE more were yielded.

    Args:
        allocate: makes the arrays, such as pinned memory for a GPU; None: plain NumPy arrays.
        maker: makes pairs of clean tiles; None: the dataset holds pairs.

    Raises (in place of the batch):
        ReadFailed, ShardError: samples that cannot be read, or do not match the manifest.
    """
    shuffle = config.make_shuffle(plan.seed, dataset)
    batches = batch_numbers(shuffle, plan, with_crops=dataset.needs_crops)
    if dataset.in_memory or dataset.is_local and isinstance(shuffle, UniformShuffle):
        return _fill_batches(dataset, config, ((numbers, None) for numbers in batches), allocate, maker)
    assert isinstance(dataset, ShardDataset)
    step = plan.batch_size * plan.stride
    if maker is None:
        filled = _read_by_blocks(dataset, config, batches, step, shuffle, allocate, BATCHES_IN_USE)
        return (_to_batch(dataset, numbers, buffer) for numbers, buffer in filled)
    num_in_use = 1 + config.prefetch_batches
    clean = _read_by_blocks(dataset, config, batches, step, shuffle, None, num_in_use)
    return _fill_batches(dataset, config, clean, allocate, maker)


def val_batches(
    dataset: ShardDataset, config: LoaderConfig, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """Yields this rank's share of the samples, each once and in sequence; arrays are reused as in `train_batches`."""
    batches = sequential_batches(dataset.num_samples, batch_size, rank, num_ranks)
    return _fill_batches(dataset, config, ((numbers, None) for numbers in batches))


def _fill_batches(
    dataset: PairDataset, config: LoaderConfig, batches: Generator[tuple[BatchNumbers, PairBuffer | None], None, None],
    allocate: Allocate | None = None, maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """Reads samples one by one, or takes clean tiles that were read, and makes pairs; several batches at a time."""

    def fill(item: tuple[BatchNumbers, PairBuffer | None, PairBuffer]) -> Batch:
        numbers, tiles, buffer = item
        if maker is None:
            dataset.read(numbers.samples, buffer, numbers.crops)
            return _to_batch(dataset, numbers, buffer)
        clean = tiles.clean if tiles else dataset.read(numbers.samples)[0]
        conditions = maker.fill(clean, numbers.positions, numbers.symmetries, buffer)
        no_symmetries = np.zeros_like(numbers.symmetries)  # the maker has applied them
        return Batch(buffer.clean, buffer.degraded, numbers.samples, no_symmetries, conditions)

    shape, num_members = (maker.pair_shape, 2) if maker else (dataset.tile_shape, dataset.num_members)
    buffers = BufferRing(shape, config.prefetch_batches + BATCHES_IN_USE, allocate, num_members)
    with closing(batches):
        items = ((numbers, tiles, buffers.take(len(numbers.samples))) for numbers, tiles in batches)
        yield from in_order_until_stopped(fill, items, config.num_threads, config.prefetch_batches)


def _to_batch(dataset: PairDataset, numbers: BatchNumbers, buffer: PairBuffer) -> Batch:
    conditions = dataset.conditions(numbers.samples)
    return Batch(buffer.clean, buffer.degraded, numbers.samples, numbers.symmetries, conditions)


def _read_by_blocks(
    dataset: ShardDataset, config: LoaderConfig, batches: Iterator[BatchNumbers], step: int, shuffle: Shuffle,
    allocate: Allocate | None, num_in_use: int,
) -> Generator[tuple[BatchNumbers, PairBuffer], None, None]:
    """Yields batches, `step` positions apart, with their samples, from blocks that are each read once, ahead of time.

    A buffer is valid until `num_in_use` more were yielded.
    """
    block_samples, window = 1, 0
    if isinstance(shuffle, BlockShuffle):
        block_samples, window = shuffle.block_samples, shuffle.window_samples
    span, lead = window + step, config.lead_samples
    num_buffers = -(-(span + lead) // step) + 1 + num_in_use
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
