"""The command for test sets, datasets: says where they come from, prepares and checks them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from srcnn.commands.parser import add_command

MAX_NAMED = 5  # photos


def add_dataset_commands(commands: Any) -> None:
    datasets = add_command(
        commands, "datasets", list_command, "say where test sets of published scores come from; prepare, check them",
        "srcnn datasets", "srcnn datasets prepare live1_y --from ~/Downloads/FBCNN-main.zip --out data/val/live1_y",
        "srcnn datasets check data/val/live1_y", more="Without a further command it lists them.")
    tasks = datasets.add_subparsers(dest="task")
    prepare = add_command(
        tasks, "prepare", prepare_command, "find the photos of a test set in a download, and write them into a folder",
        "srcnn datasets prepare classic5 --from ~/Downloads/FBCNN-main.zip --out data/val/classic5",
        "srcnn datasets prepare set5 --from SelfExSR/data --out data/val/set5",
        more="Photos are known by their pixels, whatever their names and formats.")
    prepare.add_argument("name", metavar="NAME", help="a name that `srcnn datasets` lists")
    prepare.add_argument("--from", dest="source", type=Path, required=True, metavar="PATH",
                         help="folder or ZIP archive, with everything below it")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the photos, as PNGs")
    check = add_command(tasks, "check", check_command, "check that a folder holds a test set and no other photo",
                        "srcnn datasets check data/val/live1_y")
    check.add_argument("folder", type=Path, metavar="DIR", help="folder of the photos")
    check.add_argument("--name", metavar="NAME", help="of the set (default: that of the folder)")


def list_command(options: argparse.Namespace) -> int:
    from srcnn.photos.benchmark_sets import benchmark_sets

    for each in benchmark_sets().values():
        print(f"{each.name} ({len(each.photos)} photos)\n  what:  {each.about}\n  from:  {each.source}\n"
              f"  terms: {each.terms}")
    print("\nDownload one yourself, then: srcnn datasets prepare NAME --from DOWNLOAD --out data/val/NAME"
          "\nand measure with: srcnn score data/val/NAME")
    return 0


def prepare_command(options: argparse.Namespace) -> int:
    from srcnn.photos.benchmark_sets import find_set, prepare

    wanted = find_set(options.name)
    missing = prepare(wanted, options.source, options.out)
    print(f"{options.out}: {len(wanted.photos) - len(missing)} of {len(wanted.photos)} photos of {wanted.name}")
    return _report_missing(missing, f"not in {options.source}; they come from {wanted.source}")


def check_command(options: argparse.Namespace) -> int:
    from srcnn.photos.benchmark_sets import check, find_set

    wanted = find_set(options.name or options.folder.resolve().name)
    missing, others = check(wanted, options.folder)
    print(f"{options.folder}: {len(wanted.photos) - len(missing)} of {len(wanted.photos)} photos of {wanted.name}")
    if others:
        print(f"not of the set, and scored all the same: {_named(others)}", file=sys.stderr)
    return _report_missing(missing, f"they come from {wanted.source}") or int(bool(others))


def _report_missing(missing: list[str], where: str) -> int:
    """Names missing photos; returns the exit status."""
    if missing:
        print(f"missing: {_named(missing)}: {where}", file=sys.stderr)
    return int(bool(missing))


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
