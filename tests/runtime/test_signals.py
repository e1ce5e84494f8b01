"""Signals and standard streams of real processes: closed streams, a pipe that nobody empties, a stop that hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srcnn.runtime.signals import EXIT_REQUEUE

ROOT = Path(__file__).parents[2]
LISTENING = """
import os, sys, time
from srcnn.runtime import signals
signals.install_signal_handlers()
signals.enable_graceful_stop({seconds})
signals.SAME_SIGNAL_SECONDS = 0.0
{then}
open({ready!r}, "w").close()
while True:
    time.sleep(1)
"""
FILLED = """
import threading
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
threading.Thread(target=sys.stderr.write, args=("x\\n",), daemon=True).start()  # waits, and has the stream's lock
"""


def begin(folder, then="", seconds=600.0, closed=(), **options):
    """A process that listens and does nothing else; `closed`: standard streams that it has not."""
    ready = folder / "ready"
    program = LISTENING.format(seconds=seconds, then=then, ready=str(ready))
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, preexec_fn=lambda: [*map(os.close, closed)],
                               **options)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_full_pipe_does_not_make_signals_powerless(tmp_path):
    """As of a `less` that stands still, or of a container runtime whose disk is full."""
    process = begin(tmp_path, FILLED, stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None, "the first one lets it end by itself"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 128 + signal.SIGUSR1


def test_a_stop_that_hangs_is_given_up(tmp_path):
    process = begin(tmp_path, seconds=0.3, stderr=subprocess.PIPE, text=True)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == EXIT_REQUEUE and "given up" in said


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_what_is_said_goes_into_no_file_that_took_the_number_of_a_closed_stream(tmp_path, closed):
    """As under a daemon or cron. `print` and C libraries write to 2, whatever that is."""
    victim = tmp_path / "index.npy"
    victim.write_bytes(b"precious")
    opened = f"file = open({str(victim)!r}, 'r+b'); os.write(2, b'from C'); print('from Python', file=sys.stderr)"
    process = begin(tmp_path, opened, closed=closed)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 128 + signal.SIGUSR1
    assert victim.read_bytes() == b"precious"


def test_a_process_without_standard_streams_ends_with_its_status():
    program = "from srcnn.runtime import signals; signals.install_signal_handlers(); signals.exit_now('bye', 7)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60,
                          preexec_fn=lambda: [os.close(fd) for fd in range(3)])
    assert done.returncode == 7


def test_children_inherit_the_streams_that_were_opened(tmp_path):
    """Otherwise a file that a child opens would be its standard error."""
    program = ("import subprocess, sys; from srcnn.runtime.streams import open_standard_streams as f; f();"
               "sys.exit(subprocess.run([sys.executable, '-c', 'import os; os.fstat(2)']).returncode)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, preexec_fn=lambda: os.close(2), timeout=60)
    assert done.returncode == 0
