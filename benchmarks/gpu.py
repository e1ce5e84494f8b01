"""Training and restoring at the limit of a GPU, all of it in one go: `make bench-gpu`, or `python -m benchmarks.gpu`.

One part after the other, each a process of its own with a share of the minutes: the shards; the step, from the card's
two floors and the source project's loop up; a fused kernel where there is one; the stream; whether the fast ways train
as well; restoring; and what the rest of the time gives when it is spent on training. A part that fails or is cut off
leaves what it has found, and the next one begins. The numbers are in --json at any time, with a trace, a picture of the
kernels and the trained weights beside it; the tables follow after each part.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_report import tables, targets
from benchmarks.material import PHOTOS, ROOT
from benchmarks.report import machine
from srcnn.files import write_json

HERE = Path(__file__).resolve().parent
RESERVE_SECONDS = 8.0  # of the minutes, for the last tables and processes that end slowly
GRACE_SECONDS = 4.0  # between what a part is told and its end by force
PACKAGES = ("torch", "triton", "torchvision", "accelerate", "numpy", "onnxruntime", "onnxruntime-gpu")


class Share(NamedTuple):
    """Which function measures a part, and its share of the time; what it leaves goes to those after it."""

    module: str
    function: str
    share: float


PARTS = {
    "material": Share("gpu_material", "measure", 7),
    "step": Share("gpu_step", "measure", 42),
    "stream": Share("gpu_stream", "measure", 13),
    "quality": Share("gpu_training", "measure_quality", 10),
    "restoring": Share("gpu_restoring", "measure", 8),
    "result": Share("gpu_training", "measure_result", 13),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures training and restoring on a GPU.")
    parser.add_argument("--photos", type=Path, default=PHOTOS,
                        help="real photographs, in train/ and val/ where it has these; else: drawn")
    parser.add_argument("--work", type=Path, help="shards, photos, compiled kernels, kept between calls")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="does it work? Tiny, on drawn photos, not compiled")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.photos = None
    options.work = (options.work or HERE / "built" / ("gpu-quick" if options.quick else "gpu")).resolve()
    options.json, options.photos = options.json.resolve(), options.photos and options.photos.resolve()
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.part:
        measure_part(options)
        return 0
    until = time.time() + 60 * options.minutes - RESERVE_SECONDS
    for folder in (options.work, options.json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    before = json.loads(options.json.read_text())["parts"] if options.json.is_file() else {}
    kept = {name: part for name, part in before.items() if name not in options.only}
    write_json(options.json, {"about": about(options), "parts": kept})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the part in progress is ended, too
    left = [name for name in PARTS if name in options.only]
    while left:
        name, *rest = left
        began = time.time()
        ended = run_part(options, name, began + allowed_seconds(left, until - began))
        began_at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began))
        tell(options, name, {"began": began_at, "ended": ended, "seconds": time.time() - began})
        left = rest
    return report(options)


def allowed_seconds(left: list[str], seconds: float) -> float:
    """What the first of the parts that are left gets of the seconds that are left, by its share."""
    return max(0.0, seconds) * PARTS[left[0]].share / sum(PARTS[name].share for name in left)


def measure_part(options: argparse.Namespace) -> None:
    """Within the part's own process."""
    from benchmarks.gpu_part import Part  # torch, which the process that only looks on has no need of

    share = PARTS[options.part]
    part = Part.of(options)
    part.note()
    getattr(importlib.import_module(f"benchmarks.{share.module}"), share.function)(part)
    part.note()


def run_part(options: argparse.Namespace, name: str, until: float) -> str:
    """Runs a part in its process until then at most; how it ended."""
    print(f"{name}: {until - time.time():.0f} s", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--until", str(until - GRACE_SECONDS),
               "--work", str(options.work), "--json", str(options.json)]
    command += ["--photos", str(options.photos)] if options.photos else []
    command += ["--quick"] if options.quick else []
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(options.work / "inductor"),
                "TRITON_CACHE_DIR": str(options.work / "triton")}
    environment = compiled | ({"TORCHDYNAMO_DISABLE": "1"} if options.quick else {}) | os.environ
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait(max(0.0, until - time.time()))
        return "whole" if not status else f"with status {status}"
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and what it has started, whose session is its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    found = machine() | {"date": date.today().isoformat(), "quick": options.quick, "minutes": options.minutes}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    keys = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
        found["card"] = dict(zip(keys, map(str.strip, line.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        found["card"] = None
    return found


def tell(options: argparse.Namespace, name: str, how: dict[str, Any]) -> None:
    """Adds how a part ended, and writes the tables that there are."""
    whole = json.loads(options.json.read_text())
    whole["parts"][name] = whole["parts"].get(name, {}) | how
    whole["targets"] = targets(whole["parts"])
    write_json(options.json, whole)
    if options.markdown:
        options.markdown.write_text(tables(whole) + "\n", encoding="utf-8")
    print(f"{name}: ended {how['ended']} after {how['seconds']:.0f} s", file=sys.stderr, flush=True)


def report(options: argparse.Namespace) -> int:
    """Prints the tables; 1 where a part did not come to its end."""
    whole = json.loads(options.json.read_text())
    print(tables(whole))
    return int(any(part["ended"] != "whole" for part in whole["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
