"""A headless Chromium on the page of `srcnn demo`, where Playwright and a Chromium are installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY
from jobs import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
MAX_UPLOAD_BYTES = 4 << 20
WAIT_SECONDS = 60
ADDRESS = r"http://[\w.:]+"
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0")
# Tells of every name looked up and every connection that is not of this machine, and refuses them.
SERVER = f"""
import signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
def guarded(real, place):
    def call(*arguments, **others):
        target = arguments[place]
        host = target[0] if isinstance(target, tuple) else target
        if isinstance(host, (str, bytes)) and host not in {LOCAL} and not str(host).startswith("/"):
            print("reaches out to", host, flush=True)
            raise OSError("this test has no network")
        return real(*arguments, **others)
    return call
socket.socket.connect = guarded(socket.socket.connect, 1)
socket.getaddrinfo = guarded(socket.getaddrinfo, 0)
from srcnn.commands import demo
demo.MAX_UPLOAD_BYTES = {MAX_UPLOAD_BYTES}
demo.serve("127.0.0.1", int(sys.argv[1]))
"""


@contextmanager
def demo_server(folder: Path) -> Iterator[str]:
    """The page's address, while its server runs with `folder` for temporary files; then nothing of it may be left."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, str(free_port())]
    with log.open("w+") as output, subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=output, text=True
    ) as process:
        assert process.stdout
        said = [process.stdout.readline()]
        while said[-1] and not re.search(ADDRESS, said[-1]):
            said.append(process.stdout.readline())
        try:
            assert said[-1], f"no page: {said} {log.read_text()}"
            yield re.search(ADDRESS, said[-1])[0]
            assert process.poll() is None, f"the server is gone: {log.read_text()}"
        finally:
            process.send_signal(signal.SIGTERM)
            said.append(process.stdout.read())
            process.wait(WAIT_SECONDS)
    assert "reaches out" not in "".join(said)
    assert "Traceback" not in log.read_text(), log.read_text()
    assert not list(folder.iterdir())


@contextmanager
def chromium() -> Iterator[object]:
    """A browser of Playwright's."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
