"""All that a processor is measured at, one after another: `make bench`, or `python -m benchmarks.cpu --help`.

Each part is a program of its own, `python -m benchmarks.PART --help`. Its table goes to docs/performance.md, its
numbers to results/cpu.json, which begins with the ratios.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.material import ROOT
from benchmarks.report import machine, put_into

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "performance.md"
PARTS = ("step", "ranks", "making", "restoring")
KEYS = (
    "step_ratio_bf16", "step_ratio_fp32", "step_share_of_peak_bf16", "rank_efficiency", "shards_ratio",
    "shards_ratio_exact", "restore_ratio_onnxruntime",
)  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures training, shard making and restoring on this processor.")
    parser.add_argument("--photos", type=Path, help="real photographs; the parts' default else")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "cpu.json")
    parser.add_argument("--quick", action="store_true", help="does it work? Writes nothing")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    result: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {"parts": {}}
    for part in options.only:
        print(f"\n## {part}\n", flush=True)
        told, text = measure(part, options)
        result["parts"][part] = told | {"date": date.today().isoformat()}
        if not options.quick:
            table = "".join(line for line in text.splitlines(True) if not re.match(r"\w+: \S+$", line)).strip()
            put_into(PAGE, part, f"{table}\n\n{date.today().isoformat()}, {told_machine()}.")
        ratios = {key: value for told in result["parts"].values() for key, value in told.items() if key in KEYS}
        result = {key: ratios.get(key) for key in KEYS} | {"machine": machine(), "parts": result["parts"]}
        if not options.quick:
            options.results.write_text(json.dumps(result, indent=1) + "\n")
    print()
    for key in KEYS:
        print(f"{key}: {'not measured' if result[key] is None else format(result[key], '.3g')}")
    return 0


def measure(part: str, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Runs a part: its numbers, and what it printed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", f"benchmarks.{part}", "--json", file.name]
        command += ["--photos", str(options.photos)] if options.photos else []
        command += ["--quick"] if options.quick else ["--large"] if part == "restoring" else []
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        if process.wait():
            raise SystemExit(f"benchmarks.{part} ended with status {process.returncode}")
        return json.loads(Path(file.name).read_text()), "".join(lines)


def told_machine() -> str:
    about = machine()
    return f"{about['cpu']}, {about['cores']} cores, Python {about['python']}"


if __name__ == "__main__":
    sys.exit(main())
