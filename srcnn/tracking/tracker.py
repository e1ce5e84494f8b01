"""What a tracker is. Each works in a thread of its own: whatever one does, or fails to do, training does not wait."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srcnn.runtime.settings import flat, without_credentials
from srcnn.tracking.history import Values, merge_by_step

logger = logging.getLogger(__name__)
FINISH_SECONDS = 60.0
MAX_PENDING = 1000  # points that wait for a tracker before it is given up
Pictures = Mapping[str, np.ndarray]  # uint8 (H, W, 3), by title
Level = Literal["INFO", "WARN", "ERROR"]


class Tracker(ABC):
    """A record of the run besides metrics.jsonl. Every method may raise, and wait: a TrackerThread calls them."""

    next_step = 0  # the first progress that it lacks: a continued run goes on there
    num_sent = 0
    url = ""

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        """Sends a point, unless the tracker has it."""
        if samples >= self.next_step:
            self.send(samples, values, pictures)
            self.next_step = samples + 1
            self.num_sent += 1

    def log_missing(self, points: Sequence[Values]) -> None:
        """Sends those of metrics.jsonl that the tracker lacks: only numbers, no pictures."""
        for samples, values in merge_by_step(points).items():
            self.log(samples, values, {})

    @abstractmethod
    def send(self, samples: int, values: Values, pictures: Pictures) -> None: ...

    def log_artifact(self, title: str, folder: Path) -> None: ...

    def alert(self, title: str, text: str, level: Level) -> None: ...

    def preempted(self) -> None: ...

    @abstractmethod
    def finish(self, exit_code: int) -> None: ...


class TrackerThread:
    """Hands a tracker what it is to do, in order, in a thread that does not hold up the end of the process.

    The first failure is reported to `on_failure`, once; from then on nothing is sent. `close` is called in the end;
    `kill` where the thread hangs, to end what it waits for.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker], on_failure: Callable[[str, str], None],
        close: Callable[[], None] = lambda: None, kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.on_failure, self.close, self.kill = name, on_failure, close, kill
        self.pending: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_PENDING)
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
            self.close()

    def put(self, action: Callable[[Tracker], None] | None) -> None:
        """Queues it, without waiting."""
        if not self.failed.is_set():
            try:
                self.pending.put_nowait(action)
            except queue.Full:
                self.fail(f"queue full ({MAX_PENDING} pending points), the tracker does not respond")
                self.kill()

    def fail(self, reason: str) -> None:
        with self.lock:
            if self.failed.is_set():
                return
            self.failed.set()
        self.on_failure(self.name, reason)

    def finish(self, exit_code: int, seconds: float) -> None:
        """Waits at most so long (and a second) until all is sent."""
        atexit.unregister(self.finish)
        self.put(lambda tracker: tracker.finish(exit_code))
        self.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.fail(f"not all was sent within {seconds:.0f} s")
            self.kill()
            self.thread.join(1)


class TensorBoard(Tracker):
    """Event files in `run`/srcnn; what earlier ones hold past `logged_samples` is not shown any more."""

    def __init__(self, run: Path, config: Mapping[str, Any], logged_samples: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "srcnn"
        is_new = not list(folder.glob("events.*"))
        self.writer = SummaryWriter(str(folder), purge_step=max(logged_samples, 0) + 1)
        if is_new:  # TensorBoard shows each time as one more run
            self.writer.add_hparams(hyperparameters(config), {})

    def send(self, samples: int, values: Values, pictures: Pictures) -> None:
        for title, value in values.items():
            self.writer.add_scalar(title, value, samples)
        for title, picture in pictures.items():
            self.writer.add_image(title, picture, samples, dataformats="HWC")
        self.writer.flush()

    def finish(self, exit_code: int) -> None:
        self.writer.close()


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots, lists as text, no credentials: what every tracker takes."""
    return {key: value if isinstance(value, (int, float)) else without_credentials(str(value))
            for key, value in flat(config).items()}
