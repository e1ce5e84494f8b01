"""Shards -> this rank's batches: a reader by arithmetic and memory mapping, the order of `order.py`, prefetch."""

from __future__ import annotations

import mmap
import queue
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from srcnn.order import ORDER_VERSION, samples_at, symmetries_at
from srcnn.sample import BLOCK_BYTES, Manifest, ShardError, decode_tile, npy_header_bytes

ItemT = TypeVar("ItemT")


class Batch(NamedTuple):
    """Pairs of tiles as they lie in the shards; uint8 NumPy, nothing shared with later batches.

    Attributes:
        clean, degraded: (N, H, W) or (N, H, W, 3).
        samples: (N,) int64, the numbers of the pairs in their split.
        symmetries: (N,) uint8, 0..7, what `augment` is to do with each pair.
    """

    clean: np.ndarray
    degraded: np.ndarray
    samples: np.ndarray
    symmetries: np.ndarray


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: small, the same on every rank, valid for any number of ranks."""

    seed: int
    epoch: int
    consumed_samples: int
    manifest_hash: str
    order_version: int = ORDER_VERSION


class ShardReader:
    """Random access to the pairs of one split's folder. Shards are mapped when first read, and never parsed if npy.

    Raises (from the constructor and from `read`):
        FileNotFoundError, ShardError: no manifest, or shards that do not match it.
    """

    def __init__(self, folder: Path, max_samples: int = 0) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self.num_samples = self.manifest.num_samples
        if max_samples:
            self.num_samples = min(max_samples, self.num_samples)
        if not self.num_samples:
            raise ShardError(f"{folder}: holds no pairs; make shards of more photos, or give some with --val")
        self._ends = np.cumsum([shard.num_samples for shard in self.manifest.shards])
        self._shards: dict[int, _MappedShard] = {}

    def read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers (N,) -> (clean, degraded), uint8 (N, *tile_shape), in that order."""
        clean = np.empty((len(samples), *self.manifest.tile_shape), np.uint8)
        degraded = np.empty_like(clean)
        numbers = np.searchsorted(self._ends, samples, side="right")
        for row, (number, sample) in enumerate(zip(numbers.tolist(), samples.tolist(), strict=True)):
            shard = self._shards.get(number) or self._map(number)
            shard.read(sample - shard.first_sample, clean[row], degraded[row])
        return clean, degraded

    def _map(self, number: int) -> _MappedShard:
        first = int(self._ends[number]) - self.manifest.shards[number].num_samples
        self._shards[number] = _MappedShard(self.folder, self.manifest, number, first)
        return self._shards[number]


class _MappedShard:
    """One memory-mapped shard; `read` fills rows of a batch."""

    def __init__(self, folder: Path, manifest: Manifest, number: int, first_sample: int) -> None:
        self.first_sample = first_sample
        self.path = folder / manifest.shards[number].name
        self.manifest = manifest
        with self.path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        num_samples = manifest.shards[number].num_samples
        if manifest.stride is None:
            self.members = self._index(num_samples)
        else:
            self.clean, self.degraded = self._views(manifest.stride, num_samples)

    def _views(self, stride: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of all clean and all degraded tiles, without copying or parsing."""
        shape = self.manifest.tile_shape
        if len(self.bytes) < stride * num_samples:
            raise ShardError(f"{self.path}: shorter than {num_samples} pairs; copy it again or make the shards anew")
        pixels = np.frombuffer(self.bytes, np.uint8, stride * num_samples).reshape(num_samples, stride)
        start = BLOCK_BYTES + npy_header_bytes(shape)
        end = start + int(np.prod(shape))
        halves = (pixels[:, : stride // 2], pixels[:, stride // 2 :])
        clean, degraded = (half[:, start:end].reshape(num_samples, *shape) for half in halves)
        return clean, degraded

    def _index(self, num_samples: int) -> list[tuple[slice, slice]]:
        """Where each pair's two members lie; they vary in size, so the tar's headers are walked once."""
        with tarfile.open(self.path, "r:") as tar:
            members = [slice(member.offset_data, member.offset_data + member.size) for member in tar]
        if len(members) != 2 * num_samples:
            found = f"has {len(members)} members, expected {2 * num_samples}"
            raise ShardError(f"{self.path}: {found}; make the shards anew")
        return list(zip(members[::2], members[1::2], strict=True))

    def read(self, sample: int, clean: np.ndarray, degraded: np.ndarray) -> None:
        if self.manifest.stride is not None:
            clean[...], degraded[...] = self.clean[sample], self.degraded[sample]
            return
        for out, place in zip((clean, degraded), self.members[sample], strict=True):
            tile = decode_tile(self.bytes[place], self.manifest.encoding)
            if tile.shape != out.shape:
                raise ShardError(f"{self.path}: pair {sample} has shape {tile.shape}, expected {out.shape}")
            out[...] = tile


def train_batches(
    reader: ShardReader, seed: int, start: int, stop: int, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Batch]:
    """This rank's batches of the global batches from position `start` until `stop` is reached or passed.

    A global batch is the next `batch_size * num_ranks` positions; rank r takes the r-th part. Every rank gives the
    same number of batches, all full: the tail of an epoch is filled up with the beginning of the next one, so that
    over the stream each sample comes exactly once an epoch.
    """
    for global_start in range(start, stop, batch_size * num_ranks):
        positions = global_start + rank * batch_size + np.arange(batch_size)
        samples = samples_at(seed, positions, reader.num_samples)
        yield Batch(*reader.read(samples), samples, symmetries_at(seed, positions))


def val_batches(reader: ShardReader, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Batch]:
    """This rank's share of every sample exactly once, in order, as they are; the last batch may be short."""
    first, last = (reader.num_samples * part // num_ranks for part in (rank, rank + 1))
    for start in range(first, last, batch_size):
        samples = np.arange(start, min(last, start + batch_size))
        yield Batch(*reader.read(samples), samples, np.zeros(len(samples), np.uint8))


def prefetch(items: Iterator[ItemT], depth: int) -> Iterator[ItemT]:
    """The same items, made ahead by one thread, at most `depth` at a time; its error is raised at its place.

    Closing the generator ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stopped), name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


_END = object()


def _produce(items: Iterator[Any], ready: queue.Queue[Any], stopped: threading.Event) -> None:
    """The thread of `prefetch`: puts items, then the end or the error, until it is told to stop."""
    try:
        for item in items:
            _offer(item, ready, stopped)
            if stopped.is_set():
                return
        _offer(_END, ready, stopped)
    except BaseException as error:
        _offer(error, ready, stopped)


def _offer(item: Any, ready: queue.Queue[Any], stopped: threading.Event) -> None:
    """Puts an item as soon as there is room; gives up when told to stop."""
    while not stopped.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue
