"""Work on many tasks over processes, with a progress bar; what stops it becomes one clear error."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from tqdm import tqdm

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class ShardsFailed(RuntimeError):
    """Shard making had to stop; finished shards are kept. The message says why and what to do."""


def run(
    work: Callable[[TaskT], ResultT], tasks: list[TaskT], num_workers: int, title: str, show_progress: bool
) -> Iterator[ResultT]:
    """Results of `work` on every task, in the order of the tasks.

    Raises:
        ShardsFailed: the disk or the memory is full, or a worker died.
    """
    try:
        yield from tqdm(_map(work, tasks, num_workers), title, len(tasks), disable=not show_progress or None)
    except BrokenProcessPool as error:
        raise ShardsFailed("a worker process died (killed, no memory?); start again to go on") from error
    except MemoryError as error:
        raise ShardsFailed("out of memory; start again with fewer --num_workers to go on") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        told = f"the disk takes no more ({os.strerror(error.errno)})"
        raise ShardsFailed(f"{told}; free some space and start again to go on") from error


def _map(work: Callable[[TaskT], ResultT], tasks: list[TaskT], num_workers: int) -> Iterable[ResultT]:
    num_workers = min(num_workers or num_cores(), len(tasks))
    if num_workers <= 1:
        yield from map(work, tasks)
        return
    # spawn: the same on every platform, and no threads are forked
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_start_worker) as pool:
        try:
            yield from pool.map(work, tasks, chunksize=max(1, len(tasks) // (64 * num_workers)))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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
