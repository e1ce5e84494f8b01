"""`srcnn demo`: a web page that restores uploaded photos and compares them before and after. Needs no network."""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import webbrowser
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from srcnn.commands.demo_photo import MAX_MEGAPIXELS, DemoPhoto, networks, shown
from srcnn.photos.file_kinds import NAMES
from srcnn.photos.reading import PhotoRefused
from srcnn.restoration.restore_files import COPIED
from srcnn.runtime.errors import UserError, is_out_of_memory
from srcnn.runtime.untrusted import parse_json

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
         ".jpg": "image/jpeg"}
MAX_UPLOAD_BYTES = 100 << 20
MAX_STORED_BYTES = 8 << 30  # of all visitors' files together
MAX_MESSAGE_BYTES = 64 << 10  # of what the page sends beside photos
MAX_NAME_LENGTH = 120
MAX_DECODERS = 2  # photos decoded at a time
EXPIRE_SECONDS = 3600  # after which the files of a visitor who went away are deleted
CONNECTION_SECONDS = 60  # that a client may be silent
CHUNK_BYTES = 1 << 20
HEADERS = {
    # The page loads nothing from elsewhere, sends nothing elsewhere, and is shown in no other page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}
GONE = ConnectionError, TimeoutError  # the client went away
IS_GONE = "This photo is no longer here; add it again."


class Refused(UserError):
    """A request that is answered with another status than 400."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves the page; photos lie in folders below `folder` until their visitor leaves or is silent for an hour."""

    daemon_threads = True

    def __init__(self, host: str, port: int, folder: Path) -> None:
        """Raises OSError if the port is in use."""
        self.folder = folder
        self.photos: dict[str, DemoPhoto] = {}
        self.decoding = threading.BoundedSemaphore(MAX_DECODERS)
        self.restoring, self.writing = threading.Lock(), threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), PageHandler)
        self.is_local = is_loopback(self.server_name)

    def server_bind(self) -> None:
        """Without the look-up of the machine's name in the network that HTTPServer makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def photo(self, photo_id: str) -> DemoPhoto:
        try:
            photo = self.photos[photo_id]
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, IS_GONE) from None
        photo.last_used = time.monotonic()
        return photo

    def add(self, path: Path, name: str) -> str:
        """Takes over an uploaded file; returns a name for its photo that nobody guesses. Raises PhotoRefused."""
        with self.decoding:
            photo = DemoPhoto(path, name)
        photo_id = secrets.token_urlsafe(16)
        self.photos[photo_id] = photo
        return photo_id

    def forget(self, photo_id: str) -> None:
        if photo := self.photos.pop(photo_id, None):
            shutil.rmtree(photo.path.parent, ignore_errors=True)
            shown.cache_clear()

    def check_room(self) -> None:
        """Raises Refused where the files of all visitors together are too large."""
        if sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) > MAX_STORED_BYTES:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, "Too many photos are open; download and remove some.")

    def service_actions(self) -> None:
        """Called twice a second."""
        for photo_id, photo in list(self.photos.items()):
            if time.monotonic() - photo.last_used > EXPIRE_SECONDS:
                self.forget(photo_id)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called in an except clause."""
        if not isinstance(sys.exc_info()[1], GONE):
            super().handle_error(request, client_address)

    def message(self, error: BaseException) -> str:
        """An error in words for the visitor; what nobody expects is printed with its traceback."""
        if isinstance(error, UserError):
            text = str(error)
            for photo_id in list(self.photos):
                if photo := self.photos.get(photo_id):
                    text = text.replace(str(photo.path), photo.name)
            return re.sub(re.escape(str(self.folder)) + r"\S*?: ", "", text)
        if isinstance(error, FileNotFoundError):  # of a photo that its visitor removed meanwhile
            return IS_GONE
        if is_out_of_memory(error):
            return "This photo needs more memory than this computer has free."
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "The disk of this computer is full."
        traceback.print_exception(error)
        return "Something went wrong; the terminal of srcnn demo says what."


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request. Messages are JSON; an error is {"error": text}."""

    server: PageServer
    timeout = CONNECTION_SECONDS

    def do_GET(self) -> None:
        self.answer({r"/([a-z]*(?:\.(?:html|css|js|svg|jpg))?)": self.send_page, r"/api/settings": self.send_settings,
                     r"/api/photos/([\w-]+)/(before|after)": self.send_picture,
                     r"/api/photos/([\w-]+)/results/(\d+)/[^/]+": self.send_result})

    def do_POST(self) -> None:
        self.answer({r"/api/photos": self.upload, r"/api/photos/([\w-]+)/restore": self.restore,
                     r"/api/download": self.prepare_download, r"/api/forget": self.forget})

    def answer(self, routes: dict[str, Callable[..., None]]) -> None:
        try:
            self.check_sender()
            url = split(self.path)
            self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
            for pattern, method in routes.items():
                if match := re.fullmatch(pattern, url.path):
                    return method(*match.groups())
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        except GONE:
            self.close_connection = True
        except Exception as error:  # of any kind: the visitor is told, and the server goes on
            status = getattr(error, "status", HTTPStatus.BAD_REQUEST)
            known = isinstance(error, (UserError, FileNotFoundError)) or is_out_of_memory(error)
            with suppress(*GONE):
                self.send_json({"error": self.server.message(error)},
                               status if known else HTTPStatus.INTERNAL_SERVER_ERROR)

    def check_sender(self) -> None:
        """Refuses what other sites' pages send, and, on this machine only, names that others point to it."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        name = split(f"//{host}").hostname or ""
        is_foreign = origin is not None and split(origin).netloc != host
        if is_foreign or (self.server.is_local and name != "localhost" and not is_loopback(name)):
            raise Refused(HTTPStatus.FORBIDDEN, "This page takes no requests from other sites.")

    def start(
        self, content_type: str, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.start("application/json", status)
        self.wfile.write(json.dumps(content).encode())

    def send_file(self, path: Path, content_type: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        with path.open("rb") as file:
            self.start(content_type, headers={"Content-Length": str(path.stat().st_size), **headers})
            shutil.copyfileobj(file, self.wfile, CHUNK_BYTES)

    def send_page(self, name: str) -> None:
        path = PAGE / (name or "index.html")
        if not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        self.send_file(path, TYPES[path.suffix])

    def send_settings(self) -> None:
        self.send_json({"networks": networks(), "kinds": NAMES, "maxBytes": MAX_UPLOAD_BYTES,
                        "maxMegapixels": MAX_MEGAPIXELS, "isLocal": self.server.is_local})

    def send_picture(self, photo_id: str, which: str) -> None:
        """A PNG with the photo's ICC profile, for the browser to show its colours: the whole, or a part of it."""
        photo = self.server.photo(photo_id)
        with self.server.decoding:
            if "side" in self.query:
                picture = photo.whole(which, number_of(self.query["side"]))
            else:
                left, top, width, height = (number_of(self.query.get(name)) for name in ("x", "y", "width", "height"))
                picture = photo.part(which, (slice(top, top + height), slice(left, left + width)))
        content = io.BytesIO()
        picture.save(content, "PNG", compress_level=1, icc_profile=photo.profile)
        self.start("image/png")
        self.wfile.write(content.getbuffer())

    def length(self, most: int) -> int:
        """The length of the request's content in bytes."""
        length = number_of(self.headers.get("Content-Length"))
        if not 0 <= length <= most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most >> 20} MB; that is too large")
        return length

    def read_json(self) -> dict[str, Any]:
        try:
            content = parse_json(self.rfile.read(self.length(MAX_MESSAGE_BYTES)))
        except ValueError as error:
            raise UserError("expected JSON") from error
        if not isinstance(content, dict):
            raise UserError("expected a JSON object")
        return content

    def upload(self) -> None:
        """Takes a photo of the name in the query; answers with what it is."""
        missing, name = self.length(MAX_UPLOAD_BYTES), clean_name(self.query.get("name", ""))
        self.server.check_room()
        suffix = Path(name).suffix
        folder = Path(tempfile.mkdtemp(dir=self.server.folder))
        path = folder / f"photo{suffix if re.fullmatch(r'.[A-Za-z0-9]{1,5}', suffix) else ''}"
        try:
            with path.open("wb") as file:
                while missing and (chunk := self.rfile.read(min(missing, CHUNK_BYTES))):
                    file.write(chunk)
                    missing -= len(chunk)
            if missing:
                raise ConnectionResetError
            photo_id = self.server.add(path, name)
        except PhotoRefused as error:  # an answer like any other: browsers log other statuses as errors of the page
            shutil.rmtree(folder, ignore_errors=True)
            return self.send_json({"error": str(error).replace(str(path), name)})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.send_json({"id": photo_id, **self.server.photo(photo_id).about()})

    def restore(self, photo_id: str) -> None:
        """Restores a photo; answers with a JSON object a line: {"done": fraction}, ..., {"result": ...} or an error."""
        photo, asked = self.server.photo(photo_id), self.read_json()
        network, scale, quality = asked.get("network"), asked.get("scale"), asked.get("degrade")
        if type(network) is not str or type(scale) is not int or type(quality) not in (int, type(None)):
            raise UserError("expected a network, a scale and a quality")
        self.server.check_room()
        self.start("application/x-ndjson")

        def tell(**content: Any) -> None:
            self.wfile.write(json.dumps(content).encode() + b"\n")

        try:
            while not self.server.restoring.acquire(timeout=1):
                tell(waiting=True)  # also finds out that the visitor has left
            try:
                result = photo.restore(network, scale, quality, lambda fraction: tell(done=fraction))
            finally:
                self.server.restoring.release()
            tell(result=result)
        except GONE:
            raise
        except Exception as error:  # of any kind: the visitor is told, and the server goes on
            tell(error=self.server.message(error))

    def prepare_download(self) -> None:
        """Writes the result of one photo, or those of several into a ZIP; answers with its address."""
        asked = self.read_json()
        ids, strength, format_name = asked.get("ids"), asked.get("strength"), asked.get("format")
        if (not isinstance(ids, list) or not ids or not all(isinstance(photo_id, str) for photo_id in ids)
                or not isinstance(strength, (int, float)) or not isinstance(format_name, str)):
            raise UserError("expected photos, a strength and a format")
        photos = [self.server.photo(photo_id) for photo_id in dict.fromkeys(ids)]
        first = photos[0]
        with self.server.writing:
            first.num_results += 1
            number, target = first.num_results, first.path.with_name(f"result-{first.num_results}")
            for earlier in first.path.parent.glob("result-*"):
                earlier.unlink()
            if len(photos) == 1:
                name = first.result_name(format_name)
                notes = write_as(first, target, first.result_suffix(format_name), strength)
            else:
                name, notes = "restored photos.zip", write_zip(photos, target, format_name, strength)
            size = target.stat().st_size
        self.send_json({"url": f"/api/photos/{ids[0]}/results/{number}/{quote(name, safe='')}", "name": name,
                        "bytes": size, "notes": [note for note in notes if note != COPIED]})

    def send_result(self, photo_id: str, number: str) -> None:
        path = self.server.photo(photo_id).path.with_name(f"result-{number}")
        if not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, "This file is no longer here; download it again.")
        self.send_file(path, "application/octet-stream", {"Content-Disposition": "attachment"})

    def forget(self) -> None:
        """Deletes photos: the visitor removed them, or leaves."""
        ids = self.read_json().get("ids")
        for photo_id in ids if type(ids) is list else ():
            self.server.forget(str(photo_id))
        self.send_json({})

    def log_message(self, *arguments: Any) -> None:
        """Nothing of a visitor is printed."""


