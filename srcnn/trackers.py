"""The trackers, each in a thread of its own: whatever one does, or fails to do, training does not wait for it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from srcnn.config import flat, without_credentials
from srcnn.wandb_files import last_step, mend, wandb_files

logger = logging.getLogger(__name__)
STEP_KEY = "samples"
START_SECONDS = 60.0  # wandb's own is 90; WANDB_INIT_TIMEOUT goes before it
FINISH_SECONDS = 60.0
SHOWN_SECONDS = 10.0  # of FINISH_SECONDS: within these the server shows what it has taken
MOST_PENDING = 1000  # points that wait for a tracker before it is given up
Values = Mapping[str, float]
Pictures = Mapping[str, np.ndarray]


class Tracker(Protocol):
    """What a Sender drives; all of it may raise, and wait."""

    def log(self, samples: int, values: Values, pictures: Pictures) -> None: ...
    def log_artifact(self, title: str, folder: Path) -> None: ...
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
            self.fail(" ".join(f"{type(error).__name__}: {error}".split()))
        finally:
            if self.name == "wandb":
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
        if self.name == "wandb":
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

    def preempted(self) -> None:
        """It knows no such thing."""

    def finish(self, exit_code: int) -> None:
        self.writer.close()


class Wandb:
    """A wandb run that goes on where what it has ends: of `points` it is sent those that it lacks.

    Rows carry the progress as their step and are complete when sent. wandb-core holds back some (it writes its file by
    blocks of 32 KiB, and sends every 15 s), so that a kill loses them: they are among the points it lacks next time.
    Pictures are not: only the numbers are in metrics.jsonl.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values], online: bool | None = None
    ) -> None:
        """`online` None: as WANDB_MODE says, or else offline without an account.

        Raises whatever wandb raises, within START_SECONDS and some; ValueError where it would ask for a key.
        """
        import wandb

        earlier = wandb_files(run, run_id)
        self.wandb, self.folder, self.run_id, self.last = wandb, run, run_id, -1
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "srcnn"), name=run.name, dir=str(run), id=run_id, resume="allow",
            config=hyperparameters(config), mode=wandb_mode(online), settings=wandb.Settings(**_settings()),
        )
        if not self.run.disabled and not Path(self.run.dir).resolve().is_relative_to(run.resolve()):
            raise OSError(f"{run}: wandb cannot write there")
        self.run.define_metric(STEP_KEY)
        self.run.define_metric("*", step_metric=STEP_KEY)
        self.is_offline, self.path = self.run.offline, self.run.path
        self.next_step = self.last_step() + 1 if self.is_offline else self.run.starting_step
        if self.is_offline:
            mend(earlier)
        self.num_sent = 0
        if self.run.url:
            logger.info("wandb: %s", self.run.url)
        for samples, values in one_for_each_progress(points).items():
            self.log(samples, values, {})

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        self.last = samples
        if samples >= self.next_step:
            images = {title: self.wandb.Image(picture) for title, picture in pictures.items()}
            self.run.log({STEP_KEY: samples, **values, **images}, step=samples, commit=True)
            self.next_step = samples + 1
            self.num_sent += 1

    def log_artifact(self, title: str, folder: Path) -> None:
        self.run.log_artifact(str(folder), name=title, type="model")

    def preempted(self) -> None:
        self.run.mark_preempting()

    def finish(self, exit_code: int) -> None:
        """Raises where the points did not arrive: wandb-core itself goes on silently when its disk or server fails."""
        self.run.finish(exit_code=exit_code)
        if self.is_offline:
            end_wandb()  # only then is the file whole
        deadline = time.monotonic() + SHOWN_SECONDS
        while self.last >= 0 and (shown := self.last_step()) < self.last:
            if self.is_offline or time.monotonic() > deadline:
                raise OSError(f"it has the points up to {max(shown, 0)} of {self.last}")
            time.sleep(1)

    def last_step(self) -> int:
        """The last step in the files of an offline run, or on the server."""
        if self.run.disabled:
            return self.last
        if self.is_offline:
            return last_step(wandb_files(self.folder, self.run_id))
        return int(self.wandb.Api(timeout=int(SHOWN_SECONDS)).run(self.path).lastHistoryStep)


def wandb_mode(online: bool | None) -> Any:
    """ValueError where wandb would be online without an account, and ask for one."""
    named = "online" if online else os.environ.get("WANDB_MODE")
    if named in (None, "online", "run", "shared") and not _has_account():
        if named is not None:
            raise ValueError("no wandb account: set WANDB_API_KEY or run `wandb login`")
        return "offline"
    return named or "online"


def _has_account() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    with contextlib.suppress(OSError):
        if netrc.is_file() and "wandb" in netrc.read_text(errors="replace"):
            return True
    return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def _settings() -> dict[str, Any]:
    """What is set unless the environment says otherwise."""
    os.environ.setdefault("WANDB_SILENT", "true")
    settings = {
        "init_timeout": START_SECONDS,
        "finish_timeout": FINISH_SECONDS - 2 * SHOWN_SECONDS,
        "finish_timeout_raises": True,
        "console": "off",  # its hook in sys.stdout waits for wandb-core in whoever prints
        "x_disable_meta": any(without_credentials(word) != word for word in sys.argv),  # it holds the command line
    }
    return {key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ}


def end_wandb() -> None:
    """Ends wandb-core when it has done its work, and with it wandb's wait for it at the end of the process."""
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


def kill_wandb_core() -> None:
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()


def one_for_each_progress(points: Sequence[Values]) -> dict[int, dict[str, float]]:
    """Points in order, those of one progress joined."""
    joined: dict[int, dict[str, float]] = {}
    for point in sorted(points, key=lambda point: point[STEP_KEY]):
        values = {key: value for key, value in point.items() if key != STEP_KEY}
        joined.setdefault(int(point[STEP_KEY]), {}).update(values)
    return joined


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots, lists as text, no credentials: what every tracker takes."""
    return {key: value if isinstance(value, (int, float)) else without_credentials(str(value))
            for key, value in flat(config).items()}
