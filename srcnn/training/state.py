"""The counters of a training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class TrainState:
    """The counters of a training; what a checkpoint keeps of them is in resume.py.

    Attributes:
        step, samples: optimizer steps taken, tiles seen; skipped steps and a pending one count.
        logged_samples, validated_samples, saved_samples: where that was done last; saved -1: never.
        saved_at: when, by time.monotonic, seconds.
        best_psnr, best_step: of the best validation, dB, and where it was.
        values: the last validation.
        tracker_id: names the run at the trackers.
    """

    step: int = 0
    samples: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    logged_samples: int = 0
    validated_samples: int = 0
    saved_samples: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    best_psnr: float = float("-inf")
    best_step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    tracker_id: str = ""
