"""Making training pairs, beside the source project's way and BasicSR's: `python -m benchmarks.making --help`.

The largest photographs given are fitted to 4000x3000 and saved as JPEG of quality 92, and to 1200x900 and saved as PNG,
once; where there are too few they come mirrored too; without any, drawn skylines are taken. All recipes make the same:
a photo becomes 1024x1024 (Lanczos), is degraded by JPEG of quality 20 and cut into 64 pairs of grey 128x128 tiles.

Each recipe runs in a process of its own, pinned to as many cores as it is measured on, in turn, round after round;
medians. The clock starts when everything is imported and the worker processes, if any, wait for work; it ends when all
files are written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageOps

from benchmarks.dataset import photos_below, photos_or_drawn
from benchmarks.measure import WORK, alternate, call_json, log, machine, medians, table
from shards import write
from shards.decode import Decode, read_original
from shards.plan import ShardsConfig
from shards.workers import WorkerPool
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import MAX_MEGAPIXELS, Resize, luma_l

SIDE, TILE, QUALITY = 1024, 128, 20
BOXES = [(x, y, x + TILE, y + TILE) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
DECODINGS: tuple[Decode, ...] = get_args(Decode)
SUB_IMAGE_COMPRESSION = 3  # BasicSR's default for its sub-images
WARM_SECONDS = 0.5
# Name -> size, suffix, options of saving
PHOTOS: dict[str, tuple[tuple[int, int], str, dict[str, int]]] = {
    "12 MP JPEG": ((4000, 3000), ".jpg", {"quality": 92}),
    "1 MP PNG": ((1200, 900), ".png", {}),
}
TITLES = {
    "source": "the source project's: a PNG file for each pair, one process",
    "basicsr": "as BasicSR's: PNG sub-images by a pool of processes",
    "exact": "`python -m shards`",
    "reduced": "`python -m shards --decode reduced`",
}


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
    config = ShardsConfig(photos=str(photos[0].parent), out=str(out), resize=f"{SIDE}x{SIDE}", decode=decode,
                          num_workers=cores)
    with WorkerPool(cores) as workers:
        if cores > 1:
            list(workers.map(time.sleep, [WARM_SECONDS] * cores))
        list(workers.map(warm, range(cores)))
        yield
        write.fill_output(config, write.list_sources(config)[0], workers, show_progress=False)


def warm(number: int) -> None:
    """Unpickling its name imports this module, and all that makes shards with it."""
    time.sleep(WARM_SECONDS)


RECIPES: dict[str, Callable[[list[Path], Path, int], Iterator[None]]] = {
    "source": source,
    "basicsr": basicsr,
    "exact": ours,
    "reduced": partial(ours, decode="reduced"),
}


def run_recipe(name: str, photos: Path, out: Path, cores: int) -> dict[str, float]:
    """In the recipe's own process: seconds, and the most memory of any process, MiB."""
    run = RECIPES[name](sorted(photos.iterdir()), out, cores)
    next(run)
    start = time.perf_counter()
    for _ in run:
        pass
    seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "peak_mib": max(peaks) / 1024}


