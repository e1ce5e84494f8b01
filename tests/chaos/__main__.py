"""Random faults against a training of several ranks: `make chaos`, or `PYTHONPATH=tests python -m chaos --help`.

A training is disturbed again and again, and each time the same command is started again, until it is finished. Then it
is compared with one that nobody disturbed: not a bit of its weights may differ, and nothing may be missing or be left.
As long as there are faults left, another training begins. A fault that is not survived ends its training.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from .campaign import TOTAL_SAMPLES, Campaign, describe
from .faults import FAULTS, KILLED, Fault
from .job import BATCH_SIZE, ROOT

DISK_MEBIBYTES = 64
UNSHARED = "SRCNN_CHAOS_UNSHARED"
PHOTOS, VAL_PHOTOS = 4, 2


def make_shards(work: Path) -> None:
    """In work/shards: tiles of 32 pixels, four shards to train on."""
    for name, num, seed in (("photos", PHOTOS, 0), ("val photos", VAL_PHOTOS, PHOTOS)):
        command = [sys.executable, "-m", "shards.skylines", str(work / name), "--num", str(num), "--seed", str(seed)]
        subprocess.run(command, cwd=ROOT, check=True)
    subprocess.run([
        sys.executable, "-m", "shards", "--photos", str(work / "photos"), "--val", str(work / "val photos"),
        "--out", str(work / "shards"), "--resize", "320x256", "--tile_pixels", "32", "--samples_per_shard", "80",
        "--num_workers", "1",
    ], cwd=ROOT, check=True)  # fmt: skip


def plan(seed: int, num_faults: int, with_preloaded: bool, only: str = "") -> list[Fault]:
    """Each fault about as often as any other, in an order that only the seed decides."""
    random = Random(seed)
    chosen: list[Fault] = []
    while len(chosen) < num_faults:
        shuffled = random.sample(FAULTS, len(FAULTS))
        chosen += [fault for fault in shuffled if (with_preloaded or not fault.is_preloaded) and only in fault.name]
    return chosen[:num_faults]


def make_library(library: Path) -> list[str]:
    """Compiles preload.c; what has to be left out where that is impossible."""
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("preload.c"))]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"clock jumps, calls that fail or hang: no C compiler ({error})"]
    return []


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Whether `folder` has a small file system of its own now."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MEBIBYTES}m", "tmpfs"]
    try:
        mounted = not subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount(arguments: list[str]) -> None:
    """Becomes root of a user namespace, where that is needed for mounting and allowed."""
    if os.geteuid() and shutil.which("unshare") and UNSHARED not in os.environ:
        if not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
            os.environ[UNSHARED] = "1"
            os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "chaos", *arguments])


def result_of(campaign: Campaign, skipped: list[str]) -> dict[str, Any]:
    tried, finished = campaign.tried, [one for one in campaign.trainings if one["weights_equal"] is not None]
    kinds = {fault.name: [one for one in tried if one.fault is fault] for fault in FAULTS}
    return {
        "faults_tried": len(tried),
        "faults_survived": sum(not one.problem for one in tried),
        "weights_equal": bool(finished) and all(one["weights_equal"] for one in finished),
        "trainings_finished": len(finished),
        "trainings_equal_in_everything": sum(not one["problems"] for one in finished),
        "seed": campaign.seed,
        "disk_filled_by": "RLIMIT_FSIZE" if campaign.limits_files else "tmpfs",
        "skipped": skipped,
        "most_steps_lost_to_a_kill_expected": KILLED,
        "steps_of_a_training": TOTAL_SAMPLES // BATCH_SIZE,
        "kinds": {
            name: {
                "tried": len(ones),
                "survived": sum(not one.problem for one in ones),
                "steps_lost_median": median(one.lost_steps for one in ones),
                "steps_lost_max": max(one.lost_steps for one in ones),
            }
            for name, ones in kinds.items() if ones
        },
        "not_survived": [describe(one) for one in tried if one.problem],
        "trainings": campaign.trainings,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = ["| fault | tried | survived | steps lost, median | most |", "|---|---:|---:|---:|---:|"]
    for name, kind in result["kinds"].items():
        lines.append(f"| {name} | {' | '.join(format(value, 'g') for value in kind.values())} |")
    keys = ("faults_tried", "faults_survived", "weights_equal", "disk_filled_by", "seed")
    return "\n".join([*lines, "", *(f"{key}: {result[key]}" for key in keys)])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Disturbs trainings of several ranks, and compares their results.")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="decides which faults come, in which order, and when")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args(arguments)
    may_mount(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no training stays behind
    work = Path(tempfile.mkdtemp(prefix="chaos-"))
    skipped = make_library(work / "preload.so")
    with small_disk(work / "disk") as mounted:
        make_shards(work)
        campaign = Campaign(work, work / "disk", not mounted, work / "preload.so", options.seed, options.ranks)
        try:
            campaign.run(plan(options.seed, options.faults, not skipped, options.only))
        finally:
            campaign.job.kill()
    result = result_of(campaign, skipped)
    print(f"\n{table(result)}")
    for reason in skipped:
        print(f"left out: {reason}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    survived = result["faults_survived"] == result["faults_tried"] and result["weights_equal"]
    if survived and all(not one["problems"] for one in campaign.trainings):
        shutil.rmtree(work)
        return 0
    print(f"what failed is kept in {work}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
