"""From photographs to the same tiles in every loader's format."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

from benchmarks.environments import Failed, call
from benchmarks.loaders import Loader

ROOT = Path(__file__).resolve().parent.parent
_beside = ROOT.parent / "shared" / "data"
PHOTOS = _beside if _beside.is_dir() else None  # real ones, where they lie beside the checkout
PEERS = Path(__file__).resolve().parent / "peers"
SUFFIXES = (".png", ".jpg", ".jpeg")
TILE_PIXELS = 128
NUM_DRAWN = 16
SMALLER_EACH_PASS = 0.9  # photos come again reduced by this where there are too few


def make_shards(work: Path, photos: Path | None, num_pairs: int) -> None:
    """work/shards/npy and work/shards/png of at least `num_pairs` training pairs each; nothing if they are there."""
    if not all((shards_of(work, encoding) / "manifest.json").is_file() for encoding in ("npy", "png")):
        rules = choose_photos(work, photos or draw_photos(work), num_pairs)
        for encoding in ("npy", "png"):
            call([
                sys.executable, "-m", "shards", "--photos", str(work / "photos"), "--folders", json.dumps(rules),
                "--out", str(work / "shards" / encoding), "--encoding", encoding, "--val_fraction", "0",
                "--allow_refused", "true",
            ], cwd=ROOT)  # fmt: skip


def shards_of(work: Path, encoding: str) -> Path:
    return work / "shards" / encoding / "train"


def draw_photos(work: Path) -> Path:
    """Drawn skylines, where there are no photographs."""
    folder = work / "skylines"
    call([sys.executable, "-m", "shards.skylines", str(folder), "--num", str(NUM_DRAWN)], cwd=ROOT)
    return folder


def choose_photos(work: Path, photos: Path, num_pairs: int) -> dict[str, str]:
    """Copies photos to work/photos until they give enough tiles: in the order of their content's hash, as they are,
    then all again reduced. Gives each folder's resize rule.
    """
    paths = sorted((path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES), key=_hash)
    if not paths:
        raise Failed(f"{photos}: no photos ({', '.join(SUFFIXES)})")
    rules: dict[str, str] = {}
    num_passes, found = 0, 0
    while found < num_pairs:
        factor = SMALLER_EACH_PASS**num_passes
        name, before = f"pass-{num_passes}", found
        rules[name] = f"x{factor:.3f}" if num_passes else "none"
        for path in paths:
            if found < num_pairs and (num_tiles := _num_tiles(path, factor)):
                found += num_tiles
                target = work / "photos" / name / f"{_hash(path)[:16]}{path.suffix.lower()}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        if found == before:
            raise Failed(f"{photos}: its photos give {found} tiles, {num_pairs} are needed")
        num_passes += 1
    return rules


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _num_tiles(path: Path, factor: float) -> int:
    """As many as there surely are: one pixel less each way than the photo's size says."""
    with Image.open(path) as image:
        width, height = (math.floor(side * factor) - 1 if factor < 1 else side for side in image.size)
    return int(width // TILE_PIXELS) * int(height // TILE_PIXELS)


def location_of(work: Path, loader: Loader, python: Path) -> Path:
    """The folder that the loader reads; converted in its own environment when first asked for.

    Raises:
        Failed: the converter could not.
    """
    shards = shards_of(work, loader.encoding)
    if not loader.prepared:
        return shards
    folder = work / "formats" / loader.script
    ready = folder.with_suffix(".ready")
    if not ready.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        call([str(python), str(PEERS / f"{loader.script}.py"), "prepare", str(shards), str(folder)])
        os.sync()
        ready.touch()
    return folder
