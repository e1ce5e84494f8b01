"""Data loaders side by side, over the same tiles: `make bench-loading`, or `python -m benchmarks.loading --help`.

Shards are made of photographs once, then converted to each peer's format in its own environment. Every loader
first tries how many workers suit it, then all run in turn, round after round, each in a process of its own that is
pinned to the cores given. From the page cache: all files are read before each run. From the disk: the kernel drops them
(posix_fadvise, POSIX_FADV_DONTNEED) before each run, which is one epoch; a cache of the storage itself is not dropped
by that. The rate leaves out the time to the first batch, which has a column of its own: from the construction of the
loader on and without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.dataset import make_shards
from benchmarks.loading import report, servers
from benchmarks.loading.environments import python_of, versions
from benchmarks.loading.loaders import LOADERS, Loader
from benchmarks.measure import WORK, Failed, alternate, call, call_json, log, machine, not_measured

PEERS = Path(__file__).resolve().parent / "peers"
MIN_CORES_FOR_SIXTEEN = 16
FEWEST_BATCHES = 8  # in a run
SERVER_RUNS_LONGER, SERVER_BATCHES = 3, 256
TIMEOUT_SECONDS = 600
READ_BYTES = 1 << 20
QUICK = {"num_pairs": 2048, "rounds": 1, "seconds": 0.5}


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

    def run(self, cores: int, num_workers: int, num_pairs: int, epoch_pairs: int, batch_size: int) -> dict[str, Any]:
        """Runs the loader's script on the first `cores` cores; what it printed, with `pairs_per_second`."""
        result = call_json([
            self.python, PEERS / f"{self.loader.script}.py", "run", self.location, "--workers", str(num_workers),
            "--batch", str(batch_size), "--pairs", str(num_pairs), "--epoch", str(epoch_pairs),
        ], cores, self.environment, TIMEOUT_SECONDS)  # fmt: skip
        return result | {"pairs_per_second": result["pairs"] / result["seconds"], "workers": num_workers}

    def load_files(self, from_disk: bool) -> None:
        """Reads every file once, or has the kernel drop its pages; written files must have reached the disk before."""
        for path in sorted(path for path in self.files.rglob("*") if path.is_file()):
            with path.open("rb", buffering=0) as file:
                if from_disk:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(READ_BYTES):
                        pass


def prepare(options: argparse.Namespace, shards: Path, stack: ExitStack, failed: dict[str, str]) -> list[Ready]:
    """Environments, formats and servers of the loaders; those that cannot be had go to `failed`."""
    ready: list[Ready] = []
    address = ""
    for loader in LOADERS:
        if options.only and not loader.name.startswith(tuple(options.only)):
            continue
        try:
            log(f"preparing {loader.name}")
            python = python_of(options.work.parent, loader.packages)
            files = convert(options.work / "formats", loader, shards / loader.encoding / "train", python)
            location, environment = str(files), {}
            if loader.server:
                address = address or stack.enter_context(servers.http(shards))
                s3 = loader.server == "s3"
                location = "s3://npy/train" if s3 else f"{address}/npy/train"
                environment = servers.s3_environment(address) if s3 else {}
            ready.append(Ready(loader, python, location, files, environment))
        except (Failed, OSError) as error:
            failed[loader.name] = str(error)
            log(f"{loader.name}: {error}")
    return ready


def convert(formats: Path, loader: Loader, shards: Path, python: Path) -> Path:
    """The folder that the loader reads; converted in its own environment when first asked for. Raises Failed."""
    if not loader.prepared:
        return shards
    folder = formats / loader.script
    ready = folder.with_suffix(".ready")
    if not ready.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        call([python, PEERS / f"{loader.script}.py", "prepare", shards, folder])
        os.sync()
        ready.touch()
    return folder


