"""Objects below a URL (http, https, s3, gs, az), read whole or by ranges and written, through obstore."""

from __future__ import annotations

import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra

WRITABLE_SCHEMES = ("s3", "gs", "az")
SCHEMES = ("http", "https", *WRITABLE_SCHEMES)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
MAX_SMALL_BYTES = 1 << 30  # default limit of a file that is read whole
CHUNK_BYTES = 1 << 20  # of a response between two checks of its length
ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class ReadFailed(OSError):
    """A file or a byte range could not be read, and retrying did not or cannot help; names both and the cause."""


class NotRetryable(OSError):
    """An error that a retry cannot fix."""


@dataclass(frozen=True)
class AccessConfig:
    """How shards in an object store are read; not used for folders.

    Args:
        timeout_seconds: timeout of one request.
        give_up_seconds: how long a failing read is retried, with growing pauses, before the run stops.
        num_connections: number of ranges read at the same time.
        cache: folder on a local disk that caches what was read, for all processes of the machine; empty: no cache.
        cache_gigabytes: size limit of the cache in 10^9 bytes; it holds the first so many bytes of the dataset.
    """

    timeout_seconds: float = 20.0
    give_up_seconds: float = 120.0
    num_connections: int = 32
    cache: str = ""
    cache_gigabytes: float = 100.0

    def __post_init__(self) -> None:
        if min(self.timeout_seconds, self.give_up_seconds, self.num_connections, self.cache_gigabytes) <= 0:
            raise UserError("timeout_seconds, give_up_seconds, num_connections and cache_gigabytes must be above 0")


