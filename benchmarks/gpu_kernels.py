"""Where the time of a step goes on the device: kernels by time, from a profiler's trace, as a table and a picture."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu_part import Part
from srcnn.profile_step import now

NUM_STEPS = 3
NUM_SHOWN = 12
DEVICE_KINDS = {"kernel", "gpu_memcpy", "gpu_memset"}


def profile(part: Part, name: str, step: Callable[[], object]) -> None:
    """Traces some steps; notes the kernels, and writes the trace and the picture beside the results."""
    step()
    now(part.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (part.device.type == "cuda")
    with profiler(activities=activities) as traced:
        for _ in range(NUM_STEPS):
            step()
        now(part.device)
    trace = part.results.with_name("gpu-trace.json")
    traced.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    kernels = by_time(events, DEVICE_KINDS if part.device.type == "cuda" else {"cpu_op"})
    if not kernels:
        raise ValueError("the profiler saw no kernels")
    picture = trace.with_name("gpu-kernels.png")
    draw(kernels, picture, f"{name}: a step's {sum(row['ms'] for row in kernels):.2f} ms on the device by kernel")
    part.note(profile={"of": name, "trace": trace.name, "picture": picture.name, "kernels": kernels[:NUM_SHOWN],
                       "milliseconds": sum(row["ms"] for row in kernels)})


def by_time(events: Iterable[dict[str, Any]], kinds: set[str]) -> list[dict[str, Any]]:
    """A row for each kernel of a chrome trace, the longest first: its name, calls and ms a step, share of all.

    Of an event within another of the same thread, as operators on a CPU are, the outer one does not count the time.
    """
    chosen = [event for event in events if event.get("ph") == "X" and event.get("cat") in kinds]
    chosen.sort(key=lambda event: (event["pid"], event["tid"], event["ts"], -event["dur"]))
    own = [float(event["dur"]) for event in chosen]
    open_ones: list[int] = []
    for number, event in enumerate(chosen):
        while open_ones and not _within(event, chosen[open_ones[-1]]):
            open_ones.pop()
        if open_ones:
            own[open_ones[-1]] -= event["dur"]
        open_ones.append(number)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event, microseconds in zip(chosen, own, strict=True):
        sums[event["name"]][0] += 1 / NUM_STEPS
        sums[event["name"]][1] += microseconds / NUM_STEPS / 1e3
    total = sum(ms for _, ms in sums.values()) or 1.0
    rows = [{"kernel": name, "calls": calls, "ms": ms, "share": ms / total} for name, (calls, ms) in sums.items()]
    return sorted(rows, key=lambda row: -float(str(row["ms"])))


def _within(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    same = (event["pid"], event["tid"]) == (outer["pid"], outer["tid"])
    return bool(same and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"])


def draw(kernels: list[dict[str, Any]], path: Path, title: str) -> None:
    """A bar for each of the longest kernels, and one for the rest."""
    from matplotlib.figure import Figure

    shown = kernels[:NUM_SHOWN]
    rest = sum(row["ms"] for row in kernels[NUM_SHOWN:])
    names = [short(row["kernel"]) for row in shown] + ["all others"]
    times = [row["ms"] for row in shown] + [rest]
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), times[::-1], color=["#a0a0a0"] + ["#3060a0"] * len(shown))
    axes.set_yticks(range(len(names)), names[::-1])
    axes.bar_label(bars, [f"{time / (sum(times) or 1):.0%}" for time in times[::-1]], padding=3)
    axes.set_xlabel("milliseconds a step")
    axes.set_title(title)
    figure.savefig(path, dpi=110)


def short(name: str, length: int = 60) -> str:
    """A kernel's name without its template's arguments."""
    plain = name.removeprefix("void ").partition("<")[0].partition("(")[0]
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."
