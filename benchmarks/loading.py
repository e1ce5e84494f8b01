"""Data loaders side by side, over the same tiles: `make bench-loading`, or `python -m benchmarks.loading --help`.

Shards are made of real photographs once, then converted to each peer's format in its own environment. Every loader
first tries how many workers suit it, then all run in turn, round after round, each in a process of its own that is
pinned to the cores given. From the page cache: all files are read before each run. From the disk: the kernel is told
to drop them (posix_fadvise, POSIX_FADV_DONTNEED) before each run, which is one epoch; a cache of the storage itself
is not dropped by that. The rate leaves out the time to the first batch, which is told apart, from the construction of
the loader on and without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import material, report, servers
from benchmarks.environments import Failed, python_of, versions
from benchmarks.loaders import LOADERS, OURS, Loader
from benchmarks.measure import Ready, State, run, set_state

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "loading.md"
MIN_CORES_FOR_SIXTEEN = 16
FEWEST_BATCHES = 8  # in a run
SERVER_RUNS_LONGER, SERVER_BATCHES = 3, 256
QUICK = {"num_pairs": 2048, "rounds": 2, "seconds": 0.5}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures data loaders side by side.")
    parser.add_argument("--photos", type=Path, default=material.PHOTOS, help="else: drawn")
    parser.add_argument("--work", type=Path, default=HERE / "built", help="data and environments, kept between calls")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="loading.json and loading.md go there")
    parser.add_argument("--num_pairs", type=int, default=16384, help="at least so many are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long is a run from the page cache")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--cores", type=int, nargs="+", help="default: 1 and 2, and 16 where there are so many")
    parser.add_argument("--states", nargs="+", choices=("page cache", "disk"), default=["page cache", "disk"])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="loaders whose name begins so")
    parser.add_argument("--quick", action="store_true", help="2,048 pairs, 2 rounds of half a second: does it work?")
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
    chosen = [loader for loader in LOADERS if not options.only or loader.name.startswith(tuple(options.only))]
    material.make_shards(options.work, options.photos, options.num_pairs)
    os.sync()
    epoch_pairs = num_pairs_of(material.shards_of(options.work, "npy"))
    with ExitStack() as stack:
        ready, told = prepare(options, chosen, stack, failed)
        runs: list[report.Run] = []
        for cores in options.cores:
            tuned = choose_workers(options, ready, cores, epoch_pairs, failed)
            for state in options.states:
                runs += alternate(options, tuned, cores, state, epoch_pairs, failed)
                result = summarize(options, runs, failed, told, epoch_pairs)
                write(options.results, result)
                if not options.quick and not options.only:
                    report.put_into(DOCS, "loading", report.table(result))
    ratio = result["ratio_over_best_peer"]
    print(f"ratio over best peer: {f'{ratio:.2f}' if ratio else 'not measured'}")
    return 0 if ratio or options.only else 1


def num_pairs_of(shards: Path) -> int:
    return int(json.loads((shards / "manifest.json").read_text())["num_samples"])


def prepare(
    options: argparse.Namespace, chosen: list[Loader], stack: ExitStack, failed: dict[str, str]
) -> tuple[list[Ready], dict[str, str]]:
    """Environments, formats and servers of the loaders; those that cannot be had go to `failed`. Also the versions."""
    ready, told = [], {}
    server: str | Failed = ""
    for loader in chosen:
        try:
            print(f"preparing {loader.name}", file=sys.stderr, flush=True)
            python = python_of(options.work.parent, loader.packages)
            if loader.packages:
                told[loader.name] = versions(python, loader.packages)
            files = material.location_of(options.work, loader, python)
            place: tuple[str, dict[str, str]] | Failed = (str(files), {})
            if loader.server:
                server = server or serve(material.shards_of(options.work, "npy").parents[1], stack)
                place = at_server(server, loader.server)
            if isinstance(place, Failed):
                raise place
            ready.append(Ready(loader, python, place[0], files, place[1]))
        except Failed as error:
            note(failed, loader.name, error)
    return ready, told


def serve(root: Path, stack: ExitStack) -> str | Failed:
    """Starts a server over the folder: its address, or why there is none."""
    try:
        return stack.enter_context(servers.http(root))
    except (Failed, OSError) as error:
        return Failed(str(error))


def at_server(server: str | Failed, kind: str) -> tuple[str, dict[str, str]] | Failed:
    """Where the npy shards are found there, and the variables to reach them."""
    if isinstance(server, Failed):
        return server
    return ("s3://npy/train", servers.s3_environment(server)) if kind == "s3" else (f"{server}/npy/train", {})


def choose_workers(
    options: argparse.Namespace, ready: list[Ready], cores: int, epoch_pairs: int, failed: dict[str, str]
) -> list[tuple[Ready, int, float]]:
    """For each loader the number of workers that is fastest from the page cache, and its rate; one epoch is a first
    guess of how much takes the time wanted.
    """
    tuned = []
    for item in ready:
        set_state(item.files, "page cache")
        rates: dict[int, float] = {}
        choices = list(dict.fromkeys(item.loader.num_workers(cores)))
        num_pairs = epoch_pairs
        for num_workers in [choices[0], *choices]:
            try:
                measured = run(item, cores, num_workers, num_pairs, epoch_pairs, options.batch_size)
                rates[num_workers] = measured["pairs_per_second"]
                num_pairs = pairs_for(options, item.loader, max(rates.values()))
            except Failed as error:
                note(failed, f"{item.loader.name}, {cores} cores, {num_workers} workers", error)
        if rates:
            best = max(rates, key=lambda count: rates[count])
            tuned.append((item, best, rates[best]))
            tried = ", ".join(f"{count}: {rate:,.0f}" for count, rate in rates.items())
            print(f"{cores} cores, {item.loader.name}: pairs/s by workers: {tried}", file=sys.stderr, flush=True)
    return tuned


def pairs_for(options: argparse.Namespace, loader: Loader, pairs_per_second: float) -> int:
    """What a run from the page cache reads; more from a server, as what is read ahead at the end counts for nothing."""
    seconds = options.seconds * (SERVER_RUNS_LONGER if loader.server else 1)
    at_least = (SERVER_BATCHES if loader.server else FEWEST_BATCHES) * int(options.batch_size)
    return max(at_least, int(pairs_per_second * seconds))


def alternate(
    options: argparse.Namespace,
    tuned: list[tuple[Ready, int, float]],
    cores: int,
    state: State,
    epoch_pairs: int,
    failed: dict[str, str],
) -> list[report.Run]:
    """Each loader once a round, beginning with another one each round. Servers are read from the page cache only."""
    taking_part = [one for one in tuned if state == "page cache" or not one[0].loader.server]
    runs = []
    for number in range(options.rounds):
        turn = number * max(1, len(taking_part) // options.rounds) % max(1, len(taking_part))
        for item, num_workers, rate in taking_part[turn:] + taking_part[:turn]:
            num_pairs = epoch_pairs if state == "disk" else pairs_for(options, item.loader, rate)
            set_state(item.files, state)
            try:
                measured = run(item, cores, num_workers, num_pairs, epoch_pairs, options.batch_size)
            except Failed as error:
                note(failed, f"{item.loader.name}, {cores} cores, {state}", error)
                continue
            runs.append(report.Run(item.loader.name, cores, state, num_workers, measured))
            told = f"{cores} cores, {state}, round {number + 1}: {item.loader.name}: "
            print(f"{told}{measured['pairs_per_second']:,.0f} pairs/s", file=sys.stderr, flush=True)
    return runs


def note(failed: dict[str, str], name: str, error: Failed) -> None:
    failed[name] = str(error)
    print(f"{name}: {error}", file=sys.stderr, flush=True)


def summarize(
    options: argparse.Namespace, runs: list[report.Run], failed: dict[str, str], told: dict[str, str], epoch_pairs: int
) -> dict[str, Any]:
    """All that goes to loading.json; the ratios at the top are those from the page cache on two cores."""
    records = report.medians(runs)
    comparisons = report.compare(records)
    keys = ("pairs_per_second", "ratio_over_best_peer", "ratio_over_webdataset_npy", "ratio_over_source")
    headline = report.headline(comparisons)
    return {key: headline.get(key) for key in keys} | {
        "headline": {key: headline.get(key) for key in ("cores", "state", "best_peer")} | {"loader": OURS},
        "date": date.today().isoformat(),
        "machine": report.machine(),
        "num_pairs": epoch_pairs,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": told,
        "failed": failed,
        "comparisons": comparisons,
        "results": records,
    }


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loading.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "loading.md").write_text(report.table(result))


if __name__ == "__main__":
    sys.exit(main())
