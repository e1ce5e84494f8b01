"""Standard streams that are closed, or full pipes: neither spoils a file, nor keeps a process from ending."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

WRITE_SECONDS = 2.0  # for a line on its way into a pipe that nobody empties


def open_standard_streams() -> None:
    """Opens closed standard streams as /dev/null, before a file takes their number and what is printed. To be called
    first in a program; children inherit them.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:  # closed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))


def print_or_give_up(line: str, seconds: float = WRITE_SECONDS) -> None:
    """Prints a line to standard error and flushes both streams, but returns after `seconds` if that is not done: a
    pipe that is full holds whoever writes into it.
    """

    def write() -> None:
        with suppress(OSError, ValueError):  # whoever read it may be gone
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
            sys.stdout.flush()

    thread = threading.Thread(target=write, name="last words", daemon=True)
    with suppress(RuntimeError):  # no thread to be had
        thread.start()
        thread.join(seconds)
