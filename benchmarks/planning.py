"""What the making of shards of very many photos takes before and after the photos themselves: the plan, the manifest.

    python -m benchmarks.planning [--photos 10000000] [--samples_per_shard 16384]

Photos are simulated (names, hashes and sizes, no files); the plan, the list of photos and the manifest are made by the
real code, in a temporary folder that takes some 300 bytes a photo (the index is a sparse file of zeros). Each part runs
in a process of its own.
Writes benchmarks/results/planning.json and the numbers in docs/clusters.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine
from benchmarks.scaling_model import RESULTS
from shards import output, plan
from shards.plan import ShardsConfig, ShardTask, Source
from shards.write import plan_tasks
from srcnn.index import INDEX, ROW, hash_of_rows, index_entry, index_header
from srcnn.listing import photos_in
from srcnn.reader import read_manifest
from srcnn.rows import Rows
from srcnn.sample import Manifest, PhotoRecord, Shard
from srcnn.storage import open_storage, open_writable

PAGE = Path(__file__).resolve().parents[1] / "docs/clusters.md"
BEGIN, END = "<!-- planning -->", "<!-- end -->"
SIZES = ((4000, 3000), (3000, 4000), (5472, 3648), (1920, 1080))


def settings(options: argparse.Namespace) -> ShardsConfig:
    return ShardsConfig(photos="s3://bucket/photos", out=str(options.out), samples_per_shard=options.samples_per_shard)


def simulated(num_photos: int) -> Iterator[Source]:
    """Photos as `shards.write.scan` gives them, in folders of a thousand."""
    for number in range(num_photos):
        sha256 = hashlib.sha256(number.to_bytes(8, "little")).hexdigest()
        yield Source("s3://bucket/photos", f"{number // 1000:05d}/photo-{number:08d}.jpg", sha256, *SIZES[number % 4])


def planned(options: argparse.Namespace) -> tuple[list[ShardTask], dict[str, float]]:
    start = time.perf_counter()
    scanned = list(simulated(options.photos))
    listed = time.perf_counter()
    tasks, _ = plan_tasks(settings(options), scanned)
    made = time.perf_counter()
    digest = plan.plan_hash(tasks)
    seconds = {"simulate": listed - start, "plan": made - listed, "hash the plan": time.perf_counter() - made}
    assert len(digest) == 64
    return tasks, seconds


def part_plan(options: argparse.Namespace) -> dict[str, Any]:
    """Splits, shards and the hash of it all, in memory."""
    tasks, seconds = planned(options)
    return {"seconds": seconds, "shards": len(tasks)}


def part_finish(options: argparse.Namespace) -> dict[str, Any]:
    """List and manifest of the training split, streamed to the disk; a sparse file for its index."""
    config = settings(options)
    tasks = [task for task in planned(options)[0] if task.split == "train"]
    train = Path(config.out, "train")
    open_writable(config.out).prepare(output.FOLDERS)
    start = time.perf_counter()
    shards, photos, psnr = output.write_listing(open_writable(str(train)), results(config, tasks), [])
    num_samples = sum(shard.num_samples for shard in shards)
    names = (config.tile_shape, config.encoding, ("clean.npy", "degraded.npy"), 34816, {})
    manifest = Manifest("train", *names, index_entry(num_samples), shards, photos, psnr, {})
    manifest.write(train)
    seconds = time.perf_counter() - start
    with (train / INDEX).open("wb") as file:
        file.write(index_header(num_samples))
        file.truncate(manifest.index.bytes)
    sizes = {path.name: path.stat().st_size for path in train.iterdir()}
    return {"seconds": seconds, "bytes": sizes, "samples": num_samples, "photos": photos.num_photos}


def results(config: ShardsConfig, tasks: list[ShardTask]) -> Iterator[output.ShardResult]:
    """What is known of each shard when it is finished."""
    for task in tasks:
        photos, first = [], 0
        for source in task.sources:
            number = config.num_samples(source)
            photos.append(PhotoRecord(source.name, source.sha256, 1024, 1024, 20, task.name, first, number, 29.1234))
            first += number
        shard = Shard(task.name, first * 34816 + 10240, task.sources[0].sha256, first, hash_of_zeros(first))
        yield output.ShardResult(shard, tuple(photos), ())


@lru_cache
def hash_of_zeros(num_rows: int) -> str:
    return hash_of_rows(np.zeros(num_rows, ROW))


def part_read(options: argparse.Namespace) -> dict[str, Any]:
    """What a rank of a training does with them: opens the manifest, and looks up pairs of a thousand random shards."""
    storage = open_storage(options.out / "train")
    start = time.perf_counter()
    manifest = read_manifest(storage)
    read = time.perf_counter()
    rows = Rows(storage, manifest)
    chosen = np.random.default_rng(0).choice(len(manifest.shards), min(1000, len(manifest.shards)), replace=False)
    for number in chosen.tolist():
        rows.of_shard(number)
    return {"seconds": {"manifest": read - start, "rows of 1,000 shards": time.perf_counter() - read}}


def part_list(options: argparse.Namespace) -> dict[str, Any]:
    """Every photo of the split, one after the other, as `srcnn verify-shards` and `srcnn doctor` do."""
    storage = open_storage(options.out / "train")
    manifest, start = read_manifest(storage), time.perf_counter()
    num_photos = sum(1 for _ in photos_in(storage, manifest))
    return {"seconds": time.perf_counter() - start, "photos": num_photos}


PARTS = {"plan": part_plan, "finish": part_finish, "read": part_read, "list": part_list}


def page(found: dict[str, Any]) -> str:
    """Markdown for docs/clusters.md."""
    finish, read, sizes = found["finish"], found["read"], found["finish"]["bytes"]
    plan_seconds = found["plan"]["seconds"]
    rows = [
        ("plan: splits, shards", f"{plan_seconds['plan']:.0f} s", _gib(found["plan"]),
         f"{found['plan']['shards']:,} shards"),
        ("hash of the plan", f"{plan_seconds['hash the plan']:.0f} s", "", ""),
        ("list and manifest of the training split, written shard by shard", f"{finish['seconds']:.0f} s", _gib(finish),
         f"photos.jsonl {sizes['photos.jsonl'] / 1e9:.2f} GB, index.npy {sizes['index.npy'] / 1e9:.1f} GB"),
        ("a reader opens the manifest", f"{read['seconds']['manifest']:.2f} s", "",
         f"manifest.json {sizes['manifest.json'] / 1e6:.1f} MB"),
        ("and checks the rows of 1,000 shards of the index, which are mapped",
         f"{read['seconds']['rows of 1,000 shards']:.1f} s", _gib(read), ""),
        ("every photo of the list, as `verify-shards` reads it", f"{found['list']['seconds']:.0f} s",
         _gib(found["list"]), ""),
    ]
    about = found["machine"]
    title = (f"**{found['photos']:,} photos**, simulated, {finish['samples']:,} training pairs in shards of "
             f"{found['samples_per_shard']:,} (`python -m benchmarks.planning`; one core of {about['cpu']}):")
    header = ["| | takes | memory at the most | size |", "|---|---:|---:|---|"]
    return "\n".join([title, "", *header, *(f"| {' | '.join(row)} |" for row in rows)])


def _gib(part: dict[str, Any]) -> str:
    return f"{part['peak_mib'] / 1024:.2f} GiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=10_000_000)
    parser.add_argument("--samples_per_shard", type=int, default=16_384)
    parser.add_argument("--work", type=Path, help="where a temporary folder is made (default: the system's)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        told = PARTS[options.part](options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(told | {"peak_mib": round(peak)}))
        return 0
    found: dict[str, Any] = {"photos": options.photos, "samples_per_shard": options.samples_per_shard}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for part in PARTS:
            command = [sys.executable, "-m", "benchmarks.planning", "--part", part, "--out", f"{work}/out",
                       "--photos", str(options.photos), "--samples_per_shard", str(options.samples_per_shard)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            found[part] = json.loads(done.stdout)
            print(part, json.dumps(found[part]), flush=True)
    found["machine"] = machine()
    (RESULTS / "planning.json").write_text(json.dumps(found, indent=1) + "\n")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{page(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
