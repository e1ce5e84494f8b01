"""The trackers, each in a thread of its own: whatever one does, or fails to do, training does not wait for it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil

from srcnn.config import flat, without_credentials
from srcnn.history import Values

logger = logging.getLogger(__name__)
FINISH_SECONDS = 60.0
WANDB = ("wandb", "node metrics")  # those that wandb-core works for
MOST_PENDING = 1000  # points that wait for a tracker before it is given up
Pictures = Mapping[str, np.ndarray]
Level = Literal["INFO", "WARN", "ERROR"]


class Tracker(Protocol):
    """What a Sender drives; all of it may raise, and wait."""

    def log(self, samples: int, values: Values, pictures: Pictures) -> None: ...
    def log_artifact(self, title: str, folder: Path) -> None: ...
    def alert(self, title: str, text: str, level: Level) -> None: ...
    def preempted(self) -> None: ...
    def finish(self, exit_code: int) -> None: ...


class Sender:
    """Hands a tracker what it is to do, in order, in a thread that does not hold up the end of the process.

    The first thing that fails is told to `on_failure`, once; from then on nothing is sent.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], on_failure: Callable[[str, str], None]) -> None:
        self.name, self.on_failure = name, on_failure
        self.pending: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_PENDING)
        self.failed = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _work(self, start: Callable[[], Tracker]) -> None:
        try:
            tracker = start()
            # wandb registers its own, unbounded wait at the end of the process; what is registered later goes first.
            atexit.register(self.finish, 1, FINISH_SECONDS)
            while (action := self.pending.get()) is not None and not self.failed.is_set():
                action(tracker)
        except Exception as error:  # whatever a tracker raises, training goes on
            self.fail(without_credentials(" ".join(f"{type(error).__name__}: {error}".split())))
        finally:
            if self.name in WANDB:
                end_wandb()

    def put(self, action: Callable[[Tracker], None] | None) -> None:
        """Queues it, without waiting."""
        if not self.failed.is_set():
            try:
                self.pending.put_nowait(action)
            except queue.Full:
                self.fail(f"{MOST_PENDING} points wait and it takes none")
                self._free()

    def fail(self, reason: str) -> None:
        with self.lock:
            if self.failed.is_set():
                return
            self.failed.set()
        self.on_failure(self.name, reason)

    def _free(self) -> None:
        """Ends what the thread waits for."""
        if self.name in WANDB:
            kill_wandb_core()

    def finish(self, exit_code: int, seconds: float) -> None:
        """Waits at most so long (and a second) until all is sent and nothing is left to wait for."""
        atexit.unregister(self.finish)
        self.put(lambda tracker: tracker.finish(exit_code))
        self.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.fail(f"not all was sent within {seconds:.0f} s")
            self._free()
            self.thread.join(1)


class TensorBoard:
    """Event files in `run`/srcnn; what earlier ones hold past `logged_samples` is not shown any more."""

    def __init__(self, run: Path, config: Mapping[str, Any], logged_samples: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "srcnn"
        is_new = not list(folder.glob("events.*"))
        self.writer = SummaryWriter(str(folder), purge_step=max(logged_samples, 0) + 1)
        if is_new:  # TensorBoard shows each time as one more run
            self.writer.add_hparams(hyperparameters(config), {})

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        for title, value in values.items():
            self.writer.add_scalar(title, value, samples)
        for title, picture in pictures.items():
            self.writer.add_image(title, picture, samples, dataformats="HWC")
        self.writer.flush()

    def log_artifact(self, title: str, folder: Path) -> None:
        """It takes none."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """It sends none."""

    def preempted(self) -> None:
        """It knows no such thing."""

    def finish(self, exit_code: int) -> None:
        self.writer.close()


def end_wandb() -> None:
    """Ends wandb-core when it has done its work, and with it wandb's wait for it at the end of the process."""
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


def kill_wandb_core() -> None:
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots, lists as text, no credentials: what every tracker takes."""
    return {key: value if isinstance(value, (int, float)) else without_credentials(str(value))
            for key, value in flat(config).items()}
