"""The interface of trackers, the thread that each runs in so that training never waits, and TensorBoard."""

from __future__ import annotations

import atexit
import logging
import queue
import re
import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.settings import flat
from srcnn.tracking.history import Values, merge_by_step

logger = logging.getLogger(__name__)
FINISH_SECONDS = 60.0
MAX_NAME_LENGTH = 100
MAX_PENDING = 1000  # queued actions at which a tracker is given up
Pictures = Mapping[str, np.ndarray]  # uint8 (H, W, 3), by title
Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True)
class DatasetRecord:
    """The shards of a training, for the lineage that trackers show.

    Attributes:
        location: folder or URL.
        splits: what is known of each split; `sha256` is the hash of its manifest.
    """

    location: str
    splits: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """A name that trackers accept."""
        last = re.split("[?#]", without_credentials(self.location))[0].rstrip("/").rpartition("/")[2]
        return re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip(".-")[:MAX_NAME_LENGTH] or "shards"


class Tracker(ABC):
    """Receives the points of a run. Methods may raise and block, as a TrackerThread calls them.

    Attributes:
        next_step: the first number of samples that the tracker's run lacks.
        num_sent: points sent by this process.
        url: address of the run, "" if it has none.
        place: where a person finds what was sent, an address or a command; "" if nowhere.
    """

    next_step = 0
    num_sent = 0
    url = ""
    place = ""

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        """Sends a point, unless the tracker's run has it."""
        if samples >= self.next_step:
            self.send(samples, values, pictures)
            self.next_step = samples + 1
            self.num_sent += 1

    def log_missing(self, points: Sequence[Values]) -> None:
        """Sends the points of metrics.jsonl that the tracker's run lacks, without pictures."""
        for samples, values in merge_by_step(points).items():
            self.log(samples, values, {})

    @abstractmethod
    def send(self, samples: int, values: Values, pictures: Pictures) -> None: ...

    def log_artifact(self, title: str, folder: Path, scores: Values, aliases: Sequence[str]) -> None: ...

    def alert(self, title: str, text: str, level: Level) -> None: ...

    def preempted(self) -> None: ...

    @abstractmethod
    def finish(self, exit_code: int) -> None: ...


class TrackerThread:
    """Runs the actions on a tracker, in order, in a daemon thread.

    `start` makes the tracker. The first failure is reported by `on_failure(name, reason)`; from then on nothing is
    sent. `close` is called at the end of the thread; `kill`, if it hangs, ends what it waits for.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker], on_failure: Callable[[str, str], None],
        close: Callable[[], None] = lambda: None, kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.on_failure, self.close, self.kill = name, on_failure, close, kill
        self.pending: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_PENDING)
        self.failed = threading.Event()
        self.tracker: Tracker | None = None  # once it is made
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _work(self, start: Callable[[], Tracker]) -> None:
        try:
            tracker = self.tracker = start()
            # wandb has registered an unbounded wait at the end of the process; a later registration is called first.
            atexit.register(self.finish, 1, FINISH_SECONDS)
            while (action := self.pending.get()) is not None and not self.failed.is_set():
                action(tracker)
        except Exception as error:  # a tracker may raise anything, and training goes on
            self.fail(without_credentials(" ".join(f"{type(error).__name__}: {error}".split())))
        finally:
            self.close()

    def put(self, action: Callable[[Tracker], None] | None) -> None:
        """Queues an action, or None for the end, without waiting."""
        if not self.failed.is_set():
            try:
                self.pending.put_nowait(action)
            except queue.Full:
                self.fail(f"its queue is full ({MAX_PENDING} points), it does not respond")
                self.kill()

    def fail(self, reason: str) -> None:
        with self.lock:
            if self.failed.is_set():
                return
            self.failed.set()
        self.on_failure(self.name, reason)

    def finish(self, exit_code: int, seconds: float) -> None:
        """Waits until all is sent, at most `seconds` and one more."""
        atexit.unregister(self.finish)
        self.put(lambda tracker: tracker.finish(exit_code))
        self.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.fail(f"not all points were sent within {seconds:.0f} s")
            self.kill()
            self.thread.join(1)


class TensorBoard(Tracker):
    """Writes event files to `run`/tensorboard; points past `logged_samples` in earlier files are hidden."""

    def __init__(self, run: Path, config: Mapping[str, Any], logged_samples: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        if (run / "srcnn").is_dir() and not folder.exists():  # its former name
            (run / "srcnn").rename(folder)
        self.place = f"see it with tensorboard --logdir {shlex.quote(str(folder))}"
        is_new = not list(folder.glob("events.*"))
        self.writer = SummaryWriter(str(folder), purge_step=max(logged_samples, 0) + 1)
        if is_new:  # TensorBoard would show another run each time
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
    """The config as trackers accept it: nested keys joined by dots, lists as text, without credentials."""
    return {key: value if isinstance(value, (int, float)) else without_credentials(str(value))
            for key, value in flat(config).items()}
