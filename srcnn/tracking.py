"""Where a run's numbers and pictures go: metrics.jsonl always, Accelerate's trackers as asked, a line for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
STEP_KEY = "samples"


class Tracking:
    """The main process's record of a run; on the other ranks every call does nothing.

    A tracker that fails is named once and left out from then on; training goes on, metrics.jsonl has the numbers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: Path,
        config: Mapping[str, Any],
        total_samples: int,
        start: int,
        run_id: str,
    ) -> None:
        self.accelerator = accelerator
        self.path = run / METRICS
        self.run_id = run_id
        self.is_main = accelerator.is_main_process
        self.broken = not self.is_main or not accelerator.log_with
        self.bar = tqdm(
            total=total_samples, initial=start, unit=" tiles", disable=not (self.is_main and sys.stderr.isatty())
        )
        if self.is_main:
            _drop_after(self.path, start)
            self._try(lambda: self._start_trackers(run, config))

    def _start_trackers(self, run: Path, config: Mapping[str, Any]) -> None:
        if not os.environ.get("WANDB_API_KEY") and not _netrc_has_wandb():
            os.environ.setdefault("WANDB_MODE", "offline")  # no account: never a prompt
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = {"name": run.name, "dir": str(run), "id": self.run_id, "resume": "allow"}
        project = os.environ.get("WANDB_PROJECT", "srcnn")
        self.accelerator.init_trackers(project, _flat(config), init_kwargs={"wandb": wandb})
        if tracker := self._tracker("wandb"):
            # Points carry their own axis: wandb drops what is logged at a step below the last, as after a resume.
            tracker.define_metric(STEP_KEY)
            tracker.define_metric("*", step_metric=STEP_KEY)

    def _tracker(self, name: str) -> Any:
        """The underlying run or writer of an active tracker, or None."""
        found = [tracker for tracker in self.accelerator.trackers if tracker.name == name]
        return found[0].tracker if found else None

    def _try(self, action: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            action()
        except Exception as error:  # whatever a tracker raises, training goes on
            self.broken = True
            logger.warning("tracking stopped, the numbers go on in %s: %s", self.path, error)

    def log(self, samples: int, values: Mapping[str, float]) -> None:
        """Writes numbers at a progress of `samples` tiles to metrics.jsonl, the trackers and the person watching."""
        if not self.is_main:
            return
        point = {STEP_KEY: samples, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        self._try(lambda: self._send(point, samples))
        self._show(samples, values)

    def _send(self, point: Mapping[str, float], samples: int) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.log(dict(point))
            else:
                tracker.log(dict(point), step=samples)

    def _show(self, samples: int, values: Mapping[str, float]) -> None:
        shown = {key: f"{value:.4g}" for key, value in values.items() if key in _SHOWN}
        self.bar.update(samples - self.bar.n)
        if self.bar.disable:
            logger.info("%d tiles  %s", samples, "  ".join(f"{key} {value}" for key, value in shown.items()))
        else:
            self.bar.set_postfix(shown)

    def log_picture(self, samples: int, name: str, picture: np.ndarray) -> None:
        """Sends a uint8 (H, W, 3) picture to the trackers that show pictures (wandb, TensorBoard)."""

        def send() -> None:
            if run := self._tracker("wandb"):
                import wandb

                run.log({name: wandb.Image(picture), STEP_KEY: samples})
            if writer := self._tracker("tensorboard"):
                writer.add_image(name, picture, samples, dataformats="HWC")

        self._try(send)

    def log_artifact(self, name: str, folder: Path) -> None:
        """Uploads a folder as a wandb artifact of type model."""

        def send() -> None:
            if run := self._tracker("wandb"):
                run.log_artifact(str(folder), name=name, type="model")

        self._try(send)

    def finish(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            self._try(tracker.finish)


_SHOWN = ("train/loss", "train/psnr", "val/psnr", "val/gain", "tiles_per_second", "data_wait")


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
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _progress(line) <= samples]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


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
