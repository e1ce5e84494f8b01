"""From the runs of the loaders to a table and the ratios. Pure functions."""

from __future__ import annotations

from statistics import median, mode
from typing import Any

from benchmarks.loading.loaders import LOADERS, OURS, SOURCE, WEBDATASET_NPY
from benchmarks.measure import table

STATES = ("page cache", "disk")
Results = dict[tuple[str, str], list[dict[str, Any]]]  # (loader, one of STATES) -> its runs
COLUMNS = ("workers", "pairs/s, page cache", "pairs/s, disk", "CPU s per million pairs", "peak memory, MB",
           "first batch, s", "each pair once")
KINDS = {loader.name: loader.kind for loader in LOADERS}


def rate(results: Results, loader: str, state: str) -> float:
    """The median of pairs/s; 0 where it was not measured."""
    runs = results.get((loader, state))
    return float(median(run["pairs_per_second"] for run in runs)) if runs else 0.0


def loaders_table(cores: int, results: Results) -> str:
    """A row for each loader, the fastest from the page cache first. "Each pair once" is whether the first epoch's sum
    of pixels is that of most loaders; empty where less than an epoch was read.
    """
    sums = [run["checksum"] for runs in results.values() for run in runs if run["checksum"] > 0]
    rows = []
    for name in sorted({name for name, _ in results}, key=lambda name: -rate(results, name, "page cache")):
        runs = results.get((name, "page cache")) or results[name, "disk"]
        own = {run["checksum"] for state in STATES for run in results.get((name, state), [])} - {0, -1}
        rows.append([
            name, runs[0]["workers"], *(three_digits(rate(results, name, state)) for state in STATES),
            f"{median(1e6 * run['cpu_seconds'] / run['pairs'] for run in runs):,.0f}",
            f"{median(run['peak_mb'] for run in runs):,.0f}",
            f"{median(run['first_batch_seconds'] for run in runs):.2f}",
            ("yes" if own == {mode(sums)} else "no") if own else "",
        ])
    return table([f"{cores} core{'s' * (cores > 1)}", *COLUMNS], rows)


def three_digits(rate: float) -> str:
    """Three digits that mean something; empty for 0."""
    return f"{round(rate, -max(0, len(f'{rate:.0f}') - 3)):,.0f}" if rate else ""


def comparison(cores: int, results: Results) -> str:
    """A line for each state: ours over the others that were measured."""
    lines = []
    for state in STATES:
        rates = {name: rate(results, name, state) for name, found in results if found == state}
        best = max((name for name in rates if KINDS[name] == "peer"), key=lambda name: rates[name], default="")
        pairs = {f"the best peer ({best})": (OURS, best), WEBDATASET_NPY: (OURS, WEBDATASET_NPY),
                 f"the {SOURCE}": (OURS, SOURCE)}
        pairs |= {f"the plain download, {server}": (f"{OURS}, {server}", f"download, {server}")
                  for server in ("http", "s3")}
        ratios = [f"{rates[one] / rates[other]:.2f} of {title}" for title, (one, other) in pairs.items()
                  if one in rates and other in rates]
        if ratios:
            lines.append(f"- {cores} core{'s' * (cores > 1)}, {state}: srcnn reaches {', '.join(ratios)}.")
    return "\n".join(lines)
