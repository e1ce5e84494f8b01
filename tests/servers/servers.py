"""Servers on the loopback for the tests of remote shards: one with faults at will, nginx, and S3 by moto."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import http.server
import os
import shutil
import socket
import socketserver
import struct
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

Fault = Callable[[str, int, int, int], "str | None"]
HOST = "127.0.0.1"
NOT_FORWARDED = {"connection", "content-length", "date", "host", "server", "transfer-encoding"}
S3_ENV = {
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "the-key-of-nobody",
    "AWS_SECRET_ACCESS_KEY": "the-secret-of-nobody",
}


class Request(NamedTuple):
    """What a server was asked for and said: path without the leading slash, Range header ("" if none), status."""

    path: str
    range: str
    status: int


class Answer(NamedTuple):
    """A response before any fault: `body` is what belongs to `status`, `whole` reads the whole file."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: Callable[[], bytes]


class FaultyServer:
    """An HTTP/1.1 server of a folder, or a proxy to `upstream`, in this process; does wrong when `fault` says so.

    `fault(path, start, stop, number)` is called for every GET; stop is 0 where there is no range. `number` counts from
    1 the requests for this path that end at `stop` (a client may ask again for the second half only), so
    `number == 1` fails once and then heals. It returns None, a status such as "503" or "404", or:

        close    declared length, half the body, connection closed
        stall    declared length, half the body, then nothing for `stall_seconds`
        slow     nothing for `stall_seconds`
        short    a well-formed answer to a shorter range than the one asked for (whole files are sent whole)
        reset    connection reset before any answer
        norange  200 and the whole file, whatever the range
        flip     the byte in the middle of the body inverted

    Attributes:
        requests: every GET answered, in order; `stall_seconds`: longer than the client's patience.
    """

    def __init__(self, folder: Path | None = None, upstream: str = "", stall_seconds: float = 30.0) -> None:
        self.folder, self.upstream, self.stall_seconds = folder, upstream, stall_seconds
        self.fault: Fault | None = None
        self.requests: list[Request] = []
        self.leaving = threading.Event()
        self._counts: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> FaultyServer:
        self.server = _Listener(self)
        self.url = f"http://{HOST}:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), name="faulty")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.server.shutdown()
        self._thread.join()
        self.server.cut_connections()
        self.server.server_close()

    def clear(self) -> None:
        """Forgets faults, requests and counts."""
        self.fault = None
        with self._lock:
            self.requests.clear()
            self._counts.clear()

    def asked(self, end: str = "") -> list[Request]:
        """The requests for paths with this end."""
        with self._lock:
            return [request for request in self.requests if request.path.endswith(end)]

    def fault_of(self, path: str, start: int, stop: int) -> str | None:
        with self._lock:
            self._counts[path, stop] += 1
            number = self._counts[path, stop]
        return self.fault(path, start, stop, number) if self.fault else None

    def record(self, path: str, asked: str, status: int) -> None:
        with self._lock:
            self.requests.append(Request(path, asked, status))


