"""Reading ahead by threads: whole batches, or runs of neighbouring samples for many batches. Stages are iterators."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from srcnn import signals
from srcnn.reader import Allocate, Pairs, ShardReader

WARNING_SECONDS = 0.2  # how soon a warning is heeded that comes while batches are waited for


class Part(Protocol):
    """What a batch is to hold: samples (N,) int64, crops (N, 2) or None, and how far the stream is after it."""

    @property
    def samples(self) -> np.ndarray: ...

    @property
    def crops(self) -> np.ndarray | None: ...

    @property
    def position(self) -> int: ...


PartT = TypeVar("PartT", bound=Part)
ResultT = TypeVar("ResultT")


def ahead(
    function: Callable[..., ResultT], items: Iterable[tuple[Any, ...]], num_threads: int, depth: int
) -> Generator[ResultT, None, None]:
    """`function(*item)` for each item, in order, `depth` of them computed ahead by threads.

    An error is raised in its place. Closing the generator ends the threads.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(num_threads, "ahead")
    try:
        coming = deque(pool.submit(function, *item) for item in islice(remaining, depth))
        while coming:
            result = result_of(coming.popleft())
            coming.extend(pool.submit(function, *item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=signals.stop_requested() is None, cancel_futures=True)


def result_of(future: Future[ResultT]) -> ResultT:
    """Its result. Raises Stopped where it is not there yet and the process is told to stop: a read may take minutes."""
    while not (future.done() or wait([future], WARNING_SECONDS).done):
        if warning := signals.stop_requested():
            raise warning
    return future.result()


class Rooms:
    """Room for one batch after the other: the same `num_rooms` rooms in turn."""

    def __init__(
        self, tile_shape: tuple[int, ...], num_rooms: int, allocate: Allocate | None = None, num_members: int = 2
    ) -> None:
        self._tile_shape, self._allocate, self._num_members = tile_shape, allocate, num_members
        self._rooms: deque[Pairs] = deque(maxlen=num_rooms)

    def take(self, size: int) -> Pairs:
        """The next room, for a batch of this size."""
        if len(self._rooms) < (self._rooms.maxlen or 0):
            self._rooms.append(Pairs(size, self._tile_shape, self._allocate, self._num_members))
        else:
            self._rooms.rotate(-1)
        room = self._rooms[-1]
        return room if len(room.rows) == size else Pairs(size, self._tile_shape, num_members=self._num_members)


def with_room(parts: Iterable[PartT], rooms: Rooms) -> Iterator[tuple[PartT, Pairs]]:
    """Each part with room for its batch."""
    return ((part, rooms.take(len(part.samples))) for part in parts)


class Planned(NamedTuple):
    """A batch to come: what it is to hold, its room, and the runs that are being read into it."""

    part: Any
    room: Pairs
    runs: list[Run]


@dataclass
class Run:
    """Neighbouring samples that are read at once, each into the row of the batch that wants it."""

    first_position: int
    places: list[tuple[int, Pairs, int, np.ndarray | None]]  # sample, room, row, crop
    done: Future[None] = field(init=False)  # from the fetch on


def read_ahead(
    parts: Iterable[tuple[PartT, Pairs]], fetch: Callable[[Run], Future[None]], run_samples: int, span: int, lead: int
) -> Iterator[Planned]:
    """Batches whose runs are under way: `fetch(run)` was called at least `lead` positions of the stream before.

    A run is fetched once for all its uses within `span` positions, which are known by then.
    """
    coming: deque[Planned] = deque()
    open_runs: dict[int, Run] = {}  # whose uses are still being found, in the order of their first use
    for part, room in parts:
        runs: dict[int, Run] = {}
        numbers = (part.samples // run_samples).tolist()
        for row, (sample, number) in enumerate(zip(part.samples.tolist(), numbers, strict=True)):
            run = open_runs.get(number)
            if run is None:
                run = open_runs[number] = Run(part.position, [])
            run.places.append((sample, room, row, None if part.crops is None else part.crops[row]))
            runs[number] = run
        coming.append(Planned(part, room, list(runs.values())))
        _fetch_known(open_runs, fetch, part.position - span)
        while part.position - coming[0].part.position >= span + lead:
            yield coming.popleft()
    _fetch_known(open_runs, fetch, None)
    yield from coming


def _fetch_known(open_runs: dict[int, Run], fetch: Callable[[Run], Future[None]], until: int | None) -> None:
    """Begins to fetch the runs whose first use is not after `until`; None: all."""
    while open_runs:
        number, run = next(iter(open_runs.items()))
        if until is not None and run.first_position > until:
            return
        run.done = fetch(open_runs.pop(number))


class Fetcher:
    """Reads runs in threads, straight into the batches that want them."""

    def __init__(self, reader: ShardReader, num_threads: int) -> None:
        self.reader = reader
        self._pool = ThreadPoolExecutor(num_threads, "fetch")

    def fetch(self, run: Run) -> Future[None]:
        """Begins to read a run."""
        return self._pool.submit(self._fetch, run.places)

    def _fetch(self, places: list[tuple[int, Pairs, int, np.ndarray | None]]) -> None:
        samples = [place[0] for place in places]
        first = min(samples)
        contents = self.reader.fetch(first, max(samples) + 1)
        for sample, room, row, crop in places:
            self.reader.unpack(sample, contents[sample - first], room, row, crop)

    def close(self) -> None:
        """Calls off what has not begun and waits for the rest, which does not try again what fails."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.reader.close()
        self._pool.shutdown(wait=signals.stop_requested() is None)
        self.reader.close()  # what the last ones have opened
