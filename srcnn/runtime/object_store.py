"""Files below a URL (http, https, s3, gs, az), read by ranges and written through obstore. Nothing is ever executed."""

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

from srcnn.runtime.settings import without_credentials

WRITABLE_SCHEMES = ("s3", "gs", "az")
SCHEMES = ("http", "https", *WRITABLE_SCHEMES)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
MAX_SMALL_BYTES = 1 << 30  # of a file that is read whole, unless its reader knows better
CHUNK_BYTES = 1 << 20  # of a response, more or less, before it is looked at whether there is too much of it
ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class ReadFailed(OSError):
    """A file or a range of it could not be read, for good; the message names both and the cause."""


class NotRetryable(OSError):
    """An error that another attempt would not heal."""


@dataclass(frozen=True)
class AccessConfig:
    """How shards in an object store are read; a folder needs none of it.

    Args:
        timeout_seconds: longest time one request may take.
        give_up_seconds: how long a failing read is tried again, with growing pauses, before the run stops.
        num_connections: ranges read at the same time.
        cache: folder on a local disk that keeps what was read, for all processes of the machine; empty: none.
        cache_gigabytes: the most the cache takes, 10^9 bytes: so much of the data set from its beginning.
    """

    timeout_seconds: float = 20.0
    give_up_seconds: float = 120.0
    num_connections: int = 32
    cache: str = ""
    cache_gigabytes: float = 100.0

    def __post_init__(self) -> None:
        if min(self.timeout_seconds, self.give_up_seconds, self.num_connections, self.cache_gigabytes) <= 0:
            raise ValueError("timeout_seconds, give_up_seconds, num_connections and cache_gigabytes must be above 0")