def measure(name: str, photos: Path, out: Path, cores: int) -> dict[str, Any]:
    """One run on the first `cores` cores, on a disk that has nothing else to write."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    try:
        return call_json([sys.executable, "-m", "benchmarks.making", "--recipe", name, "--photos", photos,
                          "--work", out, "--cores", str(cores)], cores, {"OMP_NUM_THREADS": "1"})
    finally:
        shutil.rmtree(out, ignore_errors=True)


def prepare(folder: Path, kind: str, photos: Path | None, num: int) -> Path:
    """A folder of `num` photos of this size and format; made when first asked for."""
    if folder.is_dir():
        return folder
    size, suffix, saving = PHOTOS[kind]
    paths = largest_first(photos_or_drawn(photos, folder.parent, num))[:num]
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number in range(num):
        log(f"preparing {kind} {number + 1} of {num}")
        with Image.open(paths[number % len(paths)]) as image:
            photo = ImageOps.exif_transpose(image).convert("RGB")
        photo = ImageOps.mirror(photo) if number // len(paths) % 2 else photo
        photo = ImageOps.flip(photo) if number // len(paths) % 4 > 1 else photo
        ImageOps.fit(photo, size, Image.Resampling.LANCZOS).save(unfinished / f"{number:05d}{suffix}", **saving)
    unfinished.rename(folder)
    return folder


def largest_first(photos: Path) -> list[Path]:
    def num_pixels(path: Path) -> int:
        with Image.open(path) as image:
            return image.width * image.height

    return sorted(photos_below(photos), key=num_pixels, reverse=True)


def compare(kind: str, photos: Path, out: Path, cores: int, rounds: int) -> list[dict[str, Any]]:
    """Photos a second and memory of each recipe."""
    recipes = [name for name in RECIPES if cores == 1 or name != "source"]
    for path in sorted(photos.iterdir()):
        path.read_bytes()  # all read from the page cache
    runs = alternate({name: partial(measure, name, photos, out, cores) for name in recipes}, rounds)
    num_photos = len(list(photos.iterdir()))
    return [{"photos": kind, "cores": cores, "recipe": name, "rate": num_photos / middle["seconds"]} | middle
            for name, middle in zip(runs, map(medians, runs.values()), strict=True)]


def compare_decoding(photos: Path) -> str:
    """How far the clean pictures of `--decode reduced` are from the exact ones, as a table."""
    rule, rows = Resize.parse(ShardsConfig.resize), []
    for path in photos_below(photos):
        exact, reduced = (luma_l(read_original(path, rule, scale, MAX_MEGAPIXELS)[0]) for scale in DECODINGS)
        if not np.array_equal(exact, reduced):
            rows.append((path.name, psnr(exact, reduced)))
    numbers = [number for _, number in rows]
    total = [("mean", fmean(numbers)), ("lowest", min(numbers))] if rows else []
    return table(["photo", "PSNR of the luma, dB"], [(name, f"{number:.1f}") for name, number in [*rows, *total]])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the making of training pairs, side by side.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--work", type=Path, default=WORK, help="photos are kept there between calls")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2][: len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_photos", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="2 photos, one round: does it work?")
    parser.add_argument("--decoding", action="store_true", help="only how far reduced decoding is from exact")
    parser.add_argument("--recipe", choices=RECIPES, help=argparse.SUPPRESS)
    if parser.parse_args(arguments).quick:
        parser.set_defaults(rounds=1, num_photos=2)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if options.recipe:
        print(json.dumps(run_recipe(options.recipe, options.photos, options.work, options.cores[0])))
        return 0
    if options.decoding:
        print(compare_decoding(photos_or_drawn(options.photos, options.work, options.num_photos)))
        return 0
    work = options.work.resolve() / "making"
    results: list[dict[str, Any]] = []
    for kind in PHOTOS:
        photos = prepare(work / f"{options.num_photos} {kind}", kind, options.photos, options.num_photos)
        for cores in sorted(set(options.cores)):
            results += compare(kind, photos, work / "out", cores, options.rounds)
    source_rates = {one["photos"]: one["rate"] for one in results if one["recipe"] == "source"}
    rows = []
    for one in results:
        rate, source_rate = one["rate"], source_rates.get(one["photos"])
        rows.append([one["photos"], one["cores"], TITLES[one["recipe"]], f"{rate:.1f}", f"{rate * len(BOXES):,.0f}",
                     f"{rate / source_rate:.2f}" if source_rate else "", f"{one['peak_mib']:.0f}"])
    header = ["photos", "cores", "recipe", "photos/s", "pairs/s", "times the source's", "MiB"]
    about = f"{options.num_photos} photos, {len(BOXES)} pairs each; medians of {options.rounds} alternating runs."
    print(f"{about} Memory: the largest process.\n\n{table(header, rows)}\n\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
