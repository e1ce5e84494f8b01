"""Stop signals - SIGTERM, Slurm's SIGUSR1, Ctrl-C, the end of the launcher - become a stop after a checkpoint.

They are handled by a thread of its own, so that a second one ends the process even while it waits for other ranks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from srcnn.runtime.streams import open_standard_streams, print_or_give_up

EXIT_REQUEUE = 75  # exit status after a stop request: EX_TEMPFAIL of sysexits.h, "try again later"
EXIT_INTERRUPTED = 130  # after Ctrl-C, as shells have it
# Chosen here: what the kernel sends when the launcher is gone. Windows has it not, nor two of the others.
LAUNCHER_ENDED: signal.Signals = getattr(signal, "SIGUSR2", signal.SIGTERM)
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGUSR2") if hasattr(signal, name))
SAME_SIGNAL_SECONDS = 5.0  # a scheduler's signal comes twice, from itself and through the launcher
SAME_CTRL_C_SECONDS = 1.0
STOP_SECONDS = 600.0  # until a stop that was asked for is given up
LAUNCHERS = ("accelerate", "accelerate.commands.launch", "accelerate.commands.accelerate_cli", "accelerate-launch",
             "torchrun", "torch.distributed.run", "torch.distributed.launch", "srcnn")
OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # of Python


class StopRequested(RuntimeError):
    """A rank was asked to stop; every rank raises this at the same step. `status` is the exit status."""

    @property
    def status(self) -> int:
        return EXIT_INTERRUPTED if str(self) == signal.SIGINT.name else EXIT_REQUEUE


@dataclass
class _StopState:
    reason: str = ""
    at: float = 0.0
    exit_immediately: bool = True
    seconds: float = STOP_SECONDS


_stop = _StopState()


def install_signal_handlers() -> None:
    """From now on a first stop signal is kept for `stop_requested`, or ends the process with EXIT_REQUEUE until
    `enable_graceful_stop`; a second one ends it at once. Ignored signals stay ignored. Opens closed standard streams.
    """
    open_standard_streams()
    handle_in_thread([number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN], _handle_signal)
    follow_launcher()


def handle_in_thread(numbers: Sequence[signal.Signals], handle: Callable[[signal.Signals], None]) -> None:
    """Has signals handled by a thread: Python's own handlers wait until a call into C returns, which may take minutes.

    Only for the main thread, and once.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)

    def loop(_ours: socket.socket) -> None:  # which has to stay open
        while received := theirs.recv(64):
            for number in received:
                if number in numbers:
                    handle(signal.Signals(number))

    threading.Thread(target=loop, args=(ours,), name="signals", daemon=True).start()


def follow_launcher() -> None:
    """The end of the launcher, where there is one, is a stop signal from now on: one of a single process passes no
    signal on, and none can pass on that it was killed. Linux only.
    """
    parent = os.getppid()
    if sys.platform != "linux" or parent == 0:  # 0: in another container
        return
    command = _read(parent, "cmdline")
    if is_launcher(command):
        ctypes.CDLL(None).prctl(1, int(LAUNCHER_ENDED))  # PR_SET_PDEATHSIG of <linux/prctl.h>
        is_orphan = os.getppid() != parent
    else:
        adopts = (parent == 1 or _read(parent, "comm") == b"systemd\n") and b"python" not in command
        is_orphan = "TORCHELASTIC_RUN_ID" in os.environ and (adopts or not command)  # without: it is just ending
    if is_orphan:  # it had ended before
        os.kill(os.getpid(), LAUNCHER_ENDED)


def is_launcher(command: bytes) -> bool:
    """Whether a command line, as /proc has it, is Python with a launcher: not a shell that names one somewhere."""
    interpreter, *arguments = (os.path.basename(word) for word in command.decode(errors="replace").split("\0"))
    if not interpreter.startswith("python"):
        return False
    words = iter(arguments)
    for word in words:
        if word in OPTIONS_WITH_VALUE:
            next(words, None)
        elif word.startswith("-c"):  # a program follows
            return False
        elif (module := word.removeprefix("-m")) and not module.startswith("-"):
            return module in LAUNCHERS
    return False


def launcher_id() -> str:
    """Names the launcher of this process, among those of all machines and times; "" without one. Linux only."""
    parent = os.getppid()
    if not is_launcher(_read(parent, "cmdline")):
        return ""
    start = _read(parent, "stat").rpartition(b")")[2].split()[19:20]  # field 22 of proc(5): ticks since the boot
    return f"{socket.gethostname()}:{parent}:{b''.join(start).decode()}"


def _read(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def stop_requested() -> StopRequested | None:
    """The stop request, if a signal came."""
    return StopRequested(_stop.reason) if _stop.reason else None


def enable_graceful_stop(seconds: float = STOP_SECONDS) -> None:
    """From now on there is something to save: a stop signal no longer ends the process at once, but after `seconds` if
    it has not stopped by then, as where a disk does not answer.
    """
    _stop.exit_immediately, _stop.seconds = False, seconds


def exit_now(line: str, status: int) -> None:
    """Ends the process now: threads that still wait for a disk, a server or another rank do not hold it."""
    print_or_give_up(line)
    os._exit(status)


def _handle_signal(number: signal.Signals) -> None:
    now = time.monotonic()
    if not _stop.reason:
        reason = "the launcher ended" if number == LAUNCHER_ENDED else number.name
        _stop.at, _stop.reason = now, reason
        if _stop.exit_immediately:
            exit_now(f"srcnn: {reason}: stopped before the first step", StopRequested(reason).status)
        late = f"srcnn: {reason}: not stopped after {_stop.seconds:.0f} s, given up; the last whole checkpoint counts"
        timer = threading.Timer(_stop.seconds, exit_now, (late, StopRequested(reason).status))
        timer.daemon = True
        timer.start()
        print_or_give_up(f"srcnn: {reason}: stopping after a checkpoint; a second signal stops at once", 0.2)
    elif number != LAUNCHER_ENDED and now - _stop.at > _same_seconds(number):
        exit_now(f"srcnn: {number.name}: stopped at once", 128 + number)


def _same_seconds(number: signal.Signals) -> float:
    return SAME_CTRL_C_SECONDS if number == signal.SIGINT else SAME_SIGNAL_SECONDS