class ObjectStore:
    """Objects below a URL, accessed with obstore; thread-safe. Credentials come from the environment.

    A failing request is retried for `give_up_seconds`; an error that a retry cannot fix (absent, forbidden) is raised
    at once. Must not be used in a process forked from one that has used it.
    """

    def __init__(self, url: str, access: AccessConfig) -> None:
        with extra("remote"):
            import obstore
            from obstore.store import from_url
        self.location = without_secrets(url).rstrip("/")
        self.access = access
        self._closed, self._process = threading.Event(), os.getpid()
        self._obstore = obstore
        plain_http = url.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
        timeout = timedelta(seconds=access.timeout_seconds)
        options: Any = {"timeout": timeout, "connect_timeout": timeout, "allow_http": plain_http}
        retries: Any = {"max_retries": 0}  # `_retry` retries, also after a truncated response
        try:
            self._store = from_url(url, client_options=options, retry_config=retries)
        except Exception as error:  # obstore's errors and those of its URL parser have no common base class
            raise UserError(f"{self.location}: not a usable URL: {describe_error(error)}") from None

    def read(self, name: str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: it does not exist.
            ReadFailed: it cannot be read, or has more than `max_bytes`.
        """
        return bytes(self._retry(name, lambda: read_limited(self._obstore.get(self._store, name), max_bytes)))

    def read_range(self, name: str, start: int, stop: int, num_bytes: int | None = None) -> Any:
        """Bytes `start` up to `stop` of a file, as a buffer. `num_bytes` is the length the file must have, if given.

        Raises:
            ReadFailed: the file is absent, forbidden or of another length, or retries failed for too long.
        """
        def get() -> Any:
            result = self._obstore.get(self._store, name, options={"range": (start, stop)})
            if num_bytes is not None and result.meta["size"] != num_bytes:
                raise NotRetryable(f"has {result.meta['size']} bytes, the manifest says {num_bytes} bytes")
            content = read_limited(result, stop - start)
            if len(content) != stop - start:
                raise OSError(f"received {len(content)} bytes instead of {stop - start}")
            return content

        try:
            return self._retry(name, get, f"bytes {start} to {stop}: ")
        except FileNotFoundError as error:
            raise ReadFailed(str(error)) from error

    def _retry(self, name: str, request: Callable[[], ResultT], what: str = "") -> ResultT:
        """`request()`, retried with growing pauses. Raises FileNotFoundError or ReadFailed, which name the file."""
        if os.getpid() != self._process:  # obstore would wait forever
            raise UserError(f"{self.location}: cannot be read in a forked process; give the DataLoader "
                            "multiprocessing_context='spawn', or no workers")
        errors = self._obstore.exceptions
        final = (NotRetryable, errors.PermissionDeniedError, errors.UnauthenticatedError, errors.NotSupportedError)
        where = f"{self.location}/{name}: {what}"
        deadline, pause = time.monotonic() + self.access.give_up_seconds, FIRST_PAUSE_SECONDS
        closed = self._closed
        while True:
            try:
                return request()
            except (FileNotFoundError, errors.NotFoundError):
                raise FileNotFoundError(f"{where}does not exist") from None  # obstore's message may hold secrets
            except final as error:
                raise ReadFailed(f"{where}{describe_error(error)}") from None
            except (OSError, errors.BaseError) as error:
                # obstore has no types for these: ranges not supported, invalid URL, bad request or range.
                if re.search("non-partial|builder error|status code: 4(00|16)", str(error)):
                    raise ReadFailed(f"{where}{describe_error(error)}") from None
                if time.monotonic() + pause > deadline or closed.is_set():
                    tried = f"(retried for {self.access.give_up_seconds:g} s)"
                    raise ReadFailed(f"{where}{describe_error(error)} {tried}") from None
                logger.warning("%s%s; retrying", where, describe_error(error))
            closed.wait(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def files(self) -> list[str]:
        """Names of all objects below the URL, sorted."""
        return sorted(item["path"] for item in self._retry("", lambda: self._obstore.list(self._store).collect()))

    def sizes(self) -> dict[str, int]:
        """As `Folder.sizes`."""
        return {item["path"]: item["size"] for item in self._list_folder()["objects"]}

    def names(self) -> list[str]:
        """As `Folder.names`."""
        listed = self._list_folder()
        objects = [item["path"] for item in listed["objects"]]
        return objects + [prefix.rstrip("/") for prefix in listed["common_prefixes"]]

    def _list_folder(self) -> Any:
        return self._retry("", lambda: self._obstore.list_with_delimiter(self._store))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A temporary local file with the content of the object."""
        with tempfile.TemporaryDirectory(prefix="srcnn-") as folder:
            path = Path(folder, f"photo{PurePosixPath(name).suffix}")
            path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """As `Folder.create`: a temporary file, uploaded at the end."""
        with tempfile.TemporaryFile(prefix="srcnn-") as file:
            yield file

            def upload() -> None:
                file.seek(0)
                self._obstore.put(self._store, name, file)

            self._retry(name, upload)

    def remove(self, names: Iterable[str]) -> None:
        if names := list(names):
            self._retry(names[0], lambda: self._obstore.delete(self._store, names))

    def prepare(self, folders: Iterable[str]) -> None:
        """Does nothing: object stores have no folders, and no unfinished objects."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Does nothing: object stores have no locks. Two processes that write the same files write them twice."""
        yield

    def close(self) -> None:
        """Ends the retries of the requests in progress; later requests are retried again."""
        closed, self._closed = self._closed, threading.Event()
        closed.set()


def read_limited(result: Any, max_bytes: int) -> Any:
    """The content of a response, as a buffer. Raises NotRetryable if the server sends more than `max_bytes`."""
    chunks, num_bytes = [], 0
    for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise NotRetryable(f"received more than {max_bytes} bytes")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def describe_error(error: BaseException) -> str:
    """The first line of the error without secrets, and the kinds of error that obstore names further below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    kinds = dict.fromkeys(re.findall(r"kind: (\w+)", " ".join(lines[1:])))
    line = re.sub(r"(status code: \d+[ \w]*).*", r"\1", lines[0])  # the response's body may hold keys and signatures
    return without_secrets(line) + (f" ({', '.join(kinds)})" if kinds else "")


def without_secrets(text: str) -> str:
    """A text without the users, passwords and queries of its URLs."""
    return without_credentials(re.sub(r"\?[^\s\"')]*", "", text)).replace("://***@", "://")
