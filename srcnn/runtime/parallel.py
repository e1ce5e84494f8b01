"""Work spread over threads; results in the order of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

from srcnn.runtime import signals

POLL_SECONDS = 0.2  # how soon a stop signal is seen that comes while a result is waited for
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_order(
    pool: Executor | None,
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    ahead: int,
    result_of: Callable[[Future[ResultT]], ResultT] = Future.result,
) -> Generator[ResultT, None, None]:
    """`function(item)` of each item, in their order; an error is raised in its place.

    `ahead` items, and no more, are taken from `items` after the one whose result comes next, also without a pool.
    `result_of` waits for a result.
    """
    pending: deque[ItemT | Future[ResultT]] = deque()

    def next_result() -> ResultT:
        item = pending.popleft()
        return result_of(item) if isinstance(item, Future) else function(item)

    try:
        for item in items:
            pending.append(pool.submit(function, item) if pool else item)
            if len(pending) > ahead:
                yield next_result()
        while pending:
            yield next_result()
    finally:
        for waiting in pending:
            if isinstance(waiting, Future):
                waiting.cancel()


def in_order_until_stopped(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], num_threads: int, ahead: int
) -> Generator[ResultT, None, None]:
    """`in_order` by threads of its own, which end with it. Raises Stopped as `result_or_stop`."""
    pool = ThreadPoolExecutor(num_threads, "ahead")
    try:
        yield from in_order(pool, function, items, ahead, result_or_stop)
    finally:
        pool.shutdown(wait=signals.stop_requested() is None, cancel_futures=True)


def result_or_stop(future: Future[ResultT]) -> ResultT:
    """Its result. Raises Stopped where it is not there yet and a stop signal came: a read may take minutes."""
    while not (future.done() or wait([future], POLL_SECONDS).done):
        if stopped := signals.stop_requested():
            raise stopped
    return future.result()


@contextmanager
def single_threaded_pool(num_threads: int) -> Iterator[Executor | None]:
    """Threads in which PyTorch computes on one core; None, for the caller to do it all, where one is enough.

    Several small convolutions side by side use the cores better than one whose loops are split over them.
    """
    if num_threads <= 1:
        yield None
        return
    import torch  # takes seconds, and reading data does without it

    around = torch.get_num_threads()
    all_started = Barrier(num_threads)

    def start() -> None:
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, "srcnn")
    try:
        for started in [pool.submit(start) for _ in range(num_threads)]:
            started.result()
        # The setting is each thread's own, but it is also what threads begun later take over.
        torch.set_num_threads(around)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
