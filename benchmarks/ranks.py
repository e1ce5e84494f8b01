"""Two ranks with a core each against one rank with a core: `python -m benchmarks.ranks --help`.

The training step with its real stream, as `launch/benchmark.py` measures it, in turn: one rank; two ranks over gloo;
and two runs of one rank at the same time that know nothing of each other, which is what the machine itself allows: two
cores share its memory, its cache and its clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import material
from benchmarks.report import machine

HERE = Path(__file__).resolve().parent
SETTINGS = ("--model.residual", "true", "--mixed_precision", "auto", "--trackers", "[]", "--num_rounds", "1")
NUM_PAIRS = 2048


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures how training scales from one rank to two.")
    parser.add_argument("--photos", type=Path, default=material.PHOTOS, help="else: drawn")
    parser.add_argument("--work", type=Path, default=HERE / "built", help="tiles, kept between calls")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=15)
    parser.add_argument("--batch_size_per_process", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="does it work?")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(rounds=1, num_steps=3)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two ranks need two cores")
    work = options.work.resolve() / "step"
    material.make_shards(work, options.photos, NUM_PAIRS)
    shards = material.shards_of(work, "npy").parent
    rates: dict[str, list[float]] = {"one rank": [], "two ranks": [], "two runs at once": []}
    waits, phases = [], []
    for number in range(options.rounds):
        alone = cores[number % 2]
        rates["one rank"].append(measure(options, shards, [(1, {alone})])[0]["tiles_per_second"])
        both = measure(options, shards, [(2, set(cores[:2]))])[0]
        rates["two ranks"].append(both["tiles_per_second"])
        waits.append(both["data_wait"])
        phases.append(both["seconds_per_step"])
        apart = measure(options, shards, [(1, {cores[0]}), (1, {cores[1]})])
        rates["two runs at once"].append(sum(run["tiles_per_second"] for run in apart))
        print(f"round {number + 1}:", {name: round(found[-1]) for name, found in rates.items()}, file=sys.stderr)
    one, two, apart_rate = (median(found) for found in rates.values())
    result = {
        "machine": machine(),
        "rank_efficiency": two / (2 * one),
        "rank_efficiency_of_machine": two / apart_rate,
        "tiles_per_second": {name: median(found) for name, found in rates.items()},
        "data_wait": median(waits),
        "seconds_per_step": {name: median(phase[name] for phase in phases) for name in phases[0]},
        "rounds": rates,
    }
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace, shards: Path, jobs: list[tuple[int, set[int]]]) -> list[dict[str, Any]]:
    """What launch/benchmark.py tells of each job (ranks, cores), all of them begun together."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.json") for number in range(len(jobs))]
        processes = [start(options, shards, *job, file) for job, file in zip(jobs, files, strict=True)]
        for process in processes:
            _, complaints = process.communicate()
            if process.returncode:
                raise SystemExit(complaints)
        return [json.loads(file.read_text()) for file in files]


def start(
    options: argparse.Namespace, shards: Path, num_ranks: int, cores: set[int], file: Path
) -> subprocess.Popen[str]:
    settings = material.ROOT / "configs/accelerate" / ("cpu.yaml" if num_ranks == 1 else "cpu2.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    command += ["--main_process_port", "0", "launch/benchmark.py", "--shards", str(shards), "--json", str(file)]
    command += [*SETTINGS, "--num_steps", str(options.num_steps)]
    command += ["--batch_size_per_process", str(options.batch_size_per_process)]
    return subprocess.Popen(
        command, cwd=material.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Markdown, and the ratio lines at the end."""
    one = result["tiles_per_second"]["one rank"]
    lines = ["| a core each | tiles/s | of twice one rank |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / (2 * one):.2f} |" for name, rate in result["tiles_per_second"].items()]
    step = sum(result["seconds_per_step"].values())
    shares = ", ".join(f"{name} {part / step:.1%}" for name, part in result["seconds_per_step"].items())
    lines += ["", f"Of a step of two ranks: {shares}.", ""]
    keys = ("rank_efficiency", "rank_efficiency_of_machine")
    return "\n".join([*lines, *(f"{key}: {result[key]:.3f}" for key in keys)])


if __name__ == "__main__":
    sys.exit(main())
