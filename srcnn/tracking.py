"""Where a run's numbers and pictures go: metrics.jsonl always, Accelerate's trackers as asked, a line for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tqdm import tqdm

from srcnn.files import atomic_file

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
STEP_KEY = "samples"
_SHOWN = ("train/loss", "train/psnr", "val/psnr", "val/gain", "tiles_per_second", "data_wait")


class Tracking:
    """The record of a run. It is kept by the main process; on the others every call does nothing.

    A tracker that fails is named once and left out from then on; training goes on, metrics.jsonl has the numbers.
    """

    def __init__(
        self,
        run: Path,
        trackers: Sequence[str] | None,
        config: Mapping[str, Any],
        total_samples: int,
        start: int,
        run_id: str,
    ) -> None:
        """`trackers` is None where this is not the main process; `start` the tiles seen so far."""
        self.path = run / METRICS
        self.is_main = trackers is not None
        self.trackers: dict[str, Any] = {}
        hidden = not (self.is_main and sys.stderr.isatty())
        self.bar = tqdm(total=total_samples, initial=start, unit=" tiles", disable=hidden)
        if self.is_main:
            _drop_after(self.path, start)
        for name in trackers or ():
            self._try(name, partial(self._start, name, run, config, run_id))

    def _start(self, name: str, run: Path, config: Mapping[str, Any], run_id: str) -> None:
        project = os.environ.get("WANDB_PROJECT", "srcnn")
        kind = LOGGER_TYPE_TO_CLASS[name]
        if name == "wandb":
            if not os.environ.get("WANDB_API_KEY") and not _netrc_has_wandb():
                os.environ.setdefault("WANDB_MODE", "offline")  # no account: never a prompt
            os.environ.setdefault("WANDB_SILENT", "true")
            tracker = kind(project, name=run.name, dir=str(run), id=run_id, resume="allow")
        else:
            tracker = kind(project, logging_dir=str(run))
        tracker.start()
        tracker.store_init_configuration(_flat(config))
        if name == "wandb":
            # Points carry their own axis: wandb drops what is logged at a step below the last, as after a resume.
            tracker.tracker.define_metric(STEP_KEY)
            tracker.tracker.define_metric("*", step_metric=STEP_KEY)
        self.trackers[name] = tracker

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker raises, training goes on
            self.trackers.pop(name, None)
            logger.warning("tracking with %s stopped, the numbers go on in %s: %s", name, self.path, error)

    def _for_each(self, action: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            self._try(name, partial(action, name, tracker))

    def advance(self, samples: int) -> None:
        """Moves the progress bar to `samples` tiles."""
        self.bar.update(samples - self.bar.n)

    def log(self, samples: int, values: Mapping[str, float]) -> None:
        """Writes numbers at a progress of `samples` tiles to metrics.jsonl, the trackers and the person watching."""
        if not self.is_main:
            return
        point = {STEP_KEY: samples, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")

        def send(name: str, tracker: Any) -> None:
            tracker.log(dict(point), step=None if name == "wandb" else samples)

        self._for_each(send)
        shown = {key: f"{value:.4g}" for key, value in values.items() if key in _SHOWN}
        if self.bar.disable:
            logger.info("%d tiles  %s", samples, "  ".join(f"{key} {value}" for key, value in shown.items()))
        else:
            self.bar.set_postfix(shown)

    def log_picture(self, samples: int, title: str, picture: np.ndarray) -> None:
        """Sends a uint8 (H, W, 3) picture to the trackers that show pictures (wandb, TensorBoard)."""

        def send(name: str, tracker: Any) -> None:
            if name == "wandb":
                import wandb

                tracker.tracker.log({title: wandb.Image(picture), STEP_KEY: samples})
            elif name == "tensorboard":
                tracker.tracker.add_image(title, picture, samples, dataformats="HWC")

        self._for_each(send)

    def log_artifact(self, title: str, folder: Path) -> None:
        """Uploads a folder as a wandb artifact of type model."""

        def send(name: str, tracker: Any) -> None:
            if name == "wandb":
                tracker.tracker.log_artifact(str(folder), name=title, type="model")

        self._for_each(send)

    def finish(self) -> None:
        self.bar.close()
        self._for_each(lambda name, tracker: tracker.finish())


def _netrc_has_wandb() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots and lists as text: what every tracker takes as hyperparameters."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def _drop_after(path: Path, samples: int) -> None:
    """Takes out the points past `samples`: they were logged after the checkpoint that is continued from."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _progress(line) <= samples]
    if kept != lines:
        with atomic_file(path) as file:
            file.write("".join(line + "\n" for line in kept).encode())


def _progress(line: str) -> float:
    try:
        return float(json.loads(line)[STEP_KEY])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line torn by a kill


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The points of a run's metrics.jsonl, in order. Raises FileNotFoundError where there is none."""
    path = run / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no numbers of a training run here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
