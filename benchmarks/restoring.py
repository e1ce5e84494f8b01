"""Restoring a photo side by side: `python -m benchmarks.restoring --help`.

A colour photo of 12 megapixels, put together from real photographs (or drawn skylines) and saved as a JPEG of quality
20, is restored by the same network with the same weights: by srcnn in both precisions, by plain PyTorch, ONNX Runtime
and OpenCV DNN. Each peer takes the whole photo or tiles of the side that suits it best. All run in turn, round after
round, each in a process of its own that is pinned to the same cores; medians. "Network" is from luma to luma in
memory, "file" from JPEG to JPEG. Then a folder of small photos, and with --large the memory that 200 megapixels take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks import material
from benchmarks.environments import Failed, last_line, python_of, versions
from shards.skylines import draw_skyline
from srcnn.metrics import psnr
from srcnn.photo import find_photos, luma_l
from srcnn.weight_files import DEFAULT_WEIGHTS, find_weights
from srcnn.weights_io import load_model, save_state_dict

HERE = Path(__file__).resolve().parent
PHOTOS = material.PHOTOS and material.PHOTOS / "train"
CELL = (800, 600)
PEERS = {"pytorch": (), "onnxruntime": ("onnxruntime",), "opencv": ("opencv-python-headless",)}
EXPORTER = ("onnx", "onnxscript")
VARIANTS = ("whole", "256", "512", "1024")
NAMES = {"ours": "srcnn", "ours exact": "srcnn --exact", "pytorch": "PyTorch", "onnxruntime": "ONNX Runtime",
         "opencv": "OpenCV DNN"}
TIMEOUT_SECONDS = 900


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures restoring side by side.")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="else: drawn")
    parser.add_argument("--work", type=Path, default=HERE / "built", help="photos and environments, kept between calls")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 megapixels, one round, 20 small photos: does it work?")
    parser.add_argument("--large", action="store_true", help="also the memory that 200 megapixels take; minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    options.files = options.work.resolve() / ("restoring-quick" if options.quick else "restoring")
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_photos(options: argparse.Namespace, cells: tuple[int, int]) -> None:
    """clean.png, photo.jpg, luma.npy, small/*.jpg and the weights as a plain state_dict, made once.

    `cells`: how many pictures of CELL the photo is put together from, across and down.
    """
    files = options.files
    if (files / ".ready").is_file():
        return
    say("making the photos")
    (files / "small").mkdir(parents=True, exist_ok=True)
    across, down = cells
    clean = Image.new("RGB", (across * CELL[0], down * CELL[1]))
    for number, cell in enumerate(pictures(options.photos, across * down)):
        clean.paste(cell, (number % across * CELL[0], number // across * CELL[1]))
    clean.save(files / "clean.png")
    clean.save(files / "photo.jpg", quality=20)
    np.save(files / "luma.npy", luma_l(np.asarray(Image.open(files / "photo.jpg"))))
    num_small = 20 if options.quick else 100
    for number in range(num_small):
        left = number * 7919 % (clean.width - 480)
        top = number * 104729 % (clean.height - 320)
        clean.crop((left, top, left + 480, top + 320)).save(files / "small" / f"{number:03d}.jpg", quality=20)
    save_state_dict(load_model(DEFAULT_WEIGHTS), files / "weights.pth")
    (files / ".ready").touch()


def pictures(folder: Path | None, num: int) -> list[Image.Image]:
    """So many pictures of the size of a cell, of photographs spread over the folder, or drawn."""
    if folder is None:
        return [Image.fromarray(draw_skyline(seed, CELL)) for seed in range(num)]
    paths, _ = find_photos(folder)
    chosen = [paths[place] for place in np.linspace(0, len(paths) - 1, num).astype(int)]
    return [ImageOps.fit(Image.open(path).convert("RGB"), CELL) for path in chosen]


def run(options: argparse.Namespace, name: str, python: Path, **job: Any) -> dict[str, Any]:
    """One process, pinned to the cores; what it printed. Raises Failed."""
    files = options.files
    job = {"weights": str(find_weights(DEFAULT_WEIGHTS)), "state": str(files / "weights.pth"),
           "onnx": str(files / "network.onnx"), "photo": str(files / "photo.jpg"), "luma": str(files / "luma.npy"),
           "cores": options.cores, "variant": "whole"} | job  # fmt: skip
    allowed = sorted(os.sched_getaffinity(0))[: options.cores]
    done = subprocess.run(
        [str(python), str(HERE / "restoring_runs.py"), name, json.dumps(job)],
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS, preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        env=os.environ | {"OMP_NUM_THREADS": str(options.cores), "PYTHONPATH": str(HERE.parent)},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise Failed(last_line(done.stderr) or f"exit status {done.returncode}")
    return dict(json.loads(lines[-1]))


def prepare(options: argparse.Namespace, told: dict[str, str]) -> dict[str, tuple[Path, str]]:
    """The interpreter and the fastest variant of each system."""
    base = options.work.resolve()
    if not (options.files / "network.onnx").is_file():
        say("exporting the network")
        run(options, "export", python_of(base, EXPORTER))
    systems = {"ours": (Path(sys.executable), "whole"), "ours exact": (Path(sys.executable), "whole")}
    told["PyTorch"] = torch.__version__
    for name, packages in PEERS.items():
        try:
            python = python_of(base, packages)
            if packages:
                told[NAMES[name]] = versions(python, packages)
            systems[name] = (python, "whole" if name == "pytorch" else fastest(options, name, python))
        except (Failed, subprocess.TimeoutExpired) as error:
            say(f"{NAMES[name]}: {error}")
            told[f"{NAMES[name]} failed"] = str(error)
    return systems


def fastest(options: argparse.Namespace, name: str, python: Path) -> str:
    """The variant with the best of two runs."""
    tried: dict[str, float] = {}
    for variant in VARIANTS * 2:
        out = str(options.files / "tried.npy")
        taken = run(options, name, python, measure="network", variant=variant, out=out)["seconds"]
        tried[variant] = min(taken, tried.get(variant, taken))
    say(f"{NAMES[name]}: seconds by variant: " + ", ".join(f"{key}: {value:.2f}" for key, value in tried.items()))
    return min(tried, key=lambda key: tried[key])


def alternate(options: argparse.Namespace, systems: dict[str, tuple[Path, str]]) -> list[dict[str, Any]]:
    """A row for each system: medians over the rounds, each beginning with another system."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    names = list(systems)
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            python, variant = systems[name]
            for measure, suffix in (("network", "npy"), ("file", "jpg")):
                out = options.files / f"{name}.{suffix}"
                result = run(options, name, python, measure=measure, variant=variant, out=str(out))
                runs.setdefault((name, measure), []).append(result)
                say(f"round {number + 1}: {NAMES[name]}, {measure}: {result['seconds']:.2f} s")
    megapixels = np.load(options.files / "luma.npy").size / 1e6
    rows = []
    for name in names:
        network, file = (median(one["seconds"] for one in runs[name, measure]) for measure in ("network", "file"))
        rows.append({
            "system": name, "variant": systems[name][1], "network_mp_per_second": megapixels / network,
            "file_seconds": file, "peak_mb": median(one["peak_mb"] for one in runs[name, "file"]),
            "max_difference": largest_difference(options.files, name),
        })  # fmt: skip
    return rows


def largest_difference(files: Path, name: str) -> int:
    """Levels between this system's output and ours in float32, both rounded."""
    ours, other = (np.load(files / f"{each}.npy") for each in ("ours exact", name))
    if other.dtype != np.uint8:
        other = np.rint(other * 255).clip(0, 255).astype(np.uint8)
    return int(np.abs(ours.astype(np.int16) - other).max())


def decibels_lost(files: Path) -> float:
    """PSNR of the exact result minus that of the fast one."""
    clean = luma_l(np.asarray(Image.open(files / "clean.png")))
    exact, fast = (psnr(clean, np.load(files / f"{name}.npy")) for name in ("ours exact", "ours"))
    return exact - fast


def folder_seconds(options: argparse.Namespace) -> dict[str, float]:
    """Medians of: restored side by side, one by one, and decoded and encoded alone."""
    python, folder = Path(sys.executable), str(options.files / "small")
    runs = [
        run(options, "folder", python, folder=folder, out=str(options.files / "restored"))
        for _ in range(options.rounds)
    ]
    return {key: median(one[key] for one in runs) for key in runs[0]}


def large_peak_mb(options: argparse.Namespace) -> float:
    """MB beyond the imports for a JPEG of 200 megapixels."""
    path = options.files / "large.jpg"
    if not path.is_file():
        with Image.open(options.files / "clean.png") as clean:
            ImageOps.fit(clean, (16000, 12500)).save(path, quality=20)
    out = str(options.files / "large-restored.jpg")
    return float(run(options, "ours", Path(sys.executable), measure="file", photo=str(path), out=out)["peak_mb"])


def table(rows: list[dict[str, Any]]) -> str:
    columns = "| | tiles | network, MP/s | file to file, s | peak memory, MB | most levels off |"
    lines = [columns, "|---|---|" + "---:|" * 4]
    for row in rows:
        tiles = "its own" if row["system"].startswith("ours") else row["variant"]
        lines.append(f"| {NAMES[row['system']]} | {tiles} | {row['network_mp_per_second']:.2f} | "
                     f"{row['file_seconds']:.2f} | {row['peak_mb']:.0f} | {row['max_difference']} |")
    return "\n".join(lines)


def main() -> int:
    options = parse()
    told: dict[str, str] = {}
    make_photos(options, cells=(2, 2) if options.quick else (5, 5))
    rows = alternate(options, prepare(options, told))
    small = folder_seconds(options)
    by_name = {row["system"]: row for row in rows}
    numbers: dict[str, float] = {}
    for name in PEERS.keys() & by_name.keys():
        ours, peer = by_name["ours"], by_name[name]
        numbers[f"restore_ratio_{name}"] = ours["network_mp_per_second"] / peer["network_mp_per_second"]
        numbers[f"restore_file_ratio_{name}"] = peer["file_seconds"] / ours["file_seconds"]
    numbers["restore_fast_exact_db"] = decibels_lost(options.files)
    numbers["restore_peak_mb"] = by_name["ours"]["peak_mb"]
    numbers |= {f"restore_folder_{key}": value for key, value in small.items()}
    if options.large:
        numbers["restore_peak_large_mb"] = large_peak_mb(options)
    print(f"{table(rows)}\n\n{', '.join(f'{key}: {value}' for key, value in told.items())}\n")
    for key, value in sorted(numbers.items()):
        print(f"{key}: {value:.4f}" if key.endswith("_db") else f"{key}: {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps(numbers | {"rows": rows, "versions": told, "cores": options.cores,
                                                      "rounds": options.rounds}, indent=1) + "\n")
    return 0 if len(by_name) == len(NAMES) else 1


if __name__ == "__main__":
    sys.exit(main())
