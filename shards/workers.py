"""Maps functions over many tasks with processes of this machine or a Dask cluster."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from tqdm import tqdm

from srcnn.data.manifest import library_versions
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.parallel import in_order

MAX_SUBMITTED = 4096  # chunks of tasks: enough for a cluster, and little memory for its scheduler
MAX_CHUNK = 256  # tasks
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SCHEDULER_SECONDS = 60.0  # it may just be starting
FIRST_WORKER_SECONDS = 600.0
WORKER_CHECK_SECONDS = 15.0
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class ShardsFailed(UserError):
    """Making shards stopped; finished shards are kept. The message gives the reason and a remedy."""


class WorkerPool:
    """`num` worker processes, or an `executor` that is given; with `num` 1 this process does the work.

    BLAS uses one thread in each process, as the other cores are busy.
    """

    def __init__(self, num: int, executor: Executor | None = None) -> None:
        self.num = num
        self.are_local = executor is None
        self._executor = executor
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> WorkerPool:
        if self.are_local and self.num > 1:
            self._environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # read when NumPy is imported, so only by workers
            # spawn: works on every platform, and forks no threads
            self._executor = ProcessPoolExecutor(self.num, _WorkerContext(), initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self.are_local and self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)
        for name, value in self._environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def map(self, function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], chunk: int = 1) -> Iterator[ResultT]:
        """Yields `function(task)` in the order of the tasks, which are submitted `chunk` at a time."""
        if self._executor is None:
            return map(function, tasks)
        work = partial(_work_on_chunk, function, library_versions())
        chunks = (tasks[first : first + chunk] for first in range(0, len(tasks), chunk))
        return chain.from_iterable(in_order(self._executor, work, chunks, MAX_SUBMITTED))

    def map_all(
        self, function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], title: str, show_progress: bool
    ) -> list[ResultT]:
        """`function(task)` of all tasks, with a progress bar. Raises ShardsFailed as `explain_errors`."""
        chunk = len(tasks) // (64 * self.num) if self.are_local else min(MAX_CHUNK, len(tasks) // MAX_SUBMITTED)
        results = self.map(function, tasks, chunk=max(1, chunk))
        with explain_errors():
            return list(tqdm(results, title, len(tasks), disable=not (show_progress and tasks) or None))


def _work_on_chunk(
    function: Callable[[TaskT], ResultT], versions: dict[str, str], tasks: Sequence[TaskT]
) -> list[ResultT]:
    """Runs in a worker. Raises ShardsFailed if its libraries would make other pixels than those of the main process."""
    if (here := library_versions()) != versions:
        raise ShardsFailed(f"the worker on {socket.gethostname()} has {here}, the main process {versions}: the pixels "
                           "would differ; install the same versions on all machines")
    return [function(task) for task in tasks]


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turns a dead worker, a full disk or a lack of memory into ShardsFailed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise ShardsFailed("a worker process died (killed? out of memory?); run the same command again to continue"
                           ) from error
    except MemoryError as error:
        raise ShardsFailed("out of memory; run the same command again with fewer --num_workers to continue") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ShardsFailed(f"cannot write to the disk ({os.strerror(error.errno)}); free some space and run the same "
                           "command again to continue") from error


class _Worker(SpawnProcess):
    """A process that Ctrl-C, which the main process handles, never reaches: not even while its Python starts."""

    def start(self) -> None:
        if sys.platform == "win32":  # which knows no masks
            return super().start()
        resource_tracker.ensure_running()  # which `start` would else start itself, and then unblock SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WorkerContext(SpawnContext):
    Process = _Worker


def _start_worker() -> None:
    """Ignores Ctrl-C, where it is not blocked, and exits when the main process is killed.

    Otherwise workers would wait forever, or write at the same time as those of the next run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """An executor over the workers of a Dask scheduler at an address such as tcp://host:8786.

    If a worker dies, or sends no heartbeat for `distributed.scheduler.worker-ttl`, another one gets its task; a task
    that kills three (`distributed.scheduler.allowed-failures`) fails. Workers may join and leave.

    Raises:
        UserError: Dask is not installed.
        ShardsFailed: the scheduler or its workers cannot be reached, or were lost.
    """
    with extra("cluster"):
        import distributed
    try:
        client = distributed.Client(  # type: ignore[no-untyped-call]  # Dask has few types
            address, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TypeError: not an address
        raise ShardsFailed(f"{address}: cannot connect to a Dask scheduler: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
        except TimeoutError as error:
            raise ShardsFailed(f"{address}: no worker connected within {FIRST_WORKER_SECONDS:.0f} s; start some with: "
                               f"dask worker {address} --nthreads 1") from error
        _check_imports(address, client)
        finished = threading.Event()
        monitor = threading.Thread(target=_warn_without_workers, args=(address, client, finished), daemon=True)
        monitor.start()
        try:
            yield client.get_executor(pure=False)  # type: ignore[no-untyped-call]
        except distributed.KilledWorker as error:
            raise ShardsFailed(f"{address}: a task killed several workers, the last one {error.last_worker.address} "
                               "(out of memory? other packages?); see its log, and run the same command again to "
                               "continue") from error
        except CancelledError as error:
            raise ShardsFailed(f"{address}: lost the scheduler; run the same command again to continue") from error
        finally:
            finished.set()
            monitor.join()


def _check_imports(address: str, client: Any) -> None:
    """Raises ShardsFailed if the scheduler or a worker cannot import this package; it would fail without a message."""
    program = "import shards.write"
    try:
        client.run_on_scheduler(exec, program)
        errors = client.run(exec, program, on_error="return")
    except ImportError as error:
        errors = {"the scheduler": error}
    for name, problem in errors.items():
        if problem is not None:
            raise ShardsFailed(f"{address}: {name} cannot import shards.write: {problem}; start the scheduler and all "
                               "workers with the same packages, and PYTHONPATH set to the folder that contains shards/")


def _warn_without_workers(address: str, client: Any, finished: threading.Event) -> None:
    while not finished.wait(WORKER_CHECK_SECONDS):
        if client.status == "running" and not client.nthreads():
            logger.warning("%s: no workers are connected; waiting for new ones", address)
