"""The training step on a CPU beside the source project's loop: `python -m benchmarks.step --help`.

Speed: each contestant is a process of its own on the same cores, and has the same batches of real tiles in memory; they
take turns, a stretch of steps each, round after round, and between them the largest matrix product says what the
processor can do at that moment. The source's loop is written out: its network, MSE, Adam, and PSNR of each batch.

Result: all contestants train from the same weights on the same batches; their losses are compared step by step, and
with the spread of two seeds. PSNR is that of a validation split after the same number of tiles.
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

from benchmarks import material
from benchmarks.report import machine
from srcnn.model import ModelConfig
from srcnn.profile_step import training_flop

HERE = Path(__file__).resolve().parent
CONTESTANTS = ("source", "fp32", "bf16")
NUM_PAIRS = 2048
QUICK = {"rounds": 1, "num_steps": 2, "curve_steps": 20}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the training step beside the source project's.")
    parser.add_argument("--photos", type=Path, default=material.PHOTOS, help="else: drawn")
    parser.add_argument("--work", type=Path, default=HERE / "built", help="tiles, kept between calls")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_steps", type=int, default=4, help="of a stretch")
    parser.add_argument("--curve_steps", type=int, default=500, help="steps whose losses are compared; 0: leave out")
    parser.add_argument("--curve_batch_size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="does it work?")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    options.work = options.work.resolve() / "step"
    material.make_shards(options.work, options.photos, NUM_PAIRS)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    result = {"machine": machine(), "cores": options.cores, "batch_size": options.batch_size} | speed(options)
    if options.curve_steps:
        result |= curves(options)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Tiles/s of each contestant, medians over the rounds, the ratios, and the share of the measured peak."""
    rates: dict[str, list[float]] = {name: [] for name in (*CONTESTANTS, "peak fp32", "peak bf16")}
    workers = {name: start(options, name) for name in CONTESTANTS}
    for number in range(options.rounds + 1):
        for name, worker in workers.items():
            seconds = ask(worker, f"steps {options.num_steps}")["seconds"]
            rates[name].append(options.num_steps * options.batch_size / seconds)
            if name != "source":
                rates[f"peak {name}"].append(ask(worker, "peak")["gflop_per_second"])
        if not number:
            for found in rates.values():
                found.clear()  # warming up
        print(f"round {number}:", {name: round(found[-1]) for name, found in rates.items() if found}, file=sys.stderr)
    for worker in workers.values():
        stop(worker)
    middle = {name: median(found) for name, found in rates.items()}
    gflop = training_flop(ModelConfig(), material.TILE_PIXELS) / 1e9
    shares = {
        name: median(rate * gflop / peak for rate, peak in zip(rates[name], rates[f"peak {name}"], strict=True))
        for name in CONTESTANTS[1:]
    }
    return {
        "step_ratio_bf16": middle["bf16"] / middle["source"],
        "step_ratio_fp32": middle["fp32"] / middle["source"],
        "step_share_of_peak_bf16": shares["bf16"],
        "step_share_of_peak_fp32": shares["fp32"],
        "gflop_per_tile": gflop,
        "tiles_per_second": {name: middle[name] for name in CONTESTANTS},
        "peak_gflop_per_second": {name: middle[f"peak {name}"] for name in CONTESTANTS[1:]},
        "rounds": rates,
    }


def curves(options: argparse.Namespace) -> dict[str, Any]:
    """The losses of all contestants over the same steps, and PSNR at their end."""
    found: dict[str, dict[str, Any]] = {}
    for name, seed in (("source", 0), ("fp32", 0), ("bf16", 0), ("fp32", 1)):
        worker = start(options, name)
        found[f"{name}, seed {seed}"] = ask(worker, f"curve {seed}")
        stop(worker)
        print(f"trained {options.curve_steps} steps: {name}, seed {seed}", file=sys.stderr)
    losses = {name: np.array(curve["losses"]) for name, curve in found.items()}
    source = losses["source, seed 0"]
    apart = {name: np.abs(curve - source) / source for name, curve in losses.items()}
    return {
        "curve_steps": options.curve_steps,
        "curve_batch_size": options.curve_batch_size,
        "curve_fp32_largest": float(apart["fp32, seed 0"].max()),
        "curve_bf16_median": float(np.median(apart["bf16, seed 0"])),
        "curve_seeds_median": float(np.median(apart["fp32, seed 1"])),
        "curve_psnr": {name: curve["psnr"] for name, curve in found.items()},
        "losses": {name: curve["losses"] for name, curve in found.items()},
    }


def start(options: argparse.Namespace, name: str) -> subprocess.Popen[str]:
    """A contestant that waits for what it is asked."""
    shards = str(material.shards_of(options.work, "npy"))
    command = [sys.executable, "-m", "benchmarks.contestant", name, "--shards", shards]
    for key in ("cores", "batch_size", "curve_steps", "curve_batch_size"):
        command += [f"--{key}", str(getattr(options, key))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.cores)}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=material.ROOT, env=environment
    )


def ask(worker: subprocess.Popen[str], what: str) -> dict[str, Any]:
    assert worker.stdin and worker.stdout
    worker.stdin.write(f"{what}\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a contestant ended with status {worker.wait()}")
    return dict(json.loads(line))


def stop(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin
    worker.stdin.close()
    worker.wait()


def table(result: dict[str, Any]) -> str:
    """Markdown, and the ratio lines at the end."""
    source = result["tiles_per_second"]["source"]
    lines = [
        f"9-1-5 on {result['cores']} cores, batches of {result['batch_size']} tiles of 128x128; medians of "
        f"{len(result['rounds']['source'])} alternating stretches.",
        "",
        "| step | tiles/s | times the source's | GFLOP/s | share of the largest product's |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rate in result["tiles_per_second"].items():
        share = f"{result[f'step_share_of_peak_{name}']:.0%}" if name != "source" else ""
        gflops = rate * result["gflop_per_tile"]
        lines.append(f"| {name} | {rate:,.0f} | {rate / source:.1f} | {gflops:,.0f} | {share} |")
    if "curve_steps" in result:
        psnr = ", ".join(f"{name} {value:.3f}" for name, value in result["curve_psnr"].items())
        lines += [
            "",
            f"Losses of {result['curve_steps']} steps of {result['curve_batch_size']} tiles against the source's loop: "
            f"float32 differs by {result['curve_fp32_largest']:.1e} at the most, bfloat16 by "
            f"{result['curve_bf16_median']:.1e} in the median, another seed by {result['curve_seeds_median']:.1e}. "
            f"PSNR then, dB: {psnr}.",
        ]
    keys = ("step_ratio_bf16", "step_ratio_fp32", "step_share_of_peak_bf16", "curve_fp32_largest", "curve_bf16_median")
    return "\n".join([*lines, "", *(f"{key}: {result[key]:.3g}" for key in keys if key in result)])


if __name__ == "__main__":
    sys.exit(main())
