"""Work on many tasks by processes of this machine or by a Dask cluster; what stops it becomes one clear error."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from tqdm import tqdm

from srcnn.data.manifest import writer_versions

MAX_SUBMITTED = 4096  # chunks of tasks that are with the workers: enough for a cluster, little memory for its scheduler
MAX_CHUNK = 256
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SCHEDULER_SECONDS = 60.0  # for one that is just being started
FIRST_WORKER_SECONDS = 600.0
WORKER_CHECK_SECONDS = 15.0
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class ShardsFailed(RuntimeError):
    """Shard making had to stop; finished shards are kept. The message says why and what to do."""


class Workers:
    """An executor that is given, or else `num` processes that are started once, for all the work there is; where `num`
    is 1 there are none, and this process does the work.

    BLAS gets one thread in each process, as the other cores are busy already.
    """

    def __init__(self, num: int, executor: Executor | None = None) -> None:
        self.num = num
        self.are_local = executor is None
        self._executor = executor
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> Workers:
        if self.are_local and self.num > 1:
            self._environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # NumPy looks when it is imported: in a worker only
            # spawn: the same on every platform, and no threads are forked
            self._executor = ProcessPoolExecutor(self.num, get_context("spawn"), initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self.are_local and self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)
        for name, value in self._environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def start(self, work: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], chunk: int = 1) -> Iterator[ResultT]:
        """Results of `work` on every task, in the order of the tasks; workers begin at once, in the order of calls.

        Tasks go to the workers `chunk` at a time, and a few thousand chunks ahead of the result that comes next.
        """
        if (executor := self._executor) is None:
            return map(work, tasks)
        work_on_chunk = partial(_work_on_chunk, work, writer_versions())
        chunks = (tasks[first : first + chunk] for first in range(0, len(tasks), chunk))
        futures = (executor.submit(work_on_chunk, part) for part in chunks)
        return chain.from_iterable(_results(deque(islice(futures, MAX_SUBMITTED)), futures))

    def run(
        self, work: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], title: str, show_progress: bool
    ) -> list[ResultT]:
        """The same, all of them, with a progress bar. Raises ShardsFailed as `clear_errors`."""
        chunk = len(tasks) // (64 * self.num) if self.are_local else min(MAX_CHUNK, len(tasks) // MAX_SUBMITTED)
        results = self.start(work, tasks, chunk=max(1, chunk))
        with clear_errors():
            return list(tqdm(results, title, len(tasks), disable=not (show_progress and tasks) or None))


def _results(
    submitted: deque[Future[list[ResultT]]], more: Iterator[Future[list[ResultT]]]
) -> Iterator[list[ResultT]]:
    """In order; for each one of `more` is submitted."""
    try:
        while submitted:
            result = submitted.popleft().result()
            submitted.extend(islice(more, 1))
            yield result
    finally:
        for future in submitted:
            future.cancel()


def _work_on_chunk(
    work: Callable[[TaskT], ResultT], versions: dict[str, str], tasks: Sequence[TaskT]
) -> list[ResultT]:
    """What a worker does. Raises ShardsFailed where it would make other pixels than the main process."""
    if (here := writer_versions()) != versions:
        raise ShardsFailed(f"the worker on {socket.gethostname()} has {here}, the main process {versions}: the pixels "
                           "would differ; install the same on all machines")
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
        raise ShardsFailed(f"the disk takes no more ({os.strerror(error.errno)}); free some space and start again to "
                           "go on") from error


def num_cores() -> int:
    """Cores this process may use; all of them on systems that cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """Leaves Ctrl-C to the main process, and ends when that is killed: workers would wait for ever, or write beside
    those of the next start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The workers of the Dask scheduler at an address such as tcp://host:8786, as a concurrent.futures executor.

    A task whose worker died, or fell silent for `distributed.scheduler.worker-ttl`, is done by another; three deaths
    (`distributed.scheduler.allowed-failures`) end it. Workers may come and go.

    Raises:
        ValueError: the package is not installed.
        ShardsFailed: no scheduler or no worker is there, or they were lost.
    """
    try:
        import distributed
    except ImportError as error:
        raise ValueError(f"{address}: needs Dask: pip install 'srcnn[cluster]'") from error
    try:
        client = distributed.Client(  # type: ignore[no-untyped-call]  # Dask has few types
            address, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TypeError: no address at all
        raise ShardsFailed(f"{address}: no Dask scheduler answers there: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
        except TimeoutError as error:
            raise ShardsFailed(f"{address}: no worker came within {FIRST_WORKER_SECONDS:.0f} s; start some with: "
                               f"dask worker {address} --nthreads 1") from error
        _check_imports(address, client)
        finished = threading.Event()
        watching = threading.Thread(target=_warn_without_workers, args=(address, client, finished), daemon=True)
        watching.start()
        try:
            yield client.get_executor(pure=False)  # type: ignore[no-untyped-call]
        except distributed.KilledWorker as error:
            raise ShardsFailed(f"{address}: a task ended several workers, the last of them {error.last_worker.address} "
                               "(no memory, or other packages?); see its log, and start again to go on") from error
        except CancelledError as error:
            raise ShardsFailed(f"{address}: the scheduler is gone; start again to go on") from error
        finally:
            finished.set()
            watching.join()


def _check_imports(address: str, client: Any) -> None:
    """Raises ShardsFailed where the scheduler or a worker lacks this package, which would end it without a word."""
    program = "import shards.write"
    try:
        client.run_on_scheduler(exec, program)
        errors = client.run(exec, program, on_error="return")
    except ImportError as error:
        errors = {"the scheduler": error}
    for name, problem in errors.items():
        if problem is not None:
            raise ShardsFailed(f"{address}: {name} cannot do this work: {problem}; start the scheduler and all workers "
                               "with PYTHONPATH set to the folder with shards/, and the same packages")


def _warn_without_workers(address: str, client: Any, finished: threading.Event) -> None:
    while not finished.wait(WORKER_CHECK_SECONDS):
        if client.status == "running" and not client.nthreads():
            logger.warning("%s: no worker is left; waiting for new ones", address)