class _Listener(http.server.ThreadingHTTPServer):
    """Knows its open connections, to end those that a client keeps alive."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: FaultyServer) -> None:
        self.owner = owner
        self.connections: set[socket.socket] = set()
        super().__init__((HOST, 0), _Handler)

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no news here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        path = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        asked = self.headers.get("Range", "")
        start, stop = parse_range(asked)
        fault = owner.fault_of(path, start, stop)
        if fault == "short" and asked:
            self.headers.replace_header("Range", f"bytes={start}-{(start + stop) // 2 - 1}")
        answer = self.forward() if owner.upstream else self.read_folder(path)
        answer = spoil(answer, fault, self.headers.get("Authorization", "nobody"))
        owner.record(path, asked, 0 if fault == "reset" else answer.status)
        self.send(answer, fault)

    def read_folder(self, path: str) -> Answer:
        file = self.server.owner.folder / path
        if not file.is_file():
            return Answer(404, {}, b"no such file", bytes)
        modified, size, status = file.stat().st_mtime, file.stat().st_size, 200
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{modified}-{size}"'}
        headers["Last-Modified"] = email.utils.formatdate(modified, usegmt=True)
        start, stop = 0, size
        if asked := self.headers.get("Range", ""):
            status, (start, stop) = 206, parse_range(asked, size)
            if not start < stop:
                return Answer(416, {"Content-Range": f"bytes */{size}"}, b"", bytes)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(status, headers, file.read_bytes()[start:stop], file.read_bytes)

    def forward(self, without: str = "") -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() != without}
        connection = http.client.HTTPConnection(self.server.owner.upstream.removeprefix("http://"))
        with contextlib.closing(connection):
            connection.request("GET", self.path, headers=headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in NOT_FORWARDED}
            return Answer(response.status, kept, response.read(), lambda: self.forward("range").body)

    def send(self, answer: Answer, fault: str | None) -> None:
        if fault == "slow":
            self.server.owner.leaving.wait(self.server.owner.stall_seconds)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        half = len(answer.body) // 2 if fault in ("close", "stall") else len(answer.body)
        self.wfile.write(answer.body[:half])
        if fault == "stall":
            self.server.owner.leaving.wait(self.server.owner.stall_seconds)
        self.close_connection |= half < len(answer.body)


def parse_range(asked: str, size: int = 0) -> tuple[int, int]:
    """For example bytes=2-4 -> (2, 5); an open end is `size`; no range is (0, size)."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    stop = int(last) + 1 if last else size
    return int(first or 0), min(stop, size) if size else stop


def spoil(answer: Answer, fault: str | None, client: str) -> Answer:
    """The answer as the fault makes it, as far as that is a matter of status, headers and body."""
    if fault and fault.isdigit():
        said = f"as the test said, to {client}"  # S3 too repeats the key in its answer to a bad signature
        return Answer(int(fault), {}, said.encode(), bytes)
    if fault == "norange":
        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-range"}
        return answer._replace(status=200, headers=headers, body=answer.whole())
    if fault == "flip":
        body = bytearray(answer.body)
        body[len(body) // 2] ^= 0xFF
        return answer._replace(body=bytes(body))
    return answer


NGINX_CONFIG = """
daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format plain '$status $uri $http_range';
    access_log {work}/access.log plain;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{ listen {host}:{port}; root {folder}; }}
}}
"""


class Nginx(NamedTuple):
    """A running nginx: its address and its access log, lines of "STATUS /PATH bytes=START-LAST"."""

    url: str
    log: Path

    def requests(self) -> list[Request]:
        lines = [line.split(" ") for line in self.log.read_text().splitlines()]
        return [Request(path.lstrip("/"), asked.strip("-"), int(status)) for status, path, asked in lines]


@contextlib.contextmanager
def nginx(folder: Path, work: Path) -> Iterator[Nginx]:
    """Debian's nginx serving `folder`, its config and logs in `work`; skips the test where there is none."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.skip("no nginx here; on Debian: apt-get install nginx-light")
    work.mkdir(parents=True)
    with socketserver.TCPServer((HOST, 0), None) as probe:
        port = probe.server_address[1]
    (work / "conf").write_text(NGINX_CONFIG.format(work=work, host=HOST, port=port, folder=folder))
    process = subprocess.Popen([program, "-p", work, "-e", work / "error.log", "-c", work / "conf"])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
                break
            assert process.poll() is None, (work / "error.log").read_text()
            time.sleep(0.02)
        yield Nginx(f"http://{HOST}:{port}", work / "access.log")
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def s3(folder: Path, bucket: str) -> Iterator[str]:
    """moto's S3 server with the files of `folder` in `bucket`, in this process; gives its endpoint.

    The environment tells S3 clients of it, with the keys of nobody.
    """
    moto_server = pytest.importorskip("moto.server")
    obstore = pytest.importorskip("obstore")
    server = moto_server.ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (S3_ENV | {"AWS_ENDPOINT_URL": endpoint}).items():
                patch.setenv(name, value)
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
            store = obstore.store.from_url(f"s3://{bucket}")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                obstore.put(store, path.relative_to(folder).as_posix(), path)
            yield endpoint
    finally:
        server.stop()
