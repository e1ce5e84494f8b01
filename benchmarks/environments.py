"""A virtual environment for each peer, below the work folder.

What the benchmark's own environment has (torch, NumPy, Pillow) is seen from there too, so that torch is not installed
ten times; what a peer wants in another version is installed into its own and comes first.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

VERSIONS = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"


class Failed(Exception):
    """Something could not be installed, prepared or run; the message is the reason in one line."""


def call(command: list[str], timeout_seconds: float = 1800, cwd: Path | None = None) -> str:
    """Runs a program to its end; its standard output. Raises Failed with the last line of what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from error
    if done.returncode:
        raise Failed(last_line(done.stderr or done.stdout) or f"exit status {done.returncode}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line that says something; of an error if one is named."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    errors = [line for line in lines if re.match(r"ERROR:|[\w.]+(Error|Exception|Failed)\b", line)]
    return (errors or lines or [""])[-1]


def python_of(work: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of the environment that has these packages; made when first asked for.

    Raises:
        Failed: pip could not.
    """
    if not packages:
        return Path(sys.executable)
    folder = work / "environments" / packages[0].partition("[")[0]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        call([sys.executable, "-m", "venv", "--clear", str(folder)])
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        outer = folder / "lib" / version / "site-packages" / "outer.pth"
        outer.write_text(sysconfig.get_path("purelib") + "\n")
        call([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-warn-conflicts", *packages])
        ready.touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Name and version of each, in one line."""
    return call([str(python), "-c", VERSIONS, *(package.partition("[")[0] for package in packages)]).strip()
