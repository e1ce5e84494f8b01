"""Work on many tasks over processes or a cluster, with a progress bar; what stops it becomes one clear error."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from tqdm import tqdm

from srcnn import manifest

MOST_IN_FLIGHT = 4096  # tasks that are with the workers: enough for a cluster, little memory for its scheduler
LARGEST_CHUNK = 256
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class ShardsFailed(RuntimeError):
    """Shard making had to stop; finished shards are kept. The message says why and what to do."""


class Workers:
    """What does the work: an executor that is given, or else `num` processes that are started once, for all the work
    there is; where `num` is 1 there are none, this one does it.

    BLAS gets one thread in each process: the cores are theirs already.
    """

    def __init__(self, num: int, executor: Executor | None = None) -> None:
        self.num = num
        self._given = executor
        self._pool: ProcessPoolExecutor | None = None
        self._before: dict[str, str | None] = {}

    @property
    def are_here(self) -> bool:
        """Whether the workers are processes of this machine, `num` of them."""
        return self._given is None

    def __enter__(self) -> Workers:
        if self.are_here and self.num > 1:
            self._before = {name: os.environ.get(name) for name in THREADS}
            os.environ.update(dict.fromkeys(THREADS, "1"))  # NumPy looks when it is imported, so in a worker only
            # spawn: the same on every platform, and no threads are forked
            self._pool = ProcessPoolExecutor(self.num, get_context("spawn"), initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def start(self, work: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], chunk: int = 1) -> Iterator[ResultT]:
        """Results of `work` on every task, in the order of the tasks; workers begin at once, in the order of calls.

        Tasks go to the workers `chunk` at a time, and a few thousand chunks ahead of the result that comes next.
        """
        executor = self._given or self._pool
        if executor is None:
            return map(work, tasks)
        chunks = (tasks[first : first + chunk] for first in range(0, len(tasks), chunk))
        each = partial(_each, work, manifest.writer_versions())
        waiting = deque(executor.submit(each, part) for part in islice(chunks, MOST_IN_FLIGHT))
        return chain.from_iterable(_results(executor, each, chunks, waiting))

    def run(
        self, work: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], title: str, show_progress: bool
    ) -> list[ResultT]:
        """The same, all of them, with a progress bar. Raises ShardsFailed as `clear_errors`."""
        chunk = len(tasks) // (64 * self.num) if self.are_here else min(LARGEST_CHUNK, len(tasks) // MOST_IN_FLIGHT)
        results = self.start(work, tasks, chunk=max(1, chunk))
        with clear_errors():
            return list(tqdm(results, title, len(tasks), disable=not (show_progress and tasks) or None))


def _results(
    executor: Executor, work: Callable[[Any], list[Any]], tasks: Iterator[Any], waiting: deque[Future[list[Any]]]
) -> Iterator[list[Any]]:
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(executor.submit(work, task) for task in islice(tasks, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _each(
    work: Callable[[TaskT], ResultT], versions: dict[str, str], tasks: Sequence[TaskT]
) -> list[ResultT]:
    """What a worker does. Raises ShardsFailed where it would make other pixels than the one who asked."""
    if (here := manifest.writer_versions()) != versions:
        told = f"the worker on {socket.gethostname()} has {here}, the machine that asks {versions}"
        raise ShardsFailed(f"{told}: the pixels would differ; install the same on all machines")
    return [work(task) for task in tasks]


@contextmanager
def clear_errors() -> Iterator[None]:
    """What stops the work becomes ShardsFailed: the disk or the memory is full, or a worker died."""
    try:
        yield
    except BrokenProcessPool as error:
        raise ShardsFailed("a worker process died (killed, no memory?); start again to go on") from error
    except MemoryError as error:
        raise ShardsFailed("out of memory; start again with fewer --num_workers to go on") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        told = f"the disk takes no more ({os.strerror(error.errno)})"
        raise ShardsFailed(f"{told}; free some space and start again to go on") from error


def num_cores() -> int:
    """Cores this process may use; all of them on systems that cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a parent that was killed takes its workers with it, which otherwise
    would wait for ever, or write beside those of the next start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)
