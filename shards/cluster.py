"""Workers on many machines: a Dask scheduler, which Slurm, Kubernetes or a hand started with them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from typing import Any

from shards.pool import ShardsFailed

ANSWER_SECONDS = 60.0  # for a scheduler that is just being started
FIRST_WORKER_SECONDS = 600.0
ALONE_SECONDS = 15.0
logger = logging.getLogger(__name__)


@contextmanager
def connected(address: str) -> Iterator[Executor]:
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
            address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TypeError: no address at all
        raise ShardsFailed(f"{address}: no Dask scheduler answers there: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
        except TimeoutError as error:
            raise ShardsFailed(f"{address}: no worker came within {FIRST_WORKER_SECONDS:.0f} s; start some with: "
                               f"dask worker {address} --nthreads 1") from error
        check_imports(address, client)
        over = threading.Event()
        watching = threading.Thread(target=say_when_alone, args=(address, client, over), daemon=True)
        watching.start()
        try:
            yield client.get_executor(pure=False)  # type: ignore[no-untyped-call]
        except distributed.KilledWorker as error:
            raise ShardsFailed(f"{address}: a task ended several workers, the last of them {error.last_worker.address} "
                               "(no memory, or other packages?); see its log, and start again to go on") from error
        except CancelledError as error:
            raise ShardsFailed(f"{address}: the scheduler is gone; start again to go on") from error
        finally:
            over.set()
            watching.join()


def check_imports(address: str, client: Any) -> None:
    """Raises ShardsFailed where the scheduler or a worker lacks this package, which would end it without a word."""
    work = "import shards.write"
    try:
        client.run_on_scheduler(exec, work)
        found = client.run(exec, work, on_error="return")
    except ImportError as error:
        found = {"the scheduler": error}
    for where, trouble in found.items():
        if trouble is not None:
            raise ShardsFailed(f"{address}: {where} cannot do this work: {trouble}; start the scheduler and all "
                               "workers with PYTHONPATH set to the folder with shards/, and the same packages")


def say_when_alone(address: str, client: Any, over: threading.Event) -> None:
    """Says so where no worker is left: others may come, and the work waits for them."""
    while not over.wait(ALONE_SECONDS):
        if client.status == "running" and not client.nthreads():
            logger.warning("%s: no worker is left; waiting for new ones", address)