class ObjectStore:
    """Files below a URL, read with obstore; safe to use from several threads. Credentials come from the environment.

    A read that fails is tried again until `give_up_seconds` are over; what cannot heal (absent, forbidden) fails at
    once. Not to be used in a process that was forked from one that did.
    """

    def __init__(self, url: str, access: AccessConfig) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            cure = "object stores are read with the package obstore: pip install 'srcnn[remote]'"
            raise ValueError(f"{without_secrets(url)}: {cure}") from error
        self.location = without_secrets(url).rstrip("/")
        self.access = access
        self._closed = threading.Event()
        self._obstore = obstore
        plain_http = url.startswith("http:") or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
        timeout = timedelta(seconds=access.timeout_seconds)
        options: Any = {"timeout": timeout, "connect_timeout": timeout, "allow_http": plain_http}
        retries: Any = {"max_retries": 0}  # `_retry` does it, also for responses that arrive cut short
        try:
            self._store = from_url(url, client_options=options, retry_config=retries)
        except Exception as error:  # what obstore and its parser of URLs raise has no common base
            raise ValueError(f"{self.location}: no address that can be read: {describe_error(error)}") from None

    def read(self, name: str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
        """The whole of a small file.

        Raises:
            FileNotFoundError: there is none.
            ReadFailed: it cannot be read, or is larger.
        """
        return bytes(self._retry(name, "", lambda: read_limited(self._obstore.get(self._store, name), max_bytes)))

    def read_range(self, name: str, start: int, stop: int, num_bytes: int | None = None) -> Any:
        """Bytes `start` up to `stop` of a file, as a buffer; where `num_bytes` is given, of a file of that length.

        Raises:
            ReadFailed: absent, forbidden, of another length, or failing for too long.
        """
        def get() -> Any:
            result = self._obstore.get(self._store, name, options={"range": (start, stop)})
            if num_bytes is not None and result.meta["size"] != num_bytes:
                raise NotRetryable(f"has {result.meta['size']} bytes, the manifest says {num_bytes} bytes")
            content = read_limited(result, stop - start)
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes came instead of {stop - start}")
            return content

        try:
            return self._retry(name, f"bytes {start} to {stop}: ", get)
        except FileNotFoundError as error:
            raise ReadFailed(str(error)) from error

    def _retry(self, name: str, what: str, get: Callable[[], ResultT]) -> ResultT:
        """`get()`, again and again while that may help."""
        errors = self._obstore.exceptions
        final = (NotRetryable, errors.PermissionDeniedError, errors.UnauthenticatedError, errors.NotSupportedError)
        where = f"{self.location}/{name}: {what}"
        end, pause = time.monotonic() + self.access.give_up_seconds, FIRST_PAUSE_SECONDS
        closed = self._closed
        while True:
            try:
                return get()
            except (FileNotFoundError, errors.NotFoundError):
                raise FileNotFoundError(f"{where}is not there") from None  # what obstore says may hold secrets
            except final as error:
                raise ReadFailed(f"{where}{describe_error(error)}") from None
            except (OSError, errors.BaseError) as error:
                # obstore has no types for these: no ranges served, an impossible URL, a bad request or range.
                if re.search("non-partial|builder error|status code: 4(00|16)", str(error)):
                    raise ReadFailed(f"{where}{describe_error(error)}") from None
                if time.monotonic() + pause > end or closed.is_set():
                    tried = f"(tried for {self.access.give_up_seconds:g} s)"
                    raise ReadFailed(f"{where}{describe_error(error)} {tried}") from None
                logger.warning("%s%s; trying again", where, describe_error(error))
            closed.wait(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _call(self, name: str, call: Callable[[Any, Any], ResultT]) -> ResultT:
        """`call(obstore, store)`, tried again as reads are. Raises ReadFailed, or FileNotFoundError, naming `name`."""
        return self._retry(name, "", lambda: call(self._obstore, self._store))

    def _children(self, folder: str = "") -> tuple[dict[str, int], list[str]]:
        """Bytes of the objects right below a prefix, and the prefixes there, by the names after it."""
        start = f"{folder}/" if folder else ""
        listed = self._call(folder, lambda obstore, store: obstore.list_with_delimiter(store, start or None))
        sizes = {item["path"].removeprefix(start): item["size"] for item in listed["objects"]}
        return sizes, [prefix.removeprefix(start).rstrip("/") for prefix in listed["common_prefixes"]]

    def files(self) -> list[str]:
        """Names of all objects below the URL, sorted."""
        listed = self._call("", lambda obstore, store: obstore.list(store).collect())
        return sorted(item["path"] for item in listed)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """As `Folder.sizes`."""
        return self._children(folder)[0]

    def names(self) -> list[str]:
        """As `Folder.names`."""
        sizes, folders = self._children()
        return [*sizes, *folders]

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A temporary file of this machine with the content of that object."""
        with tempfile.TemporaryDirectory(prefix="srcnn-") as folder:
            path = Path(folder, f"photo{PurePosixPath(name).suffix}")
            path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """As `Folder.create`: a temporary file, which becomes the object at the end."""
        with tempfile.TemporaryFile(prefix="srcnn-") as file:
            yield file

            def put(obstore: Any, store: Any) -> None:
                file.seek(0)
                obstore.put(store, name, file)

            self._call(name, put)

    def remove(self, names: Iterable[str]) -> None:
        if names := list(names):
            self._call(names[0], lambda obstore, store: obstore.delete(store, names))

    def prepare(self, folders: Iterable[str]) -> None:
        """Nothing: there are no folders, and an object is whole or not there."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing: object stores have no locks. Two processes that write the same files write them twice."""
        yield

    def close(self) -> None:
        """Ends what is being tried again; later reads are not concerned."""
        before, self._closed = self._closed, threading.Event()
        before.set()


def read_limited(result: Any, max_bytes: int) -> Any:
    """The content of a response, as a buffer. Raises NotRetryable where the server sends more than was asked for."""
    chunks, num_bytes = [], 0
    for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise NotRetryable(f"more than {max_bytes} bytes came")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def describe_error(error: BaseException) -> str:
    """Its first line without secrets, and the kinds of error that obstore only names in its dump below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    kinds = dict.fromkeys(re.findall(r"kind: (\w+)", " ".join(lines[1:])))
    line = re.sub(r"(status code: \d+[ \w]*).*", r"\1", lines[0])  # a response's body may hold keys and signatures
    return without_secrets(line) + (f" ({', '.join(kinds)})" if kinds else "")


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs, without user, password and query."""
    return without_credentials(re.sub(r"\?[^\s\"')]*", "", text)).replace("://***@", "://")
