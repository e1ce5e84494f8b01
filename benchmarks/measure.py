"""What the benchmarks share: processes on given cores, variants that alternate, medians, Markdown tables."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "benchmarks" / "built"  # photos, shards and environments, kept between calls
TIMEOUT_SECONDS = 1800.0
ResultT = TypeVar("ResultT")


class Failed(Exception):
    """Something could not be installed, prepared or run; the message is the reason in one line."""


def log(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def call(
    command: Sequence[str | Path], cores: int | Iterable[int] | None = None,
    environment: Mapping[str, str] | None = None, timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Runs a program in the repository to its end; its standard output. What it leaves running is killed.

    Args:
        cores: it may use these only; a number: the first so many. OMP_NUM_THREADS is set to as many.

    Raises:
        Failed: with the last error that it printed, or because it took too long.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if cores is not None:
        allowed = allowed[:cores] if isinstance(cores, int) else sorted(cores)
    threads = {"OMP_NUM_THREADS": str(len(allowed))} if cores is not None else {}
    try:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=os.environ | threads | dict(environment or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )  # fmt: skip
    except OSError as error:
        raise Failed(str(error)) from error
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"took longer than {timeout_seconds:.0f} s") from error
    finally:
        _kill_session(process)
    if process.returncode:
        raise Failed(last_error(errors or output) or f"exit status {process.returncode}")
    return output


def call_json(command: Sequence[str | Path], *arguments: Any, **named: Any) -> dict[str, Any]:
    """`call` of a program that prints a JSON object in a line: the last one."""
    lines = [line for line in call(command, *arguments, **named).splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(f"{' '.join(map(str, command))}: printed no result")
    return dict(json.loads(lines[-1]))


def _kill_session(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def last_error(text: str) -> str:
    """The last line that names an error, else the last one with a word."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    errors = [line for line in lines if re.match(r"ERROR:|[\w.]+(Error|Exception|Failed)\b", line)]
    return (errors or lines or [""])[-1]


def alternate(
    variants: Mapping[str, Callable[[], ResultT]], rounds: int, failed: dict[str, str] | None = None
) -> dict[str, list[ResultT]]:
    """The results of each variant, which run in turn, round after round, each round beginning with another one.

    A variant that raises Failed is left out from then on and noted in `failed`; without `failed` the error is raised.
    """
    names, results = list(variants), {name: list[ResultT]() for name in variants}
    for number in range(rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            if failed is not None and name in failed:
                continue
            log(f"round {number + 1} of {rounds}: {name}")
            try:
                results[name].append(variants[name]())
            except Failed as error:
                if failed is None:
                    raise
                failed[name] = str(error)
                log(f"{name}: {error}")
    return {name: found for name, found in results.items() if found}


def medians(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each number, over dicts with the same keys."""
    return {key: median(one[key] for one in results) for key, value in results[0].items()
            if isinstance(value, (int, float))}


def machine() -> str:
    """What the numbers depend on, and the day: one line."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    cpu, cores = names[0] if names else platform.machine(), len(os.sched_getaffinity(0))
    return f"{date.today()}, {cpu}, {cores} cores, Python {platform.python_version()}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; all but the first column, which are numbers, to the right."""
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def not_measured(failed: Mapping[str, str]) -> str:
    """A list of what failed and why; empty if nothing did."""
    return "\n".join(["Not measured:", "", *(f"- {name}: {why}" for name, why in failed.items())]) if failed else ""
