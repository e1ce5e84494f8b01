"""What it costs to start: `python -m benchmarks.startup --help`.

Wall and processor seconds and the largest memory of short commands, which run in turn, round after round; medians.
Linux counts this process's own memory as the least, so that it imports little: `python -c pass` shows how much.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import ROOT, Failed, alternate, call, machine, medians, table

SIZE = (320, 240)  # pixels of the photo
DRAW = f"""import sys; from PIL import Image; from shards.skylines import draw_skyline
Image.fromarray(draw_skyline(0, {SIZE})).save(sys.argv[1], quality=20)"""


def run(command: list[str]) -> dict[str, float]:
    """Seconds and MB of a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: exit status {process.returncode}")
    return {"wall": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime, "mb": peak_mb(used)}


def peak_mb(used: resource.struct_rusage) -> float:
    """Linux counts KiB, macOS bytes."""
    return used.ru_maxrss / 1e6 * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures how long srcnn takes to start.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round: does it work?")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        call([sys.executable, "-c", DRAW, photo])
        restore = ["-m", "srcnn", "restore", str(photo), "-o", folder + "/restored.jpg", "--overwrite"]
        commands = {
            "python -c pass": ["-c", "pass"], "import srcnn": ["-c", "import srcnn"],
            "srcnn --help": ["-m", "srcnn", "--help"], "import torch": ["-c", "import torch"],
            f"srcnn restore, {SIZE[0]}x{SIZE[1]}": restore,
            "the same, srcnn-915": [*restore, "--model", "srcnn-915"],
        }
        runs = alternate({name: partial(run, command) for name, command in commands.items()},
                         1 if options.quick else options.rounds)
    rows = [[name, f"{one['wall']:.2f}", f"{one['cpu']:.2f}", f"{one['mb']:.0f}"]
            for name, one in zip(runs, map(medians, runs.values()), strict=True)]
    print(f"{table(['', 'wall, s', 'processor, s', 'peak memory, MB'], rows)}\n\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
