"""metrics.jsonl, the history of a run: every number that goes to a tracker, a line for each point."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from srcnn.runtime.files import atomic_file

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
STEP_KEY = "samples"  # the training tiles seen: what every point has, and trackers take for its step
MAX_VALUE = 1e30  # of a number in metrics.jsonl; float64 axes cannot do with much larger ones
Values = Mapping[str, float]


class History:
    """The file, written. Lines that cannot be written are kept in memory, and written in order when they can."""

    def __init__(self, run: Path, logged_samples: int) -> None:
        """Drops the points past `logged_samples`, which a continued run logs again, and torn lines."""
        self.path, self.logged_samples = run / METRICS, logged_samples
        self.lines: list[bytes] = []  # the whole file: some hundred bytes a point
        self.num_written = self.num_bytes = 0
        self.is_read = self.is_failing = False
        self.write()

    def points(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.lines]

    def add(self, point: Values) -> None:
        self.lines.append(json.dumps(point, default=float).encode() + b"\n")
        self.write()

    def write(self) -> None:
        """Writes what is not written yet; warns once when that fails, and once when it works again."""
        try:
            if not self.is_read:
                self._read()
            self._write()
        except OSError as error:
            if not self.is_failing:
                logger.warning("%s cannot be written, its lines are kept in memory until it can: %s", self.path, error)
            self.is_failing = True
        else:
            if self.is_failing:
                logger.warning("%s is written again, no line is lost", self.path)
            self.is_failing = False

    def _read(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        kept = [line for line in content.splitlines(keepends=True) if _progress(line) <= self.logged_samples]
        is_start = content.startswith(b"".join(kept))
        self.num_written = len(kept) if is_start else 0
        self.num_bytes = sum(map(len, kept)) if is_start else -1
        self.lines = kept + self.lines
        self.is_read = True

    def _write(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.num_bytes or self.num_bytes < 0:  # not what was written: another disk, another file
            with atomic_file(self.path) as whole:
                whole.write(b"".join(self.lines))
            self.num_written, self.num_bytes = len(self.lines), sum(map(len, self.lines))
            return
        new = b"".join(self.lines[self.num_written:])
        if not new and size == self.num_bytes:
            return
        with self.path.open("ab") as file:
            file.truncate(self.num_bytes)  # a line half written goes
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        self.num_written, self.num_bytes = len(self.lines), self.num_bytes + len(new)


def _progress(line: bytes) -> float:
    """The tiles seen at a point; infinity for a line that is torn."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if line.endswith(b"\n"):
            return float(json.loads(line)[STEP_KEY])
    return math.inf


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The points of a run's metrics.jsonl, in order. Raises FileNotFoundError where there is none."""
    path = run / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no numbers of a training run here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def checked_points(run: Path) -> list[dict[str, float]]:
    """The points of a run of unknown origin. Raises ValueError where they are not numbers by name."""
    try:
        points = read_metrics(run)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{run}: its numbers (metrics.jsonl) are damaged: {str(error)[:99]}") from error
    for point in points:
        if not isinstance(point, dict) or STEP_KEY not in point:
            raise ValueError(f"{run}: a line of its metrics.jsonl is no point with {STEP_KEY}: {str(point)[:99]}")
        for key, value in point.items():
            if type(value) not in (int, float) or abs(value) > MAX_VALUE:  # NaN, of a loss that blew up, is a gap
                raise ValueError(f"{run}: its metrics.jsonl has {key[:40]} {str(value)[:40]}, which is no number")
    return points


def merge_by_step(points: Sequence[Values]) -> dict[int, dict[str, float]]:
    """Points in order of their step, those of one step merged."""
    merged: dict[int, dict[str, float]] = {}
    for point in sorted(points, key=lambda point: point[STEP_KEY]):
        values = {key: value for key, value in point.items() if key != STEP_KEY}
        merged.setdefault(int(point[STEP_KEY]), {}).update(values)
    return merged


def results_table(points: Sequence[Values]) -> str:
    """Every validation as a row of a Markdown table."""
    lines = ["| tiles seen | input dB | output dB | gain dB | gain % | SSIM in | SSIM out |", "|---" * 7 + "|"]
    columns = {"val/psnr_in": 2, "val/psnr": 2, "val/gain": 2, "val/gain_percent": 1, "val/ssim_in": 4, "val/ssim": 4}
    for point in points:
        if "val/psnr" in point:
            cells = [f"{point.get(key, math.nan):.{decimals}f}" for key, decimals in columns.items()]
            lines.append(f"| {point[STEP_KEY]:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
