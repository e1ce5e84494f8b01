"""What every loader's script shares: its command line, the clock, and the reader the converters take the pairs from.

    python peers/NAME.py prepare SRC DST                                    shards of npy pairs -> the loader's format
    python peers/NAME.py run DST --workers W --batch B --pairs N --epoch E  one JSON line: what was measured

`prepare` is there for loaders that do not read our shards as they are.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Batches = Iterator[tuple[Any, Any]]  # clean, degraded: (batch, 128, 128), or (batch, 1, 128, 128)
PIXEL = 64  # of each tile the pixel at (64, 64) is summed, so that no loader can leave the pixels unread


def main(stream: Callable[[str, int, int], Batches], prepare: Callable[[Path, Path], None] | None = None) -> None:
    """`stream(location, num_workers, batch_size)` gives batches for ever and builds its loader at the first `next`."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("source", type=Path)
    command.add_argument("out", type=Path)
    command = commands.add_parser("run")
    command.add_argument("location")
    command.add_argument("--workers", type=int, required=True)
    command.add_argument("--batch", type=int, default=256)
    command.add_argument("--pairs", type=int, required=True, help="how many to read, over as many epochs as it takes")
    command.add_argument("--epoch", type=int, required=True, help="how many there are")
    options = parser.parse_args()
    if options.command == "prepare":
        assert prepare, "reads our shards as they are"
        prepare(options.source, options.out)
    else:
        batches = stream(options.location, options.workers, options.batch)
        print(json.dumps(measure(batches, options.pairs, options.epoch)), flush=True)


def measure(batches: Batches, num_pairs: int, epoch_pairs: int) -> dict[str, float]:
    """Reads `num_pairs`; rate and CPU time are taken from the first batch on, which has a time of its own.

    `checksum` is the sum over the first `epoch_pairs` pairs: whoever gives each pair exactly once has the same.
    """
    began = time.perf_counter()
    clean, degraded = next(batches)
    first_batch, cpu_before = time.perf_counter(), tree_cpu_seconds()
    in_first = seen = len(clean)
    checksum = _checksum(clean, degraded, epoch_pairs)
    memory = Memory()
    for quarter in range(1, 5):
        while seen < in_first + (num_pairs - in_first) * quarter / 4:
            clean, degraded = next(batches)
            checksum += _checksum(clean, degraded, epoch_pairs - seen)
            seen += len(clean)
        memory.look()
    end = time.perf_counter()
    return {
        "pairs": seen - in_first,
        "seconds": end - first_batch - memory.seconds,
        "first_batch_seconds": first_batch - began,
        "cpu_seconds": tree_cpu_seconds() - cpu_before - memory.cpu_seconds,
        "peak_mb": memory.peak_mb,
        "checksum": checksum if seen >= epoch_pairs else -1,
    }


def _checksum(clean: Any, degraded: Any, num_left: int) -> int:
    sums = [float(tiles[:, ..., PIXEL, PIXEL][: max(0, num_left) or None].sum()) for tiles in (clean, degraded)]
    scale = 255 if "float" in str(clean.dtype) else 1
    return sum(round(value * scale) for value in sums) if num_left > 0 else 0


class Memory:
    """The most memory that was found in four looks, and what the looks took."""

    def __init__(self) -> None:
        self.peak_mb = self.seconds = self.cpu_seconds = 0.0

    def look(self) -> None:
        began, cpu_before = time.perf_counter(), time.thread_time()
        self.peak_mb = max(self.peak_mb, tree_memory_mb())
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.thread_time() - cpu_before


def over_processes(measure: Callable[[psutil.Process], float]) -> float:
    """The sum over this process and all below it; one that has ended meanwhile counts nothing."""
    total, process = 0.0, psutil.Process()
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, OSError):
            total += measure(one)
    return total


def tree_cpu_seconds() -> float:
    """User and system time of the process tree, with the children that have ended."""
    return over_processes(lambda process: sum(process.cpu_times()[:4]))


def tree_memory_mb() -> float:
    """Private and shared memory of the process tree, shared pages divided among those who share them.

    Pages of mapped files are left out: they belong to the page cache, whoever maps them.
    """
    def kilobytes(process: psutil.Process) -> float:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))

    return over_processes(kilobytes) / 1024


def read_pairs(folder: Path) -> Iterator[np.ndarray]:
    """Pairs (2, 128, 128), clean and degraded, of all npy shards below `folder`, in their order."""
    for shard in shards_of(folder):
        with tarfile.open(shard) as tar:
            files = [tar.extractfile(member) for member in tar]
            tiles = [np.load(io.BytesIO(file.read())) for file in files if file is not None]
        for clean, degraded in zip(tiles[::2], tiles[1::2], strict=True):
            yield np.stack([clean, degraded])


def shards_of(folder: Path | str) -> list[Path]:
    return sorted(Path(folder).glob("*.tar"))
