"""Logs a run to metrics.jsonl, to the terminal, and to the trackers that the config names."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srcnn.runtime.credentials import without_credentials
from srcnn.tracking.cluster_job import record_end, record_start
from srcnn.tracking.history import METRICS, STEP_KEY, History, Values, best_validation
from srcnn.tracking.mlflow_tracker import Mlflow
from srcnn.tracking.tracker import FINISH_SECONDS, DatasetRecord, Level, Pictures, TensorBoard, Tracker, TrackerThread
from srcnn.tracking.wandb_tracker import Wandb, end_wandb, kill_wandb_core

logger = logging.getLogger(__name__)
PREEMPTED_SECONDS = 10.0  # of the 30 s between SIGTERM and SIGKILL, in which a checkpoint is saved too
SYNC_OPTIONS = {"wandb": "", "mlflow": " --tracker mlflow"}  # of `srcnn sync`
BAR = "|{bar}| {n_fmt}/{total_fmt} tiles, {rate_noinv_fmt}, {remaining} left{postfix}"  # 80 columns hold a million


class Tracking:
    """The log of a run, written by the main process; in other processes every method does nothing.

    No method raises, and none but `finish` waits. A tracker that fails is reported once and not used any more: the
    points are in metrics.jsonl, and the tracker gets them when the run resumes, or by `srcnn sync`.
    """

    def __init__(
        self, run: Path, trackers: Sequence[str] | None, config: Mapping[str, Any], total_samples: int, samples: int,
        logged_samples: int, run_id: str, *, hosts: Sequence[str] = (), alerts: bool = True,
        machine: Mapping[str, str] | None = None, dataset: DatasetRecord | None = None,
    ) -> None:
        """
        Args:
            trackers: names of the trackers; None in a process that is not the main one.
            samples: tiles seen so far, where the progress bar starts.
            logged_samples: tiles seen at the last point to keep, 0 or less for none: later points were logged after the
                checkpoint that the run resumes from, and will be logged again.
            run_id: identifies the run in wandb and MLflow, over all its starts.
            hosts: the machines of the ranks.
            alerts: send alerts through the trackers.
            machine: hardware and versions, for jobs.jsonl.
            dataset: the shards, for the lineage in wandb.
        """
        self.run = run
        self.is_main = trackers is not None
        self.threads: list[TrackerThread] = []
        self.is_preempted = False
        self.alerts, self.has_alerted_of_skips = alerts, False
        self.validation: dict[str, float] = {}  # the last one since the start
        self.total_samples, self.samples, self.has_ended = total_samples, samples, False
        is_hidden = None if self.is_main else True  # None: unless this is a terminal
        self.bar = tqdm(total=total_samples, initial=samples, unit="", disable=is_hidden, bar_format=BAR)
        if trackers is None:
            return
        self.history = History(run, logged_samples)
        points, jobs = self.history.points(), record_start(run, samples, hosts, machine=machine)
        starts: dict[str, Callable[[], Tracker]] = {
            "wandb": lambda: Wandb(run, config, run_id, points, jobs, None, dataset),
            "tensorboard": lambda: TensorBoard(run, config, logged_samples),
            "mlflow": lambda: Mlflow(run, config, run_id, points, jobs),
        }
        ends = {"wandb": (end_wandb, kill_wandb_core)}
        self.threads = [TrackerThread(name, starts[name], self._failed, *ends.get(name, ())) for name in trackers]

    def _failed(self, name: str, reason: str) -> None:
        hint = f"; `srcnn sync {self.run}{SYNC_OPTIONS[name]}` sends them later" if name in SYNC_OPTIONS else ""
        logger.warning("tracking with %s stopped, %s has all points%s: %s", name, self.run / METRICS, hint, reason)

    def advance(self, samples: int) -> None:
        """Moves the progress bar to `samples` tiles."""
        self.samples = samples
        self.bar.update(samples - self.bar.n)

    def log(self, samples: int, values: Values, pictures: Pictures | None = None) -> None:
        """Writes a point, the values after `samples` tiles, to metrics.jsonl, the trackers and the terminal.

        `pictures` go to the trackers only.
        """
        if not self.is_main:
            return
        self.samples = samples
        self.history.add({STEP_KEY: samples, **values})
        self.validation = {key: value for key, value in values.items() if key.startswith("val/")} or self.validation
        self._send(lambda tracker: tracker.log(samples, dict(values), dict(pictures or {})))
        if self.bar.disable:
            texts = loss_text(values), speed_text(values, self.total_samples - samples), validation_text(values)
            logger.info("%d of %d tiles: %s", samples, self.total_samples, ", ".join(filter(None, texts)))
            return
        if validation := validation_text(values):
            self.bar.write(f"{samples} tiles: {validation}", file=self.bar.fp)  # which a closed terminal does not break
        if loss := loss_text(values):
            self.bar.set_postfix_str(loss)

    def _send(self, action: Callable[[Tracker], None]) -> None:
        for thread in self.threads:
            thread.put(action)

    def log_artifact(self, title: str, folder: Path, aliases: Sequence[str] = ()) -> None:
        """Uploads the folder of the best checkpoint, in wandb as a model with the scores of the best validation."""
        if self.is_main:
            scores = best_validation(self.history.points()) or {}
            self._send(lambda tracker: tracker.log_artifact(title, folder, scores, aliases))

    def alert(self, title: str, text: str, level: Level) -> None:
        """Sends an alert through the trackers, unless `alerts` is off."""
        if self.alerts:
            shown = without_credentials(text)
            self._send(lambda tracker: tracker.alert(f"{self.run.name} {title}", shown, level))

    def skipped(self, step: int) -> None:
        """Sends an alert about the first step since the start that was skipped as not finite."""
        if not self.has_alerted_of_skips:
            self.alert("is not finite", f"loss or gradient is not finite: step {step} was skipped, its tiles are in "
                       f"{self.run / 'skipped.jsonl'}; later ones are counted in skipped_steps", "WARN")
        self.has_alerted_of_skips = True

    def preempted(self, reason: str = "") -> None:
        """Marks the run as preempted, to be resumed later; `finish` then waits PREEMPTED_SECONDS only."""
        self.is_preempted = True
        self.alert("was preempted", f"{reason or 'stopped'}: checkpoint saved, the same command resumes it", "WARN")
        self._send(lambda tracker: tracker.preempted())

    def ended(self, how: str) -> None:
        """Records, once, that the training is complete, stopped or failed; ends the bar, so that lines can follow."""
        self.bar.close()
        if self.is_main and not self.has_ended:
            record_end(self.run, self.samples, how)
        self.has_ended = True

    def finish(self) -> None:
        """Waits until the trackers have sent all, at most FINISH_SECONDS; warns if they have not, else says where.

        Called in a `finally` clause while an exception is raised, it marks the run as failed.
        """
        self.bar.close()
        if self.is_main:
            self.history.write()
        deadline = time.monotonic() + (PREEMPTED_SECONDS if self.is_preempted else FINISH_SECONDS)
        error = sys.exc_info()[1]
        if error is not None and not self.is_preempted:
            self.alert("failed", f"{type(error).__name__}: {error}", "ERROR")
        elif not self.is_preempted and "val/psnr" in self.validation:
            self.alert("is done", validation_text(self.validation), "INFO")
        self.ended("stopped" if self.is_preempted else "failed" if error is not None else "complete")
        for thread in self.threads:
            thread.finish(int(self.is_preempted or error is not None), max(deadline - time.monotonic(), 0))
            if thread.tracker and not thread.failed.is_set() and thread.tracker.place:
                logger.info("%s: %s", thread.name, thread.tracker.place)
        self.threads = []


def loss_text(values: Values) -> str:
    """The training loss and PSNR of a point; "" where it has none."""
    formats = {"train/loss": "loss {:.3g}", "train/psnr": "PSNR {:.2f} dB"}
    return ", ".join(text.format(values[key]) for key, text in formats.items() if key in values)


def speed_text(values: Values, num_tiles_left: int) -> str:
    """Tiles per second, and how long the rest will take; "" where the point has no rate."""
    rate = values.get("tiles_per_second", 0.0)
    if not rate > 0:
        return ""
    text = f"{rate:,.0f} tiles/s" if rate >= 100 else f"{rate:.3g} tiles/s"
    return f"{text}, {tqdm.format_interval(num_tiles_left / rate)} left" if num_tiles_left else text


def validation_text(values: Values) -> str:
    """The validation PSNR, and its gain over the degraded input; "" where the point has none."""
    if "val/psnr" not in values:
        return ""
    gain = f" ({values['val/gain']:+.2f} dB over the input)" if "val/gain" in values else ""
    return f"validation PSNR {values['val/psnr']:.2f} dB{gain}"
