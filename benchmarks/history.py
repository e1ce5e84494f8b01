"""How well former JPEGs are recognised by their pixels: `python -m benchmarks.history --photos DIR`; prints a table.

The photos must never have been JPEGs, or have been reduced since. Each is saved in several ways; others are drawn.
"Found" is the share of results with the right grid and a quality within 3.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.dataset import photos_below
from benchmarks.measure import Failed, table
from srcnn.photos.jpeg_history import JpegHistory, estimate_history

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
TOLERANCE = 3  # of quality
SHIFT = 3  # pixels cut off at the left and the top before the photo is saved again
NUM_DRAWN = 10


class Case(NamedTuple):
    """A picture, what is to be found (None: nothing) and where, and the quality of its file if it is a JPEG."""

    name: str
    picture: Image.Image
    quality: int | None = None
    offset: tuple[int, int] = (0, 0)
    file_quality: int | None = None


def saved(picture: Image.Image, quality: int, file_format: str = "JPEG") -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, quality=quality)
    return Image.open(buffer).convert(picture.mode)


def cases(clean: Image.Image) -> Iterator[Case]:
    width, height = clean.size
    yield Case("clean", clean)
    for quality in QUALITIES:
        once = saved(clean, quality)
        yield Case(f"q{quality}, as PNG", once, quality)
        yield Case(f"q{quality}, its JPEG file", once, None, file_quality=quality)
    for first, last in ((first, last) for last in (75, 85, 90, 95) for first in (20, 30)):
        once = saved(clean, first)
        moved = once.crop((SHIFT, SHIFT, width, height))
        for name, picture, offset in (("again", once, (0, 0)), ("cropped,", moved, (-SHIFT % 8, -SHIFT % 8))):
            again = saved(picture, last)
            yield Case(f"q{first}, {name} q{last}", again, first, offset, last)
            yield Case(f"q{first}, {name} q{last}, as PNG", again, first, offset)
    for quality in (20, 30, 60):
        smaller = saved(clean, quality).resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BICUBIC)
        yield Case(f"q{quality}, scaled to 0.75", smaller)
    for quality in (30, 75):
        yield Case(f"WebP {quality}", saved(clean, quality, "WEBP"))


def draw_screen(seed: int) -> Image.Image:
    """A picture of windows and text, 800x600; half of them have everything at multiples of 8 pixels."""
    rng = np.random.default_rng(seed)
    dark = seed % 4 > 1
    screen = Image.new("RGB", (800, 600), (20, 22, 25) if dark else (240, 241, 243))
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(size=14)
    raster = 8 if seed % 2 else 1
    for _ in range(100):
        left, top = (raster * int(value) for value in rng.integers(600 // raster, size=2))
        colour = tuple(int(level) for level in rng.integers(30, 220, 3))
        draw.rectangle((left, top, left + 80, top + 23), fill=colour)
        draw.text((left, top + 24), "Files  Edit  View", fill=(210, 210, 210) if dark else (30, 31, 33), font=font)
    return screen


def drawn() -> Iterator[Case]:
    y, x = np.mgrid[:480, :640]
    for seed in range(NUM_DRAWN):
        yield Case("drawn screenshot", draw_screen(seed))
        slope = 120 + 60 * np.sin(x / (60 + 9 * seed)) + 50 * np.cos(y / (40 + 7 * seed))
        yield Case("drawn gradient", Image.fromarray(slope.round().astype(np.uint8)))


def row(name: str, of_case: list[tuple[Case, JpegHistory | None, float]]) -> list[object]:
    found = [(abs(history.quality - (case.quality or 0)), history.offset == case.offset)
             for case, history, _ in of_case if history is not None]
    numbers: list[object] = ["-", "-", len(found)]
    if of_case[0][0].quality is not None:
        right = sum(error <= TOLERANCE and right_offset for error, right_offset in found)
        numbers = [f"{right / len(of_case):.0%}", f"{median(error for error, _ in found):g}" if found else "-", "-"]
    return [name, len(of_case), *numbers, f"{median(seconds for *_, seconds in of_case):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how well former JPEGs are recognised by their pixels.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="clean photos, or folders of them")
    options = parser.parse_args()
    try:
        paths = [path for each in options.photos for path in ([each] if each.is_file() else photos_below(each))]
    except Failed as error:
        parser.error(str(error))
    results: dict[str, list[tuple[Case, JpegHistory | None, float]]] = {}
    for case in chain(*(cases(Image.open(path).convert("RGB")) for path in paths), drawn()):
        begun = time.process_time()
        history = estimate_history(np.asarray(case.picture), case.file_quality)
        results.setdefault(case.name, []).append((case, history, time.process_time() - begun))
    print(table(["photos", "number", "found", "median error", "false alarms", "CPU seconds"],
                map(row, results.keys(), results.values())))


if __name__ == "__main__":
    main()