def split(url: str) -> SplitResult:
    """The parts of a URL, all empty where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def number_of(text: str | None) -> int:
    """Raises UserError unless it is a whole number from 0 on."""
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError("expected a whole number")
    return int(text)


def clean_name(name: str) -> str:
    """The last part of a visitor's file name without control characters, at most MAX_NAME_LENGTH long."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C").strip().strip(".")
    path = Path(kept or "photo")
    suffix = path.suffix[:10]
    return path.stem[: MAX_NAME_LENGTH - len(suffix)] + suffix


def write_as(photo: DemoPhoto, target: Path, suffix: str, strength: float) -> tuple[str, ...]:
    """Writes the result of a photo to a file whose name does not tell the format."""
    written = target.with_name(f"writing{suffix}")
    notes = photo.write(written, strength)
    written.rename(target)
    return notes


def write_zip(photos: list[DemoPhoto], target: Path, format_name: str, strength: float) -> tuple[str, ...]:
    """Writes the results of photos under the names of their originals, numbered where several have one; their notes."""
    names: set[str] = set()
    notes: list[str] = []
    with zipfile.ZipFile(target, "w") as archive:
        for photo in photos:
            stem, suffix, number = Path(photo.name).stem, photo.result_suffix(format_name), 1
            name = f"{stem}{suffix}"
            while name.lower() in names:
                name, number = f"{stem} ({number + 1}){suffix}", number + 1
            names.add(name.lower())
            part = target.with_name("part")
            notes += [f"{name}: {note}" for note in write_as(photo, part, suffix, strength) if note != COPIED]
            archive.write(part, name)
            part.unlink()
    return tuple(notes)


def serve(host: str, port: int, open_browser: bool = False) -> None:
    """Serves the page until Ctrl-C or SIGTERM, then removes its temporary files.

    Raises:
        ValueError: the address cannot be listened at.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="srcnn-demo-", ignore_cleanup_errors=True) as folder:
        try:
            server = PageServer(host, port, Path(folder))
        except (OSError, OverflowError) as error:
            reason = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used: {error}"
            raise UserError(f"port {port} of {host} {reason}; give another with --port or --host") from error
        name = host if server.is_local else socket.gethostname()
        address = f"http://{f'[{name}]' if ':' in name else name}:{server.server_port}"
        with server, suppress(KeyboardInterrupt):
            print(f"serving at {address}; stop with Ctrl-C", flush=True)
            if not server.is_local:
                print("anybody who reaches this address can use it: there is no password", flush=True)
            if open_browser:
                webbrowser.open(address)
            server.serve_forever()
