"""From the runs to medians, ratios, the JSON file and the table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, mode
from typing import Any

from benchmarks.loaders import LOADERS, OURS, SOURCE, WEBDATASET_NPY
from benchmarks.measure import State

HEADLINE_CORES = 2
KINDS = {loader.name: loader.kind for loader in LOADERS}
COLUMNS = "workers | pairs/s, page cache | pairs/s, disk | CPU s per million pairs | peak memory, MB | first batch, s |"
HEADER = "| {cores} | " + COLUMNS + "\n|---" + 6 * "|---:" + "|"


@dataclass(frozen=True)
class Run:
    """One run of a loader."""

    loader: str
    cores: int
    state: State
    workers: int
    measured: dict[str, Any]


def medians(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One record for each loader, number of cores and state."""
    groups: dict[tuple[str, int, State, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.loader, run.cores, run.state, run.workers), []).append(run.measured)
    records = [_record(*key, group) for key, group in groups.items()]
    sums = [one["checksum"] for record in records for one in record["runs"] if one["checksum"] > 0]
    for record in records:
        own = {one["checksum"] for one in record["runs"]} - {0, -1}
        record["each_pair_once"] = own == {mode(sums)} if own else None  # None: less than an epoch was read
    return records


def _record(loader: str, cores: int, state: State, workers: int, group: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [one["pairs_per_second"] for one in group]
    return {
        "loader": loader,
        "kind": KINDS[loader],
        "cores": cores,
        "state": state,
        "workers": workers,
        "num_runs": len(group),
        "pairs_per_second": median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "cpu_seconds_per_million_pairs": median(1e6 * one["cpu_seconds"] / one["pairs"] for one in group),
        "peak_memory_mb": median(one["peak_mb"] for one in group),
        "first_batch_seconds": median(one["first_batch_seconds"] for one in group),
        "disk_mb": median(one["disk_mb"] for one in group),
        "runs": group,
    }


def compare(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over the others, for each number of cores and state; None where the other was not measured."""
    comparisons = []
    for cores, state in dict.fromkeys((record["cores"], record["state"]) for record in records):
        here = {record["loader"]: record for record in records if (record["cores"], record["state"]) == (cores, state)}
        rates = {name: record["pairs_per_second"] for name, record in here.items()}
        peers = {name: rate for name, rate in rates.items() if KINDS[name] == "peer"}
        best = max(peers, key=lambda name: peers[name], default="")
        comparison = {"cores": cores, "state": state, "pairs_per_second": rates.get(OURS), "best_peer": best}
        comparison["ratio_over_best_peer"] = _ratio(rates, OURS, best)
        comparison["ratio_over_webdataset_npy"] = _ratio(rates, OURS, WEBDATASET_NPY)
        comparison["ratio_over_source"] = _ratio(rates, OURS, SOURCE)
        for server in ("http", "s3"):
            comparison[f"ratio_over_download_{server}"] = _ratio(rates, f"{OURS}, {server}", f"download, {server}")
        comparisons.append(comparison)
    return comparisons


def _ratio(rates: dict[str, float], one: str, other: str) -> float | None:
    return rates[one] / rates[other] if one in rates and other in rates else None


def headline(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """The comparison from the page cache on two cores, or else on the most."""
    found = [item for item in comparisons if item["state"] == "page cache" and item["ratio_over_best_peer"]]
    return max(found, key=lambda item: (item["cores"] == HEADLINE_CORES, item["cores"]), default={})


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(result: dict[str, Any]) -> str:
    """Markdown: what was measured on, a table for each number of cores, the ratios, what was left out."""
    about = result["machine"]
    parts = [
        f"{result['num_pairs']:,} pairs of 128x128; {about['cpu']}, Python {about['python']}; medians of "
        f"{result['rounds']} alternating runs, batches of {result['batch_size']}; {result['date']}."
    ]
    for cores in dict.fromkeys(record["cores"] for record in result["results"]):
        here = [record for record in result["results"] if record["cores"] == cores]
        parts.append("\n".join([HEADER.format(cores=f"{cores} core{'s' * (cores > 1)}"), *_lines(here)]))
    parts.append("\n".join(_sentence(item) for item in result["comparisons"]))
    if result["failed"]:
        parts.append("\n".join(["Not measured:", "", *(f"- {name}: {why}" for name, why in result["failed"].items())]))
    if result["versions"]:
        parts.append(f"Versions: {', '.join(dict.fromkeys(result['versions'].values()))}.")
    return "\n\n".join(parts) + "\n"


def _lines(records: list[dict[str, Any]]) -> list[str]:
    """A line for each loader, the fastest from the page cache first."""
    states: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        states.setdefault(record["loader"], {})[record["state"]] = record
    lines = []
    for name, found in sorted(states.items(), key=lambda item: -_rate(item[1].get("page cache"))):
        shown = found.get("page cache") or found["disk"]
        rates = " | ".join(_number(_rate(found.get(state))) for state in ("page cache", "disk"))
        rest = [shown["cpu_seconds_per_million_pairs"], shown["peak_memory_mb"]]
        numbers = " | ".join(f"{value:,.0f}" for value in rest)
        lines.append(f"| {name} | {shown['workers']} | {rates} | {numbers} | {shown['first_batch_seconds']:.2f} |")
    return lines


def _rate(record: dict[str, Any] | None) -> float:
    return float(record["pairs_per_second"]) if record else 0.0


def _number(rate: float) -> str:
    """Three digits that mean something."""
    if not rate:
        return ""
    digits = max(0, len(f"{rate:.0f}") - 3)
    return f"{round(rate, -digits):,.0f}"


def _sentence(comparison: dict[str, Any]) -> str:
    names = {
        "ratio_over_best_peer": f"the best peer ({comparison['best_peer']})",
        "ratio_over_webdataset_npy": WEBDATASET_NPY,
        "ratio_over_source": f"the {SOURCE}",
        "ratio_over_download_http": "the plain download, http",
        "ratio_over_download_s3": "the plain download, s3",
    }
    told = [f"{comparison[key]:.2f} of {name}" for key, name in names.items() if comparison[key]]
    where = f"{comparison['cores']} core{'s' * (comparison['cores'] > 1)}, {comparison['state']}"
    return f"- {where}: srcnn reaches {', '.join(told)}." if told else f"- {where}: nothing to compare."


def put_into(page: Path, name: str, text: str) -> None:
    """Replaces what stands on a page of the docs between <!-- name --> and the next <!-- end -->."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    assert mark and end, f"{page}: no place for {name}"
    page.write_text(f"{before}{mark}{text.rstrip()}\n{end}{after}", encoding="utf-8")
