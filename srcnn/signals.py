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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

EXIT_REQUEUE = 75  # exit status of a run that was told to stop: EX_TEMPFAIL of sysexits.h, "try again later"
EXIT_INTERRUPTED = 130  # after Ctrl-C, as shells have it
LAUNCHER_ENDED = signal.SIGUSR2  # chosen here: what the kernel sends when the launcher is gone
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, LAUNCHER_ENDED)
SAME_SIGNAL_SECONDS = 5.0  # a scheduler's signal comes twice, from itself and through the launcher
SAME_CTRL_C_SECONDS = 1.0


class StopRequested(RuntimeError):
    """A rank was told to stop; every rank raises this at the same step. `status` is the exit status."""

    @property
    def status(self) -> int:
        return EXIT_INTERRUPTED if str(self) == signal.SIGINT.name else EXIT_REQUEUE


@dataclass
class _Heard:
    warning: str = ""
    at: float = 0.0
    nothing_to_lose: bool = True


_heard = _Heard()


def install_signal_handlers() -> None:
    """From now on a first warning is kept for `warned`, or ends the process with STOPPED while there is nothing to
    lose; a second one ends it at once. Signals that are ignored stay ignored. Only for the main thread, and once.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_hear, args=(ours, theirs), name="signals", daemon=True).start()
    follow_launcher()


def follow_launcher() -> None:
    """The end of the launcher, where there is one, is a warning from now on: one of a single process passes no signal
    on, and none can pass on that it was killed. Linux only.
    """
    parent = os.getppid()
    if sys.platform != "linux" or parent == 0:  # 0: in another container
        return
    command = _read(parent, "cmdline")
    if sys.argv[0].encode() in command and (b"accelerate" in command or b"torch" in command):
        ctypes.CDLL(None).prctl(1, int(LAUNCHER_ENDED))  # PR_SET_PDEATHSIG of <linux/prctl.h>
        is_orphan = os.getppid() != parent
    else:
        adopts = (parent == 1 or _read(parent, "comm") == b"systemd\n") and b"python" not in command
        is_orphan = "TORCHELASTIC_RUN_ID" in os.environ and (adopts or not command)  # without: it is just ending
    if is_orphan:  # it had ended before
        os.kill(os.getpid(), LAUNCHER_ENDED)


def _read(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def stop_requested() -> StopRequested | None:
    """The warning that came, if one did."""
    return StopRequested(_heard.warning) if _heard.warning else None


def enable_graceful_stop() -> None:
    """There is something to lose: a warning no longer ends the process at once."""
    _heard.nothing_to_lose = False


def graceful_stop_enabled() -> bool:
    """Whether there is something to lose."""
    return not _heard.nothing_to_lose


def exit_now(line: str, status: int) -> None:
    """Ends the process now: threads that still wait for a server or another rank do not hold it."""
    with suppress(OSError, ValueError):  # whoever read it may be gone
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(status)


def _hear(_ours: socket.socket, theirs: socket.socket) -> None:
    while numbers := theirs.recv(64):
        for number in numbers:
            if number in STOP_SIGNALS:
                _heed(signal.Signals(number))


def _heed(number: signal.Signals) -> None:
    now = time.monotonic()
    if not _heard.warning:
        name = "the launcher ended" if number == LAUNCHER_ENDED else number.name
        _heard.at, _heard.warning = now, name
        if _heard.nothing_to_lose:
            _say(f"{name}: stopped before the first step")
            os._exit(StopRequested(name).status)
        _say(f"{name}: stopping after a checkpoint; a second signal stops at once")
    elif number != LAUNCHER_ENDED and now - _heard.at > _seconds_of(number):
        _say(f"{number.name}: stopped at once")
        os._exit(128 + number)


def _seconds_of(number: signal.Signals) -> float:
    return SAME_CTRL_C_SECONDS if number == signal.SIGINT else SAME_SIGNAL_SECONDS


def _say(line: str) -> None:
    try:
        os.write(2, f"srcnn: {line}\n".encode())
    except OSError:
        pass  # whoever read it is gone, which may be why the signal came
