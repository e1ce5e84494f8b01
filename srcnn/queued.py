"""A step that a device was given, until the host knows whether the device could take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Queued:
    """All that it takes to count the step, to report it or to take it back.

    Attributes:
        step, samples: the run's after it.
        batch_size: tiles over all ranks.
        tiles: this rank's, the numbers of the pairs in their split.
        sums: of this rank's tiles, as a `Meter` takes them.
        gradient_norm: waits for it; not finite where the step was left out.
        trouble: why this rank wants the run to stop.
        scaler_before: what the step changed of fp16's scaler.
    """

    step: int
    samples: int
    batch_size: int
    tiles: torch.Tensor
    sums: torch.Tensor
    gradient_norm: Callable[[], float]
    learning_rate: float
    trouble: Exception | None
    scaler_before: list[torch.Tensor]


def on_its_way(number: torch.Tensor) -> Callable[[], float]:
    """Begins to bring a number to the host; what this returns waits for it and gives it."""
    if number.device.type != "cuda":
        return lambda: float(number)
    copy = number.to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # leaves the core to readers
    arrived.record()

    def wait() -> float:
        arrived.synchronize()
        return float(copy)

    return wait
