"""One loader, run as a process of its own on a given number of cores, from the page cache or from the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.environments import Failed, last_line
from benchmarks.loaders import Loader
from benchmarks.material import PEERS

State = Literal["page cache", "disk"]
TIMEOUT_SECONDS = 600
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Ready:
    """A loader with all it needs.

    Attributes:
        location: the folder or address it reads from.
        files: the folder whose files are cached or dropped before a run.
        environment: variables its process gets.
    """

    loader: Loader
    python: Path
    location: str
    files: Path
    environment: dict[str, str] = field(default_factory=dict)


def run(
    ready: Ready, cores: int, num_workers: int, num_pairs: int, epoch_pairs: int, batch_size: int
) -> dict[str, Any]:
    """Runs the loader's script on the first `cores` cores; what it printed, with `pairs_per_second`.

    Raises:
        Failed: it ended otherwise than with its line.
    """
    command = [
        str(ready.python), str(PEERS / f"{ready.loader.script}.py"), "run", ready.location,
        "--workers", str(num_workers), "--batch", str(batch_size),
        "--pairs", str(num_pairs), "--epoch", str(epoch_pairs),
    ]  # fmt: skip
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(cores)} | ready.environment,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        start_new_session=True,
    )
    try:
        out, complaints = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"took longer than {TIMEOUT_SECONDS} s") from error
    finally:
        _end_group(process)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(last_line(complaints) or f"exit status {process.returncode}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result | {"pairs_per_second": result["pairs"] / result["seconds"]}


def _end_group(process: subprocess.Popen[str]) -> None:
    """Ends what a loader left behind: its session is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def set_state(files: Path, state: State) -> None:
    """Reads every file once, or has the kernel drop its pages; written files must have reached the disk before."""
    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as file:
            if state == "disk":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(READ_BYTES):
                    pass
