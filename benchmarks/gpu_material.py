"""What the parts of `benchmarks.gpu` work on: shards of real photographs, or of drawn ones."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.environments import call
from benchmarks.gpu_part import Part
from benchmarks.material import ROOT
from shards.skylines import draw_skyline
from srcnn.config import read_yaml
from srcnn.dataset import ShardDataset

DRAWN_SIZE, NUM_DRAWN, NUM_DRAWN_VAL = (1280, 1024), 164, 16  # 80 tiles each: 13,120, an epoch of the source's size
QUICK_SIZE, NUM_QUICK, QUICK_TILE_PIXELS = (128, 96), 2, 32
DRAWING_SHARE = 0.6  # of the time that is left
FREE, ANY = "configs/shards-free.yaml", "configs/shards.yaml"


def measure(part: Part) -> None:
    """Makes the shards where they are not there; notes what they hold."""
    if not (part.shards / "val" / "manifest.json").is_file():
        make_shards(part)
    for split in ("train", "val"):
        reader = ShardDataset(part.shards / split)
        part.note(**{f"{split}_tiles": reader.num_samples})
        reader.close()
    part.note(photos="real" if part.photos else "drawn")


def make_shards(part: Part) -> None:
    """From real photos by the rules of the shipped weights, where these are their folders, else by the source's."""
    train, val = drawn(part) if part.photos is None else folders(part.photos)
    settings = ["--resize", "none"] if part.photos is None else []
    if part.photos and all((train / name).is_dir() for name in read_yaml(ROOT / FREE)["folders"]):
        settings = ["--config", FREE]
    elif part.photos:
        settings = ["--config", ANY]
    settings += ["--tile_pixels", str(QUICK_TILE_PIXELS)] if part.quick else []
    settings += ["--val", str(val)] if val else []
    call([sys.executable, "-m", "shards", *settings, "--photos", str(train), "--out", str(part.shards),
          "--allow_refused", "true"], timeout_seconds=max(part.left, 1), cwd=ROOT)


def folders(photos: Path) -> tuple[Path, Path | None]:
    """Training and validation photos: train/ and val/ below, of which city20 alone where it is there; or all in one,
    which is split.
    """
    if not (photos / "train").is_dir():
        return photos, None
    val = photos / "val"
    return photos / "train", next((folder for folder in (val / "city20", val) if folder.is_dir()), None)


def drawn(part: Part) -> tuple[Path, Path]:
    val = draw(part, "drawn-val", 1)
    return draw(part, "drawn", 0), val


def draw(part: Part, name: str, seed: int) -> Path:
    """A folder of drawn skylines, by all cores."""
    out = part.work / name
    out.mkdir(parents=True, exist_ok=True)
    num, size = (NUM_QUICK, QUICK_SIZE) if part.quick else (NUM_DRAWN_VAL if seed else NUM_DRAWN, DRAWN_SIZE)
    missing = [number for number in range(num) if not (out / f"{number:03d}.png").is_file()]
    until = time.time() + DRAWING_SHARE * part.left
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(draw_one, out, size, until), missing, [seed * 1000] * len(missing)))
    return out


def draw_one(out: Path, size: tuple[int, int], until: float, number: int, seed: int) -> None:
    """One skyline, if it is not too late: fewer photos are better than none."""
    if time.time() > until:
        return
    partial_file = out / f".{number:03d}.tmp"
    Image.fromarray(draw_skyline(seed + number, size)).save(partial_file, "PNG", compress_level=1)
    partial_file.rename(out / f"{number:03d}.png")
