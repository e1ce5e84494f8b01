"""Shards -> this rank's batches: which samples (`picks`), their pixels (`prefetch`, `reader`), on what terms; and where
shards hold clean tiles alone, pairs made of them (`training_pairs`).

Every stage takes an iterator and gives one, and can be tried alone with a list.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from srcnn.dataset import Allocate, PairReader, Pairs, ShardReader
from srcnn.prefetch import Fetcher, Rooms, ahead, read_ahead, result_of, with_room
from srcnn.shuffle import (
    ORDER_VERSION,
    KeptOrder,
    Order,
    RunOrder,
    UniformOrder,
    crops_at,
    part_of_batch,
    symmetries_at,
)
from srcnn.storage import AccessConfig
from srcnn.training_pairs import PairMaker

RUNS_IN_A_LANE = 32  # at least: a run at the border of two lanes is read twice
POSITIONS_AT_ONCE = 8192  # for which samples are computed together: a call of NumPy costs as much as hundreds of them
BATCHES_IN_USE = 3  # the ranks agree on one, one is being copied, one is trained on


class Batch(NamedTuple):
    """Pairs of tiles as they lie in the shards; NumPy arrays on the host, tensors on a device.

    Attributes:
        clean, degraded: uint8, (N, H, W) or (N, H, W, 3).
        samples: (N,) int64, the numbers of the pairs in their split.
        symmetries: (N,) uint8, 0..7, what `augment` is to do with each pair.
        conditions: float32 (N, CONDITION_SIZE), what a conditioned network is told of each
            (`jpeg_quality.condition_of`); None where nothing is known.
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
        order: "uniform": any order of an epoch is equally likely, for shards on a local disk; "runs": neighbours are
            read together and mixed in windows, for object stores and slow disks; "auto": by where the shards lie.
        run_samples: neighbouring samples read at once ("runs").
        window_samples: samples mixed with each other ("runs"); all ranks together hold these and `lead_samples`.
        lead_samples: samples fetched before they are needed ("runs"): the rate wanted, times what a request takes.
        num_lanes: independent streams of runs that are dealt to the ranks ("runs"); a batch takes as many samples of
            each, so as many lanes as a global batch has samples mix best; fewer are used for small sets.
        lanes: "anew": each epoch deals the runs to lanes anew; "kept": once for all, so that ranks that keep to their
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

    def order_of(self, seed: int, reader: PairReader) -> Order:
        """The order of this reader's samples."""
        if self.order == "uniform" or (self.order == "auto" and reader.is_local):
            return UniformOrder(seed, reader.num_samples)
        most = max(1, reader.num_samples // (RUNS_IN_A_LANE * self.run_samples))
        if self.lanes == "anew":
            lanes = min(self.num_lanes, most)
            return RunOrder(seed, reader.num_samples, self.run_samples, lanes, self.window_samples)
        lanes = self.num_lanes
        while lanes > most:  # halves: what a multiple of num_lanes is dealt to evenly stays a multiple
            lanes = -(-lanes // 2)
        return KeptOrder(seed, reader.num_samples, self.run_samples, lanes, self.window_samples)


class Picks(NamedTuple):
    """What a batch is to hold: (N,) samples and symmetries, (N, 2) crops or None, how far the stream is then, and where
    in it each of the samples stands, (N,).
    """

    samples: np.ndarray
    symmetries: np.ndarray
    crops: np.ndarray | None
    position: int
    positions: np.ndarray


def picks(
    order: Order,
    start: int,
    stop: int,
    batch_size: int,
    rank: int = 0,
    num_ranks: int = 1,
    with_crops: bool = False,
) -> Iterator[Picks]:
    """This rank's part of each global batch of `batch_size`, from position `start` until `stop` is reached or passed.

    Every rank gives the same number of parts, equal to within one sample. The tail of an epoch is filled up with the
    beginning of the next one, so that over the stream each sample comes exactly once an epoch.
    """
    steps_at_once = max(1, POSITIONS_AT_ONCE * num_ranks // batch_size)
    starts = range(start, stop, batch_size)
    for first in range(0, len(starts), steps_at_once):
        steps = starts[first : first + steps_at_once]
        parts = [part_of_batch(step, batch_size, rank, num_ranks, order.num_lanes) for step in steps]
        positions = np.concatenate(parts)
        chosen = [order.samples_at(positions), symmetries_at(order.seed, positions), positions]
        if with_crops:
            chosen.append(crops_at(order.seed, positions))
        by_step = zip(*(np.split(array, len(steps)) for array in chosen), strict=True)
        for step, (samples, symmetries, positions, *crops) in zip(steps, by_step, strict=True):
            yield Picks(samples, symmetries, crops[0] if crops else None, step + batch_size, positions)


def picks_in_turn(num_samples: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Picks]:
    """This rank's share of every sample exactly once, in turn, as they are; the last part may be short."""
    first, last = (num_samples * part // num_ranks for part in (rank, rank + 1))
    for start in range(first, last, batch_size):
        samples = np.arange(start, min(last, start + batch_size))
        yield Picks(samples, np.zeros(len(samples), np.uint8), None, int(samples[-1]) + 1, samples)


def train_batches(
    reader: PairReader,
    config: StreamConfig,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    rank: int = 0,
    num_ranks: int = 1,
    allocate: Allocate | None = None,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """This rank's part of the global batches, see `picks`, read ahead by threads.

    The arrays are used again: a batch is valid until three more have been asked for. `allocate` makes them (uint8 of a
    shape; pinned memory for a GPU). Of clean tiles the `maker` makes pairs, in threads too.

    Raises (where the batch in question is due):
        ReadFailed, ShardError: samples that cannot be read, or are not what the manifest says.
    """
    order = config.order_of(seed, reader)
    parts = picks(order, start, stop, batch_size, rank, num_ranks, with_crops=reader.needs_crops)
    if reader.in_memory or reader.is_local and isinstance(order, UniformOrder):
        return _filled(reader, parts, config.num_threads, config.prefetch_batches, allocate, maker)
    assert isinstance(reader, ShardReader)
    if maker is None:
        filled = _filled_from_runs(reader, parts, batch_size, order, config, allocate, BATCHES_IN_USE)
        return (_batch(reader, part, room) for part, room in filled)
    filled = _filled_from_runs(reader, parts, batch_size, order, config, None, config.prefetch_batches)
    return _made_ahead(filled, maker, config.num_threads, config.prefetch_batches, allocate)


def val_batches(
    reader: ShardReader, config: StreamConfig, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """This rank's share of every sample exactly once, see `picks_in_turn`; arrays as those of `train_batches`."""
    parts = picks_in_turn(reader.num_samples, batch_size, rank, num_ranks)
    return _filled(reader, parts, config.num_threads, config.prefetch_batches, None)


def _filled(
    reader: PairReader, parts: Iterator[Picks], num_threads: int, depth: int, allocate: Allocate | None,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """Batches by random access, several filled at a time."""

    def fill(part: Picks, room: Pairs) -> Batch:
        if maker is not None:
            return _made(maker, reader.read(part.samples)[0], part, room)
        reader.read(part.samples, room, part.crops)
        return _batch(reader, part, room)

    shape, num_members = (maker.pair_shape, 2) if maker else (reader.tile_shape, reader.num_members)
    rooms = Rooms(shape, depth + BATCHES_IN_USE, allocate, num_members)
    return ahead(fill, with_room(parts, rooms), num_threads, depth)


def _batch(reader: PairReader, part: Picks, room: Pairs) -> Batch:
    """The batch whose tiles were read into `room`."""
    return Batch(room.clean, room.degraded, part.samples, part.symmetries, reader.conditions(part.samples))


def _made(maker: PairMaker, tiles: np.ndarray, part: Picks, room: Pairs) -> Batch:
    """The batch of pairs made of clean tiles, turned already."""
    conditions = maker.fill(tiles, part.positions, part.symmetries, room)
    return Batch(room.clean, room.degraded, part.samples, np.zeros_like(part.symmetries), conditions)


def _made_ahead(
    filled: Generator[tuple[Picks, Pairs], None, None], maker: PairMaker, num_threads: int, depth: int,
    allocate: Allocate | None,
) -> Iterator[Batch]:
    """The batches of pairs made of clean tiles that were read, several made at a time."""
    rooms = Rooms(maker.pair_shape, depth + BATCHES_IN_USE, allocate)
    with closing(filled):
        items = ((maker, tiles.clean, part, rooms.take(len(part.samples))) for part, tiles in filled)
        yield from ahead(_made, items, num_threads, depth)


def _filled_from_runs(
    reader: ShardReader, parts: Iterator[Picks], batch_size: int, order: Order, config: StreamConfig,
    allocate: Allocate | None, num_in_use: int,
) -> Generator[tuple[Picks, Pairs], None, None]:
    """What batches are to hold, in rooms filled out of runs that are read ahead, each once; a run's samples go straight
    to the batches they are for. A room is valid until `num_in_use` more have been asked for.
    """
    run_samples, window = (1, 0) if isinstance(order, UniformOrder) else (order.run_samples, order.window_samples)
    span, lead = window + batch_size, config.lead_samples
    num_rooms = -(-(span + lead) // batch_size) + 1 + num_in_use
    fetcher = Fetcher(reader, config.access.num_connections)
    roomy = with_room(parts, Rooms(reader.tile_shape, num_rooms, allocate, reader.num_members))
    try:
        for part, room, runs in read_ahead(roomy, fetcher.fetch, run_samples, span, lead):
            for run in runs:
                result_of(run.done)
            yield part, room
    finally:
        fetcher.close()
