"""One record of a run for all: metrics.jsonl always, a line for people, and the trackers asked for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srcnn.runtime.settings import without_credentials
from srcnn.tracking.cluster_job import record_start
from srcnn.tracking.history import METRICS, STEP_KEY, History, Values
from srcnn.tracking.mlflow_tracker import Mlflow
from srcnn.tracking.tracker import FINISH_SECONDS, Level, Pictures, TensorBoard, Tracker, TrackerThread
from srcnn.tracking.wandb_tracker import Wandb, end_wandb, kill_wandb_core

logger = logging.getLogger(__name__)
PREEMPTED_SECONDS = 10.0  # between SIGTERM and SIGKILL are 30 s, and there is a checkpoint to save
SYNC_OPTIONS = {"wandb": "", "mlflow": " --tracker mlflow"}  # of `srcnn sync`, which sends later what they lack
BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} tiles, {rate_fmt}, {remaining} left{postfix}"


class Tracking:
    """The record of a run, kept by the main process; on the others every call does nothing.

    Nothing here raises, and nothing but `finish` waits. A tracker that fails is named once and left out from then on:
    metrics.jsonl has the numbers, and what wandb lacks of them is sent when the run continues, or by `srcnn sync`.
    """

    def __init__(
        self,
        run: Path,
        trackers: Sequence[str] | None,
        config: Mapping[str, Any],
        total_samples: int,
        samples: int,
        logged_samples: int,
        run_id: str,
        *,
        hosts: Sequence[str] = (),
        alerts: bool = True,
    ) -> None:
        """
        Args:
            trackers: None where this is not the main process.
            samples: tiles seen so far, where the progress bar starts.
            logged_samples: the progress of the last point that is kept, 0 or less for none: those past it were logged
                after the checkpoint that is continued from, and will be again.
            hosts: the machines it runs on.
            alerts: tell people through wandb what they would want to be called for.
        """
        self.run = run
        self.is_main = trackers is not None
        self.threads: list[TrackerThread] = []
        self.is_preempted = False
        self.alerts, self.has_alerted_of_skips = alerts, False
        self.validation: dict[str, float] = {}  # the last one of this process
        hidden = not (self.is_main and sys.stderr is not None and sys.stderr.isatty())
        self.total_samples = total_samples
        self.bar = tqdm(total=total_samples, initial=samples, unit=" tiles", disable=hidden, bar_format=BAR)
        if trackers is None:
            return
        self.history = History(run, logged_samples)
        points, jobs = self.history.points(), record_start(run, samples, hosts)
        starts: dict[str, Callable[[], Tracker]] = {
            "wandb": lambda: Wandb(run, config, run_id, points, jobs),
            "tensorboard": lambda: TensorBoard(run, config, logged_samples),
            "mlflow": lambda: Mlflow(run, config, run_id, points, jobs),
        }
        ends = {"wandb": (end_wandb, kill_wandb_core)}
        self.threads = [TrackerThread(name, starts[name], self._failed, *ends.get(name, ())) for name in trackers]

    def _failed(self, name: str, reason: str) -> None:
        hint = f"; `srcnn sync {self.run}{SYNC_OPTIONS[name]}` sends them later" if name in SYNC_OPTIONS else ""
        logger.warning("tracking with %s stopped, the numbers go on in %s%s: %s", name, self.run / METRICS, hint,
                       reason)

    def _show(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError):  # the terminal is gone, or closed
            self.bar.disable = True

    def advance(self, samples: int) -> None:
        """Moves the progress bar to `samples` tiles."""
        self._show(lambda: self.bar.update(samples - self.bar.n))

    def log(self, samples: int, values: Values, pictures: Pictures | None = None) -> None:
        """Writes all there is at a progress of `samples` tiles, once: to metrics.jsonl, the trackers, and for people.

        `pictures` are for the trackers alone.
        """
        if not self.is_main:
            return
        self.history.add({STEP_KEY: samples, **values})
        self.validation = {key: value for key, value in values.items() if key.startswith("val/")} or self.validation
        self._send(lambda tracker: tracker.log(samples, dict(values), dict(pictures or {})))
        if self.bar.disable:
            parts = [*learning(values), *speed(values, self.total_samples - samples), *validated(values)]
            logger.info("%d of %d tiles: %s", samples, self.total_samples, ", ".join(parts))
        else:
            if parts := validated(values):
                self._show(lambda: self.bar.write(f"{samples} tiles: {parts[0]}", file=sys.stderr))
            if postfix := learning(values):
                self._show(lambda: self.bar.set_postfix_str(", ".join(postfix)))

    def _send(self, action: Callable[[Tracker], None]) -> None:
        for thread in self.threads:
            thread.put(action)

    def log_artifact(self, title: str, folder: Path) -> None:
        """Uploads a folder as an artifact: to wandb of type model."""
        self._send(lambda tracker: tracker.log_artifact(title, folder))

    def alert(self, title: str, text: str, level: Level) -> None:
        """Sends people a message by the trackers, unless `alerts` is off."""
        if self.alerts:
            shown = without_credentials(text)
            self._send(lambda tracker: tracker.alert(f"{self.run.name} {title}", shown, level))

    def skipped(self, step: int) -> None:
        """Alerts people of a step that was skipped as it was not finite: of the first that this process skips."""
        if not self.has_alerted_of_skips:
            self.alert("is not finite", f"loss or gradient is not finite: step {step} was skipped, its tiles are in "
                       f"{self.run / 'skipped.jsonl'}; later ones are counted in skipped_steps", "WARN")
        self.has_alerted_of_skips = True

    def preempted(self, reason: str = "") -> None:
        """Marks the run as preempted, to be continued later; `finish` then hurries."""
        self.is_preempted = True
        self.alert("was preempted", f"{reason or 'stopped'}: checkpoint saved, the same command resumes it", "WARN")
        self._send(lambda tracker: tracker.preempted())

    def finish(self) -> None:
        """Waits until the trackers have all, FINISH_SECONDS at most; warns if not. May be called in a `finally`:
        the run then counts as failed where an exception is on its way."""
        self._show(self.bar.close)
        if self.is_main:
            self.history.write()
        deadline = time.monotonic() + (PREEMPTED_SECONDS if self.is_preempted else FINISH_SECONDS)
        error = sys.exc_info()[1]
        if error is not None and not self.is_preempted:
            self.alert("failed", f"{type(error).__name__}: {error}", "ERROR")
        elif not self.is_preempted and "val/psnr" in self.validation:
            self.alert("is done", validated(self.validation)[0], "INFO")
        for thread in self.threads:
            thread.finish(int(self.is_preempted or error is not None), max(deadline - time.monotonic(), 0))
        self.threads = []


def learning(values: Values) -> list[str]:
    """For people: the loss and the PSNR of the training tiles since the last line; [] where there are none."""
    names = {"train/loss": "loss {:.3g}", "train/psnr": "PSNR {:.2f} dB"}
    return [text.format(values[key]) for key, text in names.items() if key in values]


def speed(values: Values, num_tiles_left: int) -> list[str]:
    """For people: tiles a second, and how long the rest takes at that rate; [] where no rate was measured."""
    rate = values.get("tiles_per_second", 0.0)
    if not rate > 0:
        return []
    left = [f"{tqdm.format_interval(num_tiles_left / rate)} left"] if num_tiles_left else []
    return [f"{rate:,.0f} tiles/s" if rate >= 100 else f"{rate:.3g} tiles/s", *left]


def validated(values: Values) -> list[str]:
    """For people: the PSNR of the validation tiles, and by how much it is above that of the degraded input."""
    if "val/psnr" not in values:
        return []
    gain = f" ({values['val/gain']:+.2f} dB)" if "val/gain" in values else ""
    return [f"validation PSNR {values['val/psnr']:.2f} dB{gain}"]
