"""Work spread over threads, each of which computes on one core; results in the order of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@contextmanager
def lone_threads(num_threads: int) -> Iterator[Executor | None]:
    """Threads in which PyTorch computes on one core; None, for the caller to do it all, where one is enough.

    Several small convolutions side by side use the cores better than one whose loops are split over them.
    """
    if num_threads <= 1:
        yield None
        return
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


def in_order(
    pool: Executor | None, work: Callable[[JobT], ResultT], jobs: Iterable[JobT], ahead: int
) -> Iterator[ResultT]:
    """`work(job)` of each job, in their order.

    `ahead` jobs, and no more, are taken from `jobs` after the one whose result comes next, also without a pool.
    """
    waiting: deque[JobT | Future[ResultT]] = deque()

    def next_result() -> ResultT:
        item = waiting.popleft()
        return item.result() if isinstance(item, Future) else work(item)

    try:
        for job in jobs:
            waiting.append(pool.submit(work, job) if pool else job)
            if len(waiting) > ahead:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        for item in waiting:
            if isinstance(item, Future):
                item.cancel()
