"""Warnings from outside - SIGTERM, Slurm's SIGUSR1, Ctrl-C, the end of the launcher - become a stop after a checkpoint.

A thread of its own hears them, so that a second one ends the process even while it waits for other ranks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

STOPPED = 75  # exit status of a run that was told to stop: EX_TEMPFAIL of sysexits.h, "try again later"
INTERRUPTED = 130  # after Ctrl-C, as shells have it
LAUNCHER_ENDED = signal.SIGUSR2  # chosen here: what the kernel sends when the launcher is gone
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, LAUNCHER_ENDED)
ONE_WARNING_SECONDS = 1.0  # a scheduler's signal comes twice, from itself and through the launcher


class Stopped(RuntimeError):
    """A rank was told to stop; every rank raises this at the same step. `status` is the exit status."""

    @property
    def status(self) -> int:
        return INTERRUPTED if str(self) == signal.SIGINT.name else STOPPED


@dataclass
class _Heard:
    warning: str = ""
    at: float = 0.0
    nothing_to_lose: bool = True


_heard = _Heard()


def listen() -> None:
    """From now on a first warning is kept for `warned`, or ends the process with STOPPED while there is nothing to
    lose; a second one ends it at once. Signals that are ignored stay ignored. Only for the main thread, and once.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    for number in WARNINGS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_hear, args=(ours, theirs), name="signals", daemon=True).start()
    if sys.platform == "linux" and any(name.startswith(("ACCELERATE_", "TORCHELASTIC_")) for name in os.environ):
        # A launcher of one process passes no signal on, and none passes on that it was killed.
        ctypes.CDLL(None).prctl(1, int(LAUNCHER_ENDED))  # PR_SET_PDEATHSIG of <linux/prctl.h>
        if _is_orphan():  # it was killed before
            os.kill(os.getpid(), LAUNCHER_ENDED)


def _is_orphan() -> bool:
    """Whether the parent is what the kernel gives to orphans, and no launcher that happens to run as process 1."""
    parent = Path("/proc", str(os.getppid()))
    try:
        adopts = parent.name == "1" or (parent / "comm").read_text().strip() == "systemd"
        return adopts and sys.argv[0].encode() not in (parent / "cmdline").read_bytes()
    except OSError:
        return True  # it has just ended


def warned() -> Stopped | None:
    """The warning that came, if one did."""
    return Stopped(_heard.warning) if _heard.warning else None


def heed_from_now() -> None:
    """There is something to lose: a warning no longer ends the process at once."""
    _heard.nothing_to_lose = False


def _hear(_ours: socket.socket, theirs: socket.socket) -> None:
    while numbers := theirs.recv(64):
        for number in numbers:
            if number in WARNINGS:
                _heed(signal.Signals(number))


def _heed(number: signal.Signals) -> None:
    now = time.monotonic()
    if not _heard.warning:
        name = "the launcher ended" if number == LAUNCHER_ENDED else number.name
        _heard.at, _heard.warning = now, name
        if _heard.nothing_to_lose:
            _say(f"{name}: stopped before the first step")
            os._exit(Stopped(name).status)
        _say(f"{name}: stopping after a checkpoint; a second signal stops at once")
    elif number != LAUNCHER_ENDED and now - _heard.at > ONE_WARNING_SECONDS:
        _say(f"{number.name}: stopped at once")
        os._exit(128 + number)


def _say(line: str) -> None:
    try:
        os.write(2, f"srcnn: {line}\n".encode())
    except OSError:
        pass  # whoever read it is gone, which may be why the signal came
