"""Logs what has not ended for a while, as where a disk does not answer: nothing else in the process could."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

FIRST_WARNING_SECONDS = 30.0  # the next ones follow after twice as long each
POLL_SECONDS = 1.0
logger = logging.getLogger(__name__)


@dataclass
class _Work:
    what: str
    start: float = field(default_factory=time.monotonic)
    num_warnings: int = 0


_running: dict[int, _Work] = {}
_numbers = itertools.count()
_start_lock = threading.Lock()


@contextmanager
def warn_if_slow(what: str) -> Iterator[None]:
    """Within, logs a warning that `what` - the work and its folder - takes long, with the seconds; costs some 2 us."""
    number = next(_numbers)
    _running[number] = _Work(what)
    if not _watcher.is_alive():
        _start()
    try:
        yield
    finally:
        del _running[number]


def _start() -> None:
    global _watcher
    with _start_lock:
        if not _watcher.is_alive():  # also in a forked process, which has no threads but its own
            _watcher = threading.Thread(target=_watch, name="watchdog", daemon=True)
            _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        for work in list(_running.values()):
            seconds = time.monotonic() - work.start
            if seconds > FIRST_WARNING_SECONDS * 2**work.num_warnings:
                work.num_warnings += 1
                logger.warning("%s: not done after %.0f s; does its disk or server still answer?", work.what, seconds)


_watcher = threading.Thread(target=_watch)
