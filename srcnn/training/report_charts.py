"""The curves of a run as SVG: drawn raw and thin, smoothed and bold; colours come from the style sheet of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srcnn.tracking.history import STEP_KEY, Values

WIDTH, HEIGHT = 560, 300  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40  # margins
MAX_DRAWN = 500  # points of a line; more are averaged
SMOOTHING = 0.06  # of the whole length: after so many tiles an old value counts for 1/e
LOWEST_PERCENT = 5  # values below this percentile, as of the first steps, may lie outside
NOISY = 12  # points from which a line is smoothed


@dataclass(frozen=True)
class Line:
    """A line of a chart: the values of `key` over the tiles seen.

    `style`: "train" is drawn raw and smoothed, "val" with a dot for each value, "input" dashed, "exact" as it is.
    """

    key: str
    label: str
    style: str = "train"


@dataclass(frozen=True)
class Chart:
    title: str
    lines: tuple[Line, ...]
    decimals: int = 2
    logarithmic: bool = False


CHARTS = (
    Chart("PSNR, dB", (Line("train/psnr", "training"), Line("val/psnr", "validation", "val"),
                       Line("val/psnr_in", "its degraded input", "input"))),
    Chart("Loss", (Line("train/loss", "training"), Line("val/loss", "validation, mean squared error", "val")),
          6, logarithmic=True),
    Chart("Learning rate", (Line("learning_rate", "first layers", "exact"),), 6),
    Chart("Tiles per second", (Line("tiles_per_second", "while training"),), 1),
)


def draw_chart(chart: Chart, points: Sequence[Values]) -> str:
    """A chart as HTML with its SVG, of what the points of a run hold; "" where that is nothing that can be drawn."""
    lines = {line: found for line in chart.lines if len(found := values_of(points, line.key, chart.logarithmic))}
    if not lines:
        return ""
    scale = _Scale(list(lines.values()), chart.logarithmic)
    drawn = "".join(_draw_line(line, values, scale, chart.decimals) for line, values in lines.items())
    legend = "".join(f'<span class="key {line.style}"><i></i>{html.escape(line.label)}</span>' for line in lines)
    return (f'<figure class="chart"><figcaption><b>{html.escape(chart.title)}</b>{legend}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}">'
            f'{scale.axes()}{drawn}</svg></figure>')


def values_of(points: Sequence[Values], key: str, logarithmic: bool = False) -> np.ndarray:
    """float64 (N, 2), tiles seen and value, of the points that have a finite value; positive, where `logarithmic`."""
    found = [(point[STEP_KEY], point[key]) for point in points if math.isfinite(point.get(key, math.nan))]
    values = np.array(found, np.float64).reshape(-1, 2)
    return values[values[:, 1] > 0] if logarithmic else values


def smooth(values: np.ndarray) -> np.ndarray:
    """An exponential moving average over the tiles seen, (N, 2) -> (N, 2), without a bias to the first value."""
    steps, result = np.diff(values[:, 0], prepend=values[0, 0]), values.copy()
    decay = np.exp(-np.maximum(steps, 0) / max(SMOOTHING * np.ptp(values[:, 0]), 1e-9))
    total = weight = 0.0
    for index, (keep, value) in enumerate(zip(decay, values[:, 1], strict=True)):
        total, weight = keep * total + value, keep * weight + 1
        result[index, 1] = total / weight
    return result


def thinned(values: np.ndarray) -> np.ndarray:
    """At most MAX_DRAWN points, the means of neighbours."""
    if len(values) <= MAX_DRAWN:
        return values
    return np.array([part.mean(0) for part in np.array_split(values, MAX_DRAWN)])


class _Scale:
    """From values to places in the drawing, with axes."""

    def __init__(self, lines: list[np.ndarray], logarithmic: bool) -> None:
        self.logarithmic = logarithmic
        tiles = np.concatenate([line[:, 0] for line in lines])
        lowest = min(np.percentile(line[:, 1], LOWEST_PERCENT if len(line) >= NOISY else 0) for line in lines)
        highest = max(line[:, 1].max() for line in lines)
        self.right = max(float(tiles.max()), 1.0)
        if logarithmic:
            margin = max((highest / lowest) ** 0.05, 1.02)
            self.low, self.high = float(lowest / margin), float(highest * margin)
        else:
            margin = 0.06 * (highest - lowest) or 0.05 * abs(highest) or 1.0
            self.low, self.high = float(lowest - margin), float(highest + margin)
            self.low = max(self.low, 0.0) if lowest >= 0 else self.low

    def places(self, values: np.ndarray) -> np.ndarray:
        """(N, 2) -> (N, 2), in units of the drawing."""
        low, high, heights = self.low, self.high, np.clip(values[:, 1], self.low, self.high)
        if self.logarithmic:
            low, high, heights = math.log(low), math.log(high), np.log(heights)
        across = LEFT + values[:, 0] / self.right * (WIDTH - LEFT - RIGHT)
        return np.stack([across, HEIGHT - BOTTOM - (heights - low) / (high - low) * (HEIGHT - TOP - BOTTOM)], 1)

    def axes(self) -> str:
        parts = []
        for tick in ticks(self.low, self.high, self.logarithmic):
            y = self.places(np.array([[0, tick]]))[0, 1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                         f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{tick:.5g}</text>')
        for tick in ticks(0, self.right, False):
            x = self.places(np.array([[tick, self.low]]))[0, 0]
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}">{short(tick)}</text>')
        parts.append(f'<text class="tick mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">tiles seen</text>')
        return "".join(parts)


def _draw_line(line: Line, values: np.ndarray, scale: _Scale, decimals: int) -> str:
    is_noisy = line.style == "train" and len(values) >= NOISY
    raw = f'<path class="raw {line.style}" d="{path(scale.places(thinned(values)))}"/>' if is_noisy else ""
    drawn = thinned(smooth(values) if is_noisy else values)
    dots = ""
    if line.style == "val":
        dots = "".join(f'<circle class="val" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{short(tiles)} tiles: '
                       f'{value:.{decimals}f}</title></circle>'
                       for (tiles, value), (x, y) in zip(drawn, scale.places(drawn), strict=True))
    return f'{raw}<path class="line {line.style}" d="{path(scale.places(drawn))}"/>{dots}'


def path(places: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers from `low` to `high`, some four to seven."""
    from matplotlib.ticker import LogLocator, MaxNLocator  # slow to import, and wanted only here

    found: Sequence[float] = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if logarithmic and high / low >= 4:
        few = high / low < 100
        found = LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def short(number: float) -> str:
    """A number of tiles as on an axis: 16k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"
