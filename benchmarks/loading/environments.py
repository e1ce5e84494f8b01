"""A virtual environment for each peer, below the work folder.

What the benchmark's own environment has (torch, NumPy, Pillow) is seen from there too, so that torch is not installed
ten times; what a peer wants in another version is installed into its own and comes first.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from benchmarks.measure import call

VERSIONS = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"


def python_of(work: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of the environment that has these packages; made when first asked for.

    Raises:
        Failed: pip could not.
    """
    if not packages:
        return Path(sys.executable)
    folder = work / "environments" / packages[0]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        call([sys.executable, "-m", "venv", "--clear", folder])
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        outer = folder / "lib" / version / "site-packages" / "outer.pth"
        outer.write_text(sysconfig.get_path("purelib") + "\n")
        call([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-warn-conflicts", *packages])
        ready.touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Name and version of each, in one line."""
    return call([python, "-c", VERSIONS, *packages]).strip()
