"""What every part of `benchmarks.gpu` has: a deadline, a place for its numbers, failures that are noted, a clock."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState

from srcnn.files import write_json
from srcnn.model import device_here
from srcnn.profile_step import now

STRETCH_SECONDS = 0.25  # at least as long a stretch is timed
WARM_STEPS = 3
ROUND_SECONDS = 10.0  # less is too short for another round
RoundsT = dict[str, list[float]]
ResultT = TypeVar("ResultT")


class TooLong(BaseException):
    """Something took more than the seconds it was given. No Exception: compilers go on after those."""


@dataclass
class Part:
    """One part of the run, in a process of its own, so that what goes wrong in it ends with it.

    Attributes:
        results: the JSON file of the whole run; what is noted is in it at once, whenever the part is cut off.
        until: when the part has to be done, seconds as of time.time().
        found: the numbers of this part.
    """

    name: str
    results: Path
    work: Path
    until: float
    quick: bool = False
    photos: Path | None = None
    found: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=device_here)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Part:
        return cls(options.part, options.json, options.work, options.until, options.quick, options.photos)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    @property
    def shards(self) -> Path:
        return self.work / "shards"

    @property
    def stretch_seconds(self) -> float:
        return 0.0 if self.quick else STRETCH_SECONDS

    def whole(self) -> dict[str, Any]:
        """What the run knows so far."""
        return dict(json.loads(self.results.read_text())) if self.results.is_file() else {"parts": {}}

    def of_part(self, name: str) -> dict[str, Any]:
        """What another part has found; empty where it found nothing."""
        return dict(self.whole()["parts"].get(name, {}))

    def note(self, **found: Any) -> None:
        """Adds to the numbers of this part, and writes them."""
        self.found.update(found)
        whole = self.whole()
        whole["parts"][self.name] = self.found
        write_json(self.results, whole)

    def attempt(self, what: str, work: Callable[[], ResultT], seconds: float = 1e6) -> ResultT | None:
        """The result of the work; None where it fails or takes more than the seconds, or those that are left: why is
        noted under "failed".
        """
        allowed = min(seconds, self.left)
        try:
            if allowed <= 0:
                raise TooLong("no time was left")
            with alarm(allowed):
                return work()
        except (Exception, TooLong) as error:  # whatever it is, the other measurements shall be made
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{self.name}: {what}: {why}", flush=True)
            self.note(failed=self.found.get("failed", {}) | {what: why})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TooLong in what is done within when the seconds are over, as soon as Python runs again."""

    def ring(*_: Any) -> None:
        raise TooLong(f"took more than {seconds:.0f} s")

    before, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        rest = max(outer - (time.monotonic() - began), 0.01) if outer else 0  # 0 is none at all
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, rest)


@contextmanager
def convolutions(tf32: bool, tried: bool) -> Iterator[None]:
    """Sets how cuDNN works within, and back to PyTorch's own settings."""
    convolution = torch.backends.cudnn.conv
    convolution.fp32_precision, torch.backends.cudnn.benchmark = "tf32" if tf32 else "ieee", tried
    try:
        yield
    finally:
        convolution.fp32_precision, torch.backends.cudnn.benchmark = "tf32", False


@dataclass
class Contestant:
    """Something that is done again and again.

    Args:
        step: what is timed.
        num_tiles: tiles a step works on.
        tf32: whether convolutions of float32 may be rounded to TF32 on the way, as PyTorch does unless told.
        tried: whether cuDNN tries its algorithms and keeps the fastest.
    """

    step: Callable[[], object]
    num_tiles: int
    tf32: bool = True
    tried: bool = False
    num_steps: int = 1

    def seconds(self, device: torch.device, num_steps: int) -> float:
        """Of so many steps."""
        with convolutions(self.tf32, self.tried):
            begin = now(device)
            for _ in range(num_steps):
                self.step()
            return now(device) - begin


class Race:
    """Contestants that take turns, a stretch of steps each, round after round."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.running: dict[str, Contestant] = {}
        self.rates: RoundsT = {}
        self.about: dict[str, dict[str, Any]] = {}

    def enter(self, name: str, make: Callable[[], Contestant], seconds: float = 1e6, **about: Any) -> Contestant | None:
        """Makes a contestant, warms it up and times a first stretch; what fails is noted, and not in the race."""
        return self.part.attempt(name, lambda: self._enter(name, make, about), seconds)

    def _enter(self, name: str, make: Callable[[], Contestant], about: dict[str, Any]) -> Contestant:
        device, began = self.part.device, time.perf_counter()
        before = free_and_reset(device)
        contestant = make()
        ready = contestant.seconds(device, 1)
        contestant.seconds(device, 0 if self.part.quick else WARM_STEPS)
        warm_seconds = time.perf_counter() - began
        probe = min(ready, contestant.seconds(device, 1))
        contestant.num_steps = max(1, round(self.part.stretch_seconds / probe))
        self.about[name] = about | {"batch_size": contestant.num_tiles, "first_seconds": warm_seconds}
        self.running[name] = contestant
        self.stretch(name)
        if device.type == "cuda":
            self.about[name]["peak_gib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        self.tell()
        return contestant

    def stretch(self, name: str) -> float:
        contestant = self.running[name]
        seconds = contestant.seconds(self.part.device, contestant.num_steps)
        self.rates.setdefault(name, []).append(contestant.num_steps * contestant.num_tiles / seconds)
        return self.rates[name][-1]

    def rounds(self, num_rounds: int) -> None:
        """So many more stretches of each that is in the race; one that fails leaves it."""
        for _ in range(1 if self.part.quick else num_rounds):
            for name in list(self.running) if self.part.left > ROUND_SECONDS else ():
                if self.part.attempt(f"{name}, again", lambda: self.stretch(name)) is None:
                    self.leave(name)
        self.tell()

    def leave(self, *names: str) -> None:
        """Frees what they hold; their rates stay."""
        for name in names:
            self.running.pop(name, None)
        free_and_reset(self.part.device)

    def tell(self) -> None:
        """Notes the medians, and prints the last ones."""
        rows = {name: self.about[name] | {"tiles_per_second": median(found), "rounds": found}
                for name, found in self.rates.items()}
        self.part.note(rates=rows)

    def ours(self) -> list[str]:
        """Those in the race that are not the source's, the fastest first."""
        names = [name for name in self.running if not self.about[name].get("source")]
        return sorted(names, key=lambda name: -median(self.rates[name]))


def free_and_reset(device: torch.device) -> int:
    """Gives freed memory of the device back, begins to look for the peak anew; the bytes in use."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def forget_accelerator() -> None:
    """Accelerate keeps one precision for a process; the next run here may have another."""
    AcceleratorState._reset_state(reset_partial_state=True)


def product_settings(part: Part) -> dict[str, Any]:
    """The fastest way to compile that the step's part has found for the product, for the parts after it."""
    rates = part.of_part("step").get("rates", {})
    modes = {name: row for name, row in rates.items() if "compile" in row}
    best = max(modes, key=lambda name: modes[name]["tiles_per_second"], default="")
    return {"compile": modes[best]["compile"] if best else False}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
