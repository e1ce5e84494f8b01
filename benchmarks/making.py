"""Making training pairs, side by side with the source project's way and BasicSR's: `python -m benchmarks.making`.

The largest photographs given are fitted to 4000x3000 and saved as JPEG of quality 92, and to 1200x900 and saved as PNG,
once; where there are too few they come mirrored too; without any, drawn skylines are taken. Each recipe runs in a
process of its own, pinned to as many cores as it is measured on, in turn, round after round; medians. Nobody's start-up
counts: not the imports, not the start of worker processes (see benchmarks/recipes.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from benchmarks.environments import Failed, call, last_line
from benchmarks.material import PHOTOS, SUFFIXES
from benchmarks.report import machine

HERE = Path(__file__).resolve().parent
PAIRS_OF_A_PHOTO = 64
# folder -> size, suffix, options of saving
MATERIALS: dict[str, tuple[tuple[int, int], str, dict[str, int]]] = {
    "12 MP JPEG": ((4000, 3000), ".jpg", {"quality": 92}),
    "1 MP PNG": ((1200, 900), ".png", {}),
}
TITLES = {
    "source": "the source project's: a PNG file for each pair, one process",
    "basicsr": "as BasicSR's: PNG sub-images by a pool of processes",
    "exact": "`python -m shards`",
    "reduced": "`python -m shards --decode reduced`",
}
ONE_PROCESS = ("source",)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the making of training pairs, side by side.")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="else: drawn")
    parser.add_argument("--work", type=Path, default=HERE / "built", help="photos are kept there between calls")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2][: len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_photos", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="4 photos, one round: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all that was measured goes there")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(rounds=1, num_photos=4)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    work = options.work.resolve() / "making"
    rows = []
    for material in MATERIALS:
        photos = prepare(work / f"{options.num_photos} {material}", material, options.photos, options.num_photos)
        for cores in sorted(set(options.cores)):
            rows += alternate(material, photos, work / "out", cores, options.rounds)
    result = ratios(rows) | {
        "date": date.today().isoformat(),
        "machine": machine(),
        "num_photos": options.num_photos,
        "rounds": options.rounds,
        "drawn": options.photos is None,
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    for name in (key for key in result if key.startswith("shards_")):
        print(f"{name}: {result[name]:.2f}")
    return 0


def prepare(folder: Path, material: str, photos: Path | None, num: int) -> Path:
    """A folder of `num` photos of this size and format; made when first asked for."""
    if folder.is_dir():
        return folder
    size, suffix, saving = MATERIALS[material]
    paths = largest(photos or draw(folder.parent / "skylines", num))[:num]
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for number in range(num):
        print(f"preparing {material} {number + 1} of {num}", file=sys.stderr, flush=True)
        with Image.open(paths[number % len(paths)]) as image:
            photo = ImageOps.exif_transpose(image).convert("RGB")
        photo = ImageOps.mirror(photo) if number // len(paths) % 2 else photo
        photo = ImageOps.flip(photo) if number // len(paths) % 4 > 1 else photo
        ImageOps.fit(photo, size, Image.Resampling.LANCZOS).save(making / f"{number:05d}{suffix}", **saving)
    os.rename(making, folder)
    return folder


def draw(folder: Path, num: int) -> Path:
    call([sys.executable, "-m", "shards.skylines", str(folder), "--num", str(num)], cwd=HERE.parent)
    return folder


def largest(photos: Path) -> list[Path]:
    """All photos below the folder, those with the most pixels first."""
    found = []
    for path in sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            found.append((image.width * image.height, path))
    if not found:
        raise Failed(f"{photos}: no photos ({', '.join(SUFFIXES)})")
    return [path for _, path in sorted(found, key=lambda item: -item[0])]


def alternate(material: str, photos: Path, out: Path, cores: int, rounds: int) -> list[dict[str, Any]]:
    """Each recipe once a round, beginning with another one each round; one row for each."""
    recipes = [recipe for recipe in TITLES if cores == 1 or recipe not in ONE_PROCESS]
    runs: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in recipes}
    for path in sorted(photos.iterdir()):
        path.read_bytes()  # all read from the page cache
    for number in range(rounds):
        turn = number % len(recipes)
        for recipe in recipes[turn:] + recipes[:turn]:
            runs[recipe].append(run(recipe, photos, out, cores))
            told = f"{material}, {cores} cores, round {number + 1}, {recipe}: {runs[recipe][-1]['seconds']:.2f} s"
            print(told, file=sys.stderr, flush=True)
    num_photos = len(list(photos.iterdir()))
    rows = []
    for recipe, found in runs.items():
        shares = [one["packing_share"] for one in found if one["packing_share"] is not None]
        seconds = statistics.median(one["seconds"] for one in found)
        rows.append({
            "material": material,
            "recipe": recipe,
            "cores": cores,
            "seconds": seconds,
            "photos_per_second": num_photos / seconds,
            "pairs_per_second": num_photos * PAIRS_OF_A_PHOTO / seconds,
            "peak_mib": max(one["peak_mib"] for one in found),
            "packing_share": statistics.median(shares) if shares else None,
            "all_seconds": [one["seconds"] for one in found],
            "all_own_cpu_seconds": [one["own_cpu_seconds"] for one in found],
        })  # fmt: skip
    return rows


def run(recipe: str, photos: Path, out: Path, cores: int) -> dict[str, Any]:
    """One run on the first `cores` cores, on a disk that has nothing else to write."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    if len(allowed) < cores:
        raise Failed(f"--cores {cores}: this process may use {len(allowed)}")
    command = [sys.executable, "-m", "benchmarks.recipes", recipe, str(photos), str(out), "--cores", str(cores)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise Failed(f"{recipe}: {last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast, on 12 MP JPEGs and one core; the efficiency of the most cores; the share of packing."""
    here = {(row["recipe"], row["cores"]): row for row in rows if row["material"] == "12 MP JPEG"}
    rates = {key: row["photos_per_second"] for key, row in here.items()}
    few, most = min(row["cores"] for row in rows), max(row["cores"] for row in rows)
    found: dict[str, float] = {}
    if few == 1:
        for peer, name in (("source", "shards_ratio"), ("basicsr", "shards_ratio_basicsr")):
            found[name] = rates["reduced", 1] / rates[peer, 1]
            found[f"{name}_exact"] = rates["exact", 1] / rates[peer, 1]
        found["shards_packing_share"] = here["reduced", 1]["packing_share"]
        found["shards_packing_share_exact"] = here["exact", 1]["packing_share"]
    if most > few:
        for recipe, name in (("reduced", "shards_core_efficiency"), ("exact", "shards_core_efficiency_exact")):
            found[name] = rates[recipe, most] / rates[recipe, few] / (most / few)
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown: what was measured on, and a line for each material, number of cores and recipe."""
    about = result["machine"]
    photos = "drawn skylines" if result["drawn"] else "photographs"
    lines = [
        f"{result['num_photos']} {photos}, {PAIRS_OF_A_PHOTO} pairs each; {about['cpu']}, Python {about['python']}; "
        f"medians of {result['rounds']} alternating runs; {result['date']}. Memory: the largest process.",
        "",
        "| photos | cores | recipe | photos/s | pairs/s | times the source's | packing | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    source = {row["material"]: row["pairs_per_second"] for row in result["rows"] if row["recipe"] == "source"}
    for row in result["rows"]:
        times = f"{row['pairs_per_second'] / source[row['material']]:.2f}" if row["material"] in source else ""
        share = "" if row["packing_share"] is None else f"{row['packing_share']:.0%}"
        cells = (row["material"], row["cores"], TITLES[row["recipe"]], f"{row['photos_per_second']:.1f}",
                 f"{row['pairs_per_second']:,.0f}", times, share, f"{row['peak_mib']:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
