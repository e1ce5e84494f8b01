"""A server on this machine that holds the shards, for as long as they are measured."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Failed, last_error

START_SECONDS = 30
NGINX = """
{user}
daemon off; pid {scratch}/pid; error_log stderr; worker_processes auto;
events {{ }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {scratch}; proxy_temp_path {scratch}; fastcgi_temp_path {scratch};
    uwsgi_temp_path {scratch}; scgi_temp_path {scratch};
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextmanager
def http(root: Path) -> Iterator[str]:
    """nginx over the folder `root`; its address. Raises Failed where there is no nginx."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not nginx:
        raise Failed("nginx absent")
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""  # else its workers might not read the files
        config = Path(scratch, "nginx.conf")
        config.write_text(NGINX.format(user=user, scratch=scratch, port=port, root=root))
        with running([nginx, "-c", str(config)], port):
            yield f"http://127.0.0.1:{port}"


def s3_environment(address: str) -> dict[str, str]:
    """The variables with which s3://NAME/... is read from `address`/NAME/...

    nginx answers S3's requests for objects and ranges as an S3 server would, but checks no signatures. A server that
    does everything, moto's, was tried: it is so slow that the server alone was measured.
    """
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server, from when it listens on `port` to the end of the context."""
    with tempfile.TemporaryFile("w+") as log:  # no pipe: nobody would empty it
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise Failed(f"{Path(command[0]).name} did not start: {last_error(log.read())}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
