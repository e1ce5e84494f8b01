"""The photos and shards that are measured on: real photographs, or drawn skylines."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

from PIL import Image

from benchmarks.measure import Failed, call

SUFFIXES = (".png", ".jpg", ".jpeg")
TILE_PIXELS = 128
NUM_DRAWN, PAIRS_OF_A_DRAWN_PHOTO = 16, 48  # at the most; at least
SMALLER_EACH_PASS = 0.9  # photos come again reduced by this where there are too few


def photos_or_drawn(photos: Path | None, work: Path, num: int) -> Path:
    """The folder of photos, or one of so many drawn skylines."""
    if photos is not None:
        return photos.resolve()
    call([sys.executable, "-m", "shards.skylines", work / "skylines", "--num", str(num)])
    return work / "skylines"


def photos_below(folder: Path) -> list[Path]:
    """All photos below the folder. Raises Failed if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise Failed(f"{folder}: no photos ({', '.join(SUFFIXES)})")
    return found


def photos_of(places: list[Path]) -> list[Path]:
    """The files among these, and all photos below the folders. Raises Failed for a folder without any."""
    return [path for place in places for path in ([place] if place.is_file() else photos_below(place))]


def make_shards(work: Path, photos: Path | None, num_pairs: int, encodings: tuple[str, ...] = ("npy",)) -> Path:
    """work/shards/ENCODING/train of at least `num_pairs` pairs for each encoding, made once; gives work/shards."""
    missing = [name for name in encodings if not (work / "shards" / name / "train" / "manifest.json").is_file()]
    if missing:
        num_drawn = min(NUM_DRAWN, num_pairs // PAIRS_OF_A_DRAWN_PHOTO + 1)
        resize_rules = choose_photos(work, photos_or_drawn(photos, work, num_drawn), num_pairs)
    for encoding in missing:
        call([
            sys.executable, "-m", "shards", "--photos", work / "photos", "--folders", json.dumps(resize_rules),
            "--out", work / "shards" / encoding, "--encoding", encoding, "--val_fraction", "0",
            "--allow_refused", "true",
        ])  # fmt: skip
    return work / "shards"


def choose_photos(work: Path, photos: Path, num_pairs: int) -> dict[str, str]:
    """Copies photos to work/photos until they give enough tiles: in the order of their content's hash, as they are,
    then all again reduced. Gives each folder's resize rule.
    """
    paths = sorted(photos_below(photos), key=_hash)
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