def choose_workers(
    options: argparse.Namespace, ready: list[Ready], cores: int, epoch_pairs: int, failed: dict[str, str]
) -> list[tuple[Ready, int, float]]:
    """For each loader the number of workers that is fastest from the page cache, and its rate; one epoch is a first
    guess of how much takes the time wanted.
    """
    chosen = []
    for item in ready:
        item.load_files(from_disk=False)
        rates: dict[int, float] = {}
        choices = list(dict.fromkeys(item.loader.num_workers(cores)))
        num_pairs = epoch_pairs
        for num_workers in [choices[0], *choices]:
            try:
                measured = item.run(cores, num_workers, num_pairs, epoch_pairs, options.batch_size)
                rates[num_workers] = measured["pairs_per_second"]
                num_pairs = pairs_for(options, item.loader, max(rates.values()))
            except Failed as error:
                failed[f"{item.loader.name}, {cores} cores, {num_workers} workers"] = str(error)
        if rates:
            best = max(rates, key=lambda count: rates[count])
            chosen.append((item, best, rates[best]))
            tried = ", ".join(f"{count}: {rate:,.0f}" for count, rate in rates.items())
            log(f"{cores} cores, {item.loader.name}: pairs/s by workers: {tried}")
    return chosen


def pairs_for(options: argparse.Namespace, loader: Loader, pairs_per_second: float) -> int:
    """What a run from the page cache reads; more from a server, as what is read ahead at the end counts for nothing."""
    seconds = options.seconds * (SERVER_RUNS_LONGER if loader.server else 1)
    at_least = (SERVER_BATCHES if loader.server else FEWEST_BATCHES) * int(options.batch_size)
    return max(at_least, int(pairs_per_second * seconds))


def measure(
    options: argparse.Namespace, chosen: list[tuple[Ready, int, float]], cores: int, epoch_pairs: int,
    failed: dict[str, str],
) -> report.Results:
    """(loader, "page cache" or "disk") -> its runs. Servers are read from the page cache only."""
    results: report.Results = {}

    def run(item: Ready, num_workers: int, rate: float, state: str) -> dict[str, Any]:
        item.load_files(from_disk=state == "disk")
        num_pairs = epoch_pairs if state == "disk" else pairs_for(options, item.loader, rate)
        return item.run(cores, num_workers, num_pairs, epoch_pairs, options.batch_size)

    for state in options.states:
        variants = {item.loader.name: partial(run, item, num_workers, rate, state) for item, num_workers, rate in chosen
                    if state == "page cache" or not item.loader.server}
        here: dict[str, str] = {}
        for name, found in alternate(variants, options.rounds, here).items():
            results[name, state] = found
        failed |= {f"{name}, {cores} cores, {state}": why for name, why in here.items()}
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures data loaders side by side.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--work", type=Path, default=WORK, help="data and environments, kept between calls")
    parser.add_argument("--num_pairs", type=int, default=16384, help="at least so many are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long is a run from the page cache")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--cores", type=int, nargs="+", help="default: 1 and 2, and 16 where there are so many")
    parser.add_argument("--states", nargs="+", choices=report.STATES, default=list(report.STATES))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="loaders whose name begins so")
    parser.add_argument("--quick", action="store_true", help="2,048 pairs, one round of half a second: does it work?")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    available = len(os.sched_getaffinity(0))
    wanted = options.cores or [1, 2, *[16] * (available >= MIN_CORES_FOR_SIXTEEN)]
    options.cores = [count for count in wanted if count <= available]
    options.work = options.work.resolve() / ("quick" if options.quick else "full")
    return options


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of all `finally`: no server, no loader is left over
    failed: dict[str, str] = {}
    shards = make_shards(options.work, options.photos, options.num_pairs, ("npy", "png"))
    os.sync()
    epoch_pairs = int(json.loads((shards / "npy" / "train" / "manifest.json").read_text())["num_samples"])
    print(f"{epoch_pairs:,} pairs of 128x128; medians of {options.rounds} alternating runs, batches of "
          f"{options.batch_size}; {machine()}.\n", flush=True)
    with ExitStack() as stack:
        ready = prepare(options, shards, stack, failed)
        for cores in options.cores:
            chosen = choose_workers(options, ready, cores, epoch_pairs, failed)
            results = measure(options, chosen, cores, epoch_pairs, failed)
            print(f"{report.loaders_table(cores, results)}\n\n{report.comparison(cores, results)}\n", flush=True)
        told = {versions(item.python, item.loader.packages) for item in ready if item.loader.packages}
    print("\n\n".join(filter(None, [not_measured(failed), f"Versions: {', '.join(sorted(told))}." if told else ""])))
    return 0 if options.only or not failed else 1


if __name__ == "__main__":
    sys.exit(main())
