"""Reading ahead: runs of neighbouring samples into reused memory, batches by threads. All stages are iterators."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from srcnn.reader import Allocate, Pairs, ShardReader


class Part(Protocol):
    """What a batch is to hold: samples (N,) int64, and how far the stream is after it."""

    @property
    def samples(self) -> np.ndarray: ...

    @property
    def position(self) -> int: ...


ItemT = TypeVar("ItemT")
PartT = TypeVar("PartT", bound=Part)
ResultT = TypeVar("ResultT")


def ahead(
    function: Callable[..., ResultT], items: Iterable[tuple[Any, ...]], num_threads: int, depth: int
) -> Generator[ResultT, None, None]:
    """`function(*item)` for each item, in order, `depth` of them computed ahead by threads.

    An error is raised in its place. Closing the generator ends the threads.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(num_threads, "ahead") as pool:
        try:
            coming = deque(pool.submit(function, *item) for item in islice(remaining, depth))
            while coming:
                result = coming.popleft().result()
                coming.extend(pool.submit(function, *item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def with_room(
    items: Iterable[ItemT],
    size_of: Callable[[ItemT], int],
    tile_shape: tuple[int, ...],
    num_rooms: int,
    allocate: Allocate | None = None,
) -> Iterator[tuple[ItemT, Pairs]]:
    """Each item with room for its batch of `size_of(item)` pairs: the same `num_rooms` rooms in turn."""
    rooms: list[Pairs] = []
    for number, item in enumerate(items):
        size = size_of(item)
        if len(rooms) < num_rooms:
            rooms.append(Pairs(size, tile_shape, allocate))
        room = rooms[number % num_rooms]
        yield item, room if len(room.rows) == size else Pairs(size, tile_shape)


class Runs:
    """Runs of neighbouring samples, read by `num_threads` threads into memory that is used again when a run is dropped.

    New memory for each run would cost more than copying it: the system has to clear every page of it.
    """

    def __init__(self, reader: ShardReader, run_samples: int, num_threads: int) -> None:
        self.reader, self.run_samples = reader, run_samples
        self._pool = ThreadPoolExecutor(num_threads, "fetch")
        self._free: deque[Pairs] = deque()

    def fetch(self, number: int) -> Future[Run]:
        """Begins to read samples number * run_samples and those after it."""
        return self._pool.submit(self._fetch, number * self.run_samples)

    def _fetch(self, first: int) -> Run:
        contents = self.reader.fetch(first, min(first + self.run_samples, self.reader.num_samples))
        if self.reader.manifest.encoding == "any":  # to be cut where each use wants it
            return Run(contents, None, self._free)
        try:
            room = self._free.pop()
        except IndexError:
            room = Pairs(self.run_samples, self.reader.tile_shape)
        for row, content in enumerate(contents):
            self.reader.unpack(first + row, content, room, row)
        return Run([], room, self._free)

    def cancel(self) -> None:
        """Calls off what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Calls off what has not begun and waits for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def copy_pairs(room: Pairs, samples: np.ndarray, runs: RunsByNumber, run_samples: int) -> None:
    """Fills a batch out of the runs that hold its samples, when they have come."""
    rows = {number: run.result().rows for number, run in runs.items()}
    numbers, places = (array.tolist() for array in np.divmod(samples, run_samples))
    for (clean, degraded), number, place in zip(room.rows, numbers, places, strict=True):
        clean[:], degraded[:] = rows[number][place]


class Run:
    """The tiles of a run, or the bytes of its samples where these are pictures of any size."""

    def __init__(self, contents: list[memoryview], room: Pairs | None, free: deque[Pairs]) -> None:
        self.contents, self.rows = contents, room.rows if room else []
        self._room, self._free = room, free

    def __del__(self) -> None:
        if self._room is not None:
            self._free.append(self._room)


RunsByNumber = dict[int, "Future[Run]"]


def read_ahead(
    parts: Iterable[PartT], fetch: Callable[[int], Future[Run]], run_samples: int, keep: int, lead: int
) -> Iterator[tuple[PartT, RunsByNumber]]:
    """Each part with the runs its samples lie in, `fetch(run)` having been called at least `lead` positions before.

    A run is fetched once where all its uses lie within `keep` positions of the stream, and dropped after the last.
    """
    recent: dict[int, _Recent] = {}  # in the order of their first use
    waiting: deque[tuple[PartT, RunsByNumber]] = deque()
    for part in parts:
        while recent and next(iter(recent.values())).position < part.position - keep:
            del recent[next(iter(recent))]
        needed: RunsByNumber = {}
        for run, num_uses in Counter((part.samples // run_samples).tolist()).items():
            if run not in recent:
                recent[run] = _Recent(part.position, fetch(run), run_samples)
            needed[run] = recent[run].content
            recent[run].num_unused -= num_uses
            if recent[run].num_unused <= 0:
                del recent[run]
        waiting.append((part, needed))
        while part.position - waiting[0][0].position >= lead:
            yield waiting.popleft()
    yield from waiting


@dataclass
class _Recent:
    """A run that will be used again: the position of its first use, what is being fetched, samples not used yet."""

    position: int
    content: Future[Run]
    num_unused: int
