"""Reading ahead: blocks of neighbouring samples, each once for all the batches that hold some of them."""

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

SampleUse = tuple[int, PairBuffer, int, np.ndarray | None]  # sample, buffer, index in it, crop


class BufferRing:
    """The same `num_buffers` buffers in turn, for one batch after the other."""

    def __init__(
        self, tile_shape: tuple[int, ...], num_buffers: int, allocate: Allocate | None = None, num_members: int = 2
    ) -> None:
        self._tile_shape, self._allocate, self._num_members = tile_shape, allocate, num_members
        self._buffers: deque[PairBuffer] = deque(maxlen=num_buffers)

    def take(self, num_pairs: int) -> PairBuffer:
        """The next buffer, for a batch of this size."""
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
    """A block of neighbouring samples that is read once, at the position of the batch that needs it first."""

    first_position: int
    uses: list[SampleUse]
    done: Future[None] = field(init=False)  # from the fetch on


class PlannedBatch(NamedTuple):
    """A batch to come: what it is to hold, its buffer, and the blocks that are being read into it."""

    numbers: BatchNumbers
    buffer: PairBuffer
    blocks: list[ReadBlock]


def read_ahead(
    batches: Iterable[tuple[BatchNumbers, PairBuffer]], fetch: Callable[[ReadBlock], Future[None]], block_samples: int,
    span: int, lead: int,
) -> Iterator[PlannedBatch]:
    """Batches whose blocks are under way: `fetch(block)` was called at least `lead` positions of the stream before.

    A block is fetched once for all its uses within `span` positions, which are known by then.
    """
    planned: deque[PlannedBatch] = deque()
    open_blocks: dict[int, ReadBlock] = {}  # whose uses are still being found, in the order of their first use
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
        _fetch_known(open_blocks, fetch, numbers.position - span)
        while numbers.position - planned[0].numbers.position >= span + lead:
            yield planned.popleft()
    _fetch_known(open_blocks, fetch, None)
    yield from planned


def _fetch_known(
    open_blocks: dict[int, ReadBlock], fetch: Callable[[ReadBlock], Future[None]], until: int | None
) -> None:
    """Begins to fetch the blocks whose first use is not after `until`; None: all."""
    while open_blocks:
        number, block = next(iter(open_blocks.items()))
        if until is not None and block.first_position > until:
            return
        block.done = fetch(open_blocks.pop(number))


class BlockFetcher:
    """Reads blocks in threads, straight into the batches that hold their samples."""

    def __init__(self, dataset: ShardDataset, num_threads: int) -> None:
        self.dataset = dataset
        self._pool = ThreadPoolExecutor(num_threads, "fetch")

    def fetch(self, block: ReadBlock) -> Future[None]:
        """Begins to read a block."""
        return self._pool.submit(self._fetch, block.uses)

    def _fetch(self, uses: list[SampleUse]) -> None:
        samples = [use[0] for use in uses]
        first = min(samples)
        contents = self.dataset.fetch(first, max(samples) + 1)
        for sample, buffer, index, crop in uses:
            self.dataset.unpack(sample, contents[sample - first], buffer, index, crop)

    def close(self) -> None:
        """Calls off what has not begun and waits for the rest, which does not try again what fails."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.dataset.close()
        self._pool.shutdown(wait=signals.stop_requested() is None)
        self.dataset.close()  # what the last ones have opened
