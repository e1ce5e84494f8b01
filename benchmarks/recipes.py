"""Ways from photographs to training pairs, one in a process of its own: `python -m benchmarks.recipes NAME PHOTOS OUT`.

All make the same: a photo becomes 1024x1024 (Lanczos), is spoiled by JPEG of quality 20 and cut into 64 pairs of grey
128x128 tiles. The clock starts when everything is imported and the worker processes, if any, wait for work; it ends
when all files are written. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from shards import output, tar, workers, write
from shards.plan import ShardsConfig

SIDE, TILE, QUALITY = 1024, 128, 20
BOXES = [(x, y, x + TILE, y + TILE) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
SUB_IMAGE_COMPRESSION = 3  # BasicSR's default for its sub-images
WARM_SECONDS = 0.5
# What is not reading, resizing or spoiling a photo: hashing it, packing its pairs, hashes, index, manifest.
PACKING = (
    (write, "scan"), (tar.TarWriter, "write"), (output, "reserve_output"),
    (output, "write_result"), (output, "finish_split"), (os, "fsync"),
)  # fmt: skip


def degraded_pair(photo: Path, temporary: Path) -> tuple[Image.Image, Image.Image]:
    """The resized photo and what is left of it, by way of a JPEG file, grey both."""
    with Image.open(photo) as image:
        clean = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    clean.save(temporary, "JPEG", quality=QUALITY, optimize=True)
    with Image.open(temporary) as degraded:
        return clean.convert("L"), degraded.convert("L")


def source(photos: list[Path], out: Path, cores: int) -> Iterator[None]:
    """The source project's: one process, each pair a PNG file of 256x128, clean left, degraded right."""
    out.mkdir(parents=True)
    yield
    for number, photo in enumerate(photos):
        clean, degraded = degraded_pair(photo, out / "degraded.jpg")
        for tile, box in enumerate(BOXES):
            pair = Image.new("L", (2 * TILE, TILE))
            pair.paste(clean.crop(box), (0, 0))
            pair.paste(degraded.crop(box), (TILE, 0))
            pair.save(out / f"{number:05d}_{tile:02d}.png")


def basicsr(photos: list[Path], out: Path, cores: int) -> Iterator[None]:
    """As BasicSR prepares its sets: sub-images as PNG files, clean and degraded apart, by a pool of processes."""
    for name in ("clean", "degraded"):
        (out / name).mkdir(parents=True)
    with multiprocessing.Pool(cores) as processes:
        processes.map(time.sleep, [0.0] * cores)
        yield
        for result in [processes.apply_async(sub_images, (photo, out)) for photo in photos]:
            result.get()


def sub_images(photo: Path, out: Path) -> None:
    pair = degraded_pair(photo, out / f"{photo.stem}.jpg")
    for name, image in zip(("clean", "degraded"), pair, strict=True):
        for tile, box in enumerate(BOXES):
            path = out / name / f"{photo.stem}_s{tile:03d}.png"
            image.crop(box).save(path, compress_level=SUB_IMAGE_COMPRESSION)


def ours(photos: list[Path], out: Path, cores: int, decode: Any = "exact") -> Iterator[None]:
    """`python -m shards`, hashing and fsync included."""
    config = ShardsConfig(photos=str(photos[0].parent), out=str(out), decode=decode, num_workers=cores)
    with workers.Workers(cores) as processes:
        list(workers.start(time.sleep, [WARM_SECONDS] * cores * (cores > 1)))
        list(workers.start(warm, range(cores)))
        yield
        write.fill_output(config, write.find_sources(config)[0], processes, show_progress=False)


def warm(number: int) -> None:
    """Unpickling its name imports this module, and all that makes shards with it."""
    time.sleep(WARM_SECONDS)


RECIPES: dict[str, Callable[[list[Path], Path, int], Iterator[None]]] = {
    "source": source,
    "basicsr": basicsr,
    "exact": ours,
    "reduced": partial(ours, decode="reduced"),
}


class Clock:
    """Sums up the time spent in some functions; calls of one inside another count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            self._depth += 1
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return call

    @contextmanager
    def over(self, places: tuple[tuple[Any, str], ...]) -> Iterator[None]:
        """Counts the calls of these attributes."""
        patches = [mock.patch.object(owner, name, self.counted(getattr(owner, name))) for owner, name in places]
        for patch in patches:
            patch.start()
        yield
        for patch in patches:
            patch.stop()


def measure(name: str, photos: list[Path], out: Path, cores: int) -> dict[str, Any]:
    """Seconds from start to end and of this process's computing; the share of packing where all is done in it; the
    most memory of any process.
    """
    run = RECIPES[name](photos, out, cores)
    clock = Clock()
    with clock.over(PACKING if cores == 1 else ()):
        next(run)
        start, packing_before, cpu_before = time.perf_counter(), clock.seconds, time.process_time()
        for _ in run:
            pass
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_before
    packing = (clock.seconds - packing_before) / seconds if cores == 1 and name in ("exact", "reduced") else None
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "own_cpu_seconds": cpu_seconds, "packing_share": packing, "peak_mib": max(peaks) / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measure(options.recipe, sorted(options.photos.iterdir()), options.out, options.cores)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
