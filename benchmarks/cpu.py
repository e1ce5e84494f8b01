"""All that is measured on a processor, one after another: `make bench`, or `python -m benchmarks.cpu --help`.

Each part is a program of its own, `python -m benchmarks.PART --help`; docs/performance.md has their tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import ROOT

PARTS = {"training": [], "making": [], "restoring": ["--large"], "startup": []}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures what runs on this processor.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="does it work?")
    options = parser.parse_args()
    photos = ["--photos", str(options.photos.resolve())] if options.photos else []
    for part in options.only:
        print(f"\n## {part}\n", flush=True)
        settings = [*(photos if part != "startup" else []), *(["--quick"] if options.quick else PARTS[part])]
        if status := subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *settings], cwd=ROOT).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
