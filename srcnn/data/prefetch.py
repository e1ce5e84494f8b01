"""Prefetching: reads blocks of neighbouring samples ahead of time, each once for all the batches that need it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from srcnn.data.dataset import Allocate, PairBuffer, ShardDataset
from srcnn.data.shuffle import BatchNumbers
from srcnn.runtime import signals

SampleUse = tuple[int, PairBuffer, int, np.ndarray | None]  # sample, the buffer it goes to, index in that, crop


class BufferRing:
    """Provides `num_buffers` buffers in rotation, so that each is reused after `num_buffers` batches."""

    def __init__(
        self, tile_shape: tuple[int, ...], num_buffers: int, allocate: Allocate | None = None, num_members: int = 2
    ) -> None:
        self._tile_shape, self._allocate, self._num_members = tile_shape, allocate, num_members
        self._buffers: deque[PairBuffer] = deque(maxlen=num_buffers)

    def take(self, num_pairs: int) -> PairBuffer:
        """The next buffer; one that is not reused if the size differs from that of the first batches."""
        if len(self._buffers) < (self._buffers.maxlen or 0):
            self._buffers.append(PairBuffer(num_pairs, self._tile_shape, self._allocate, self._num_members))
        else:
            self._buffers.rotate(-1)
        buffer = self._buffers[-1]
        if len(buffer.tiles) != num_pairs:
            return PairBuffer(num_pairs, self._tile_shape, num_members=self._num_members)
        return buffer


@dataclass
class ReadBlock:
    """A block of neighbouring samples and their uses; `first_position` is of the batch that needs it first."""

    first_position: int
    uses: list[SampleUse]
    done: Future[None] = field(init=False)  # set when the block is fetched


class PlannedBatch(NamedTuple):
    """A batch that is being read: its samples, its buffer, and the blocks they come from."""

    numbers: BatchNumbers
    buffer: PairBuffer
    blocks: list[ReadBlock]


def read_ahead(
    batches: Iterable[tuple[BatchNumbers, PairBuffer]], fetch: Callable[[ReadBlock], Future[None]], block_samples: int,
    span: int, lead: int,
) -> Iterator[PlannedBatch]:
    """Yields batches whose blocks were passed to `fetch` at least `lead` positions earlier.

    A block is fetched once for all its samples within `span` positions, after these were collected.
    """
    planned: deque[PlannedBatch] = deque()
    open_blocks: dict[int, ReadBlock] = {}  # not fetched yet, in the order of their first use
    for numbers, buffer in batches:
        blocks: dict[int, ReadBlock] = {}
        block_numbers = (numbers.samples // block_samples).tolist()
        for index, (sample, number) in enumerate(zip(numbers.samples.tolist(), block_numbers, strict=True)):
            block = open_blocks.get(number)
            if block is None:
                block = open_blocks[number] = ReadBlock(numbers.position, [])
            block.uses.append((sample, buffer, index, None if numbers.crops is None else numbers.crops[index]))
            blocks[number] = block
        planned.append(PlannedBatch(numbers, buffer, list(blocks.values())))
        _fetch_until(open_blocks, fetch, numbers.position - span)
        while numbers.position - planned[0].numbers.position >= span + lead:
            yield planned.popleft()
    _fetch_until(open_blocks, fetch, None)
    yield from planned


def _fetch_until(
    open_blocks: dict[int, ReadBlock], fetch: Callable[[ReadBlock], Future[None]], until: int | None
) -> None:
    """Starts to fetch the blocks whose first use is at or before the position `until`; None: all."""
    while open_blocks:
        number, block = next(iter(open_blocks.items()))
        if until is not None and block.first_position > until:
            return
        block.done = fetch(open_blocks.pop(number))


class BlockFetcher:
    """Reads blocks in threads, directly into the buffers of their batches."""

    def __init__(self, dataset: ShardDataset, num_threads: int) -> None:
        self.dataset = dataset
        self._pool = ThreadPoolExecutor(num_threads, "fetch")

    def fetch(self, block: ReadBlock) -> Future[None]:
        """Starts to read a block."""
        return self._pool.submit(self._fetch, block.uses)

    def _fetch(self, uses: list[SampleUse]) -> None:
        samples = [use[0] for use in uses]
        first = min(samples)
        contents = self.dataset.fetch(first, max(samples) + 1)
        for sample, buffer, index, crop in uses:
            self.dataset.unpack(sample, contents[sample - first], buffer, index, crop)

    def close(self) -> None:
        """Cancels the reads that have not started, and waits for the others, which stop to retry."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.dataset.close()
        self._pool.shutdown(wait=signals.stop_requested() is None)
        self.dataset.close()  # files that the last reads opened
