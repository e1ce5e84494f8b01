"""Work in parallel: how many cores there are, pools whose results come in the order of the inputs, a time limit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier, Thread
from typing import TypeVar

from srcnn.runtime import signals

SPIN_COUNT = "40000"  # of GNU's OpenMP, a tenth of a millisecond: on idle cores two threads lose 2 % by it
POLL_SECONDS = 0.2  # how often a waiting thread checks for a stop request
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def num_cores() -> int:
    """Cores this process may use; all cores on systems without CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def let_waiting_threads_sleep() -> None:
    """Makes OpenMP's threads, which PyTorch computes with, sleep soon when they wait for each other; to be called
    before torch is imported. OMP_WAIT_POLICY or GOMP_SPINCOUNT in the environment wins.

    By default they wait in a loop for milliseconds. Beside other programs the one that has a core then waits in it for
    the other, which has none: with three programs on two cores two threads train 2.5 times as fast with this setting.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def in_order(
    pool: Executor | None, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], ahead: int,
    result_of: Callable[[Future[ResultT]], ResultT] = Future.result,
) -> Generator[ResultT, None, None]:
    """Yields `function(item)` for each item, in their order; an exception of the function is raised at its turn.

    When a result is yielded, exactly `ahead` items after it (fewer at the end) have been taken from `items`, with a
    pool and without one. `result_of` waits for a future's result. At an error, and when the generator is closed, items
    that were submitted and have not started are cancelled, as the caller may go on using the pool.
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
    """`in_order` with a thread pool of its own. Raises StopRequested as `result_or_stop` does."""
    pool = ThreadPoolExecutor(num_threads, "ahead")
    try:
        yield from in_order(pool, function, items, ahead, result_or_stop)
    finally:
        pool.shutdown(wait=signals.stop_requested() is None, cancel_futures=True)


def result_or_stop(future: Future[ResultT]) -> ResultT:
    """Waits for the result, which may take minutes. Raises StopRequested if a stop signal arrives meanwhile."""
    while not (future.done() or wait([future], POLL_SECONDS).done):
        if stop := signals.stop_requested():
            raise stop
    return future.result()


def call_with_timeout(work: Callable[[], ResultT], seconds: float) -> ResultT:
    """`work()`, in a thread that is left behind if it takes longer. Raises TimeoutError then."""
    future: Future[ResultT] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="with a timeout", daemon=True).start()
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


@contextmanager
def single_threaded_pool(num_threads: int) -> Iterator[Executor | None]:
    """A pool of threads in each of which PyTorch uses one core; None for one thread, the caller's own.

    Several small convolutions side by side use the cores better than one convolution split over them.
    """
    if num_threads <= 1:
        yield None
        return
    import torch  # takes seconds to import, and the data loader does not need it

    num_threads_before = torch.get_num_threads()
    all_started = Barrier(num_threads)

    def start() -> None:
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, "srcnn")
    try:
        for started in [pool.submit(start) for _ in range(num_threads)]:
            started.result()
        # The setting is per thread, but new threads start with the value that was set last.
        torch.set_num_threads(num_threads_before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
