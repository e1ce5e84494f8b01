"""metrics.jsonl of a run: written, read and as a table. Each line is a point, with every number that trackers get."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file
from srcnn.runtime.untrusted import InvalidInput, open_regular, parse_json

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
STEP_KEY = "samples"  # number of training tiles seen: in every point, and its step in trackers
MAX_LOG_BYTES = 256 << 20  # a million points
MAX_VALUE = 1e30  # plots with float64 axes fail with much larger numbers
Values = Mapping[str, float]
ValuesT = TypeVar("ValuesT", bound=Values)


class History:
    """Writes metrics.jsonl. Lines that cannot be written are kept in memory and written later, in order."""

    def __init__(self, run: Path, logged_samples: int) -> None:
        """Drops points past `logged_samples`, which a resumed run logs again, and torn lines."""
        self.path, self.logged_samples = run / METRICS, logged_samples
        self.lines: list[bytes] = []  # of the whole file, some hundred bytes a point
        self.num_written = self.num_bytes = 0  # lines and bytes that the file holds; bytes -1: to be replaced
        self.is_read = self.is_failing = False
        self.write()

    def points(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.lines]

    def add(self, point: Values) -> None:
        self.lines.append(json.dumps(point, default=float).encode() + b"\n")
        self.write()

    def write(self) -> None:
        """Writes the lines that are not in the file yet; warns once when that fails, and once when it works again."""
        try:
            if not self.is_read:
                self._read()
            self._append_or_replace()
        except (OSError, InvalidInput) as error:
            if not self.is_failing:
                logger.warning("%s cannot be written, its lines are kept in memory meanwhile: %s", self.path, error)
            self.is_failing = True
        else:
            if self.is_failing:
                logger.warning("%s is written again, no line is lost", self.path)
            self.is_failing = False

    def _read(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_lines(self.path)
        kept = [line for line in lines if _samples_of(line) <= self.logged_samples]
        self.num_written, self.num_bytes = len(kept), sum(map(len, kept)) if lines[: len(kept)] == kept else -1
        self.lines = kept + self.lines
        self.is_read = True

    def _append_or_replace(self) -> None:
        size = self.path.lstat().st_size if os.path.lexists(self.path) else 0
        new = self.lines[self.num_written :]
        if not 0 <= self.num_bytes <= size:  # the file is not the one written before: another disk, another file
            with atomic_file(self.path) as file:
                file.writelines(self.lines)
        elif new or size != self.num_bytes:
            with open_regular(self.path, follow=False, append=True) as file:
                file.truncate(self.num_bytes)  # removes a line half written
                file.writelines(new)
                file.flush()
                os.fsync(file.fileno())
        self.num_written, self.num_bytes = len(self.lines), sum(map(len, self.lines))


def read_lines(path: Path) -> list[bytes]:
    """The lines of a log, with their ends; none where there is no such file.

    Raises:
        InvalidInput: not a regular file, or one of more than MAX_LOG_BYTES.
        OSError: it cannot be read, or is a link.
    """
    try:
        with open_regular(path, MAX_LOG_BYTES, follow=False) as file:
            return file.readlines()
    except FileNotFoundError:
        return []


def parse_point(line: bytes) -> dict[str, float]:
    """A line of metrics.jsonl: names with numbers, NaN for a gap, of which STEP_KEY is one. Raises UserError else."""
    try:
        point = parse_json(line)
    except ValueError as error:
        raise UserError(f"a line is damaged: {str(error)[:99]}") from error
    if not isinstance(point, dict) or STEP_KEY not in point:
        raise UserError(f"a line has no {STEP_KEY}: {str(point)[:99]}")
    for key, value in point.items():
        is_number = type(value) in (int, float) and not abs(value) > MAX_VALUE
        if not is_number or key == STEP_KEY and not value >= 0:
            raise UserError(f"{key[:40]} is {str(value)[:40]}, expected a number")
    return point


def _samples_of(line: bytes) -> float:
    """The number of tiles seen at a point; infinity for a line that is torn or not a point."""
    with contextlib.suppress(UserError):
        if line.endswith(b"\n"):
            return parse_point(line)[STEP_KEY]
    return math.inf


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The points of a run, which may be a stranger's, from its metrics.jsonl, in order.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or has numbers that are too large for a plot; or it is not a regular file.
    """
    path = run / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a training run")
    try:
        return [parse_point(line) for line in read_lines(path)]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def merge_by_step(points: Sequence[Values]) -> dict[int, dict[str, float]]:
    """The values by step, in order; points of one step are merged."""
    merged: dict[int, dict[str, float]] = {}
    for point in sorted(points, key=lambda point: point[STEP_KEY]):
        values = {key: value for key, value in point.items() if key != STEP_KEY}
        merged.setdefault(int(point[STEP_KEY]), {}).update(values)
    return merged


def best_validation(points: Sequence[ValuesT]) -> ValuesT | None:
    """The point with the best validation PSNR; None where there was no validation."""
    validations = [point for point in points if math.isfinite(point.get("val/psnr", math.nan))]
    return max(validations, key=lambda point: point["val/psnr"], default=None)


def results_table(points: Sequence[Values]) -> str:
    """A Markdown table with a row for every validation."""
    lines = ["| tiles seen | input dB | output dB | gain dB | gain % | SSIM in | SSIM out |", "|---" * 7 + "|"]
    columns = {"val/psnr_in": 2, "val/psnr": 2, "val/gain": 2, "val/gain_percent": 1, "val/ssim_in": 4, "val/ssim": 4}
    for point in points:
        if "val/psnr" in point:
            cells = [f"{point.get(key, math.nan):.{decimals}f}" for key, decimals in columns.items()]
            lines.append(f"| {point[STEP_KEY]:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
