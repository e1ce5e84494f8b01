"""Where photos and shards lie: a folder, or an object store (http, https, s3, gs, az). Nothing is ever executed.

Names are relative to the folder or URL, with slashes. Folders and the stores of WRITABLE_SCHEMES are also written.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np

from srcnn.answers import Final, cause, collected, without_secrets
from srcnn.files import TEMPORARY_PREFIX, FolderLock, OpenFile, atomic_file
from srcnn.untrusted import open_regular

WRITABLE_SCHEMES = ("s3", "gs", "az")
SCHEMES = ("http", "https", *WRITABLE_SCHEMES)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
MAX_OPEN_FILES = 256
MAX_SMALL_BYTES = 1 << 30  # of a file that is read whole, unless its reader knows better
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux
Arrays = tuple[np.ndarray, ...]  # uint8 (n,), to be filled
Record = tuple[str, int, Arrays]  # file, first byte, what to fill
Check = Callable[[int, list[Any]], None]
ResultT = TypeVar("ResultT")
logger = logging.getLogger(__name__)


class ReadFailed(OSError):
    """A file or a range of it could not be read, for good; the message names both and the cause."""


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


def is_url(location: str | Path) -> bool:
    """Whether this names an object store rather than a folder; `pipe:cat x` is neither, see `open_storage`."""
    return "://" in str(location)


def join(location: str | Path, name: str) -> str:
    """The folder `name` in a folder or below a URL."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(location) else str(Path(location, name))


def is_within(inner: str, outer: str) -> bool:
    """Whether a folder, file or URL is the other one or lies below it."""
    if is_url(inner) or is_url(outer):
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    return Path(inner).expanduser().resolve().is_relative_to(Path(outer).expanduser().resolve())


def open_storage(location: str | Path, access: AccessConfig | None = None) -> Folder | ObjectStore:
    """The storage at a folder's path or a URL.

    Raises:
        ValueError: a URL of a kind that is not read.
    """
    text = str(location)
    scheme = text.partition(":")[0]
    if is_url(location) and scheme in SCHEMES:
        return ObjectStore(text, access or AccessConfig())
    if is_url(location) or (scheme == "pipe" and ":" in text):
        raise ValueError(f"{scheme}: shards are read from a folder or from {', '.join(SCHEMES)} addresses, no others")
    return Folder(Path(location))


def open_writable(location: str) -> Folder | ObjectStore:
    """The storage at a folder's path, or at a URL that can be written and listed too.

    Raises:
        ValueError: a URL of another kind.
    """
    scheme = location.partition("://")[0]
    if is_url(location) and scheme not in WRITABLE_SCHEMES:
        raise ValueError(f"{scheme}: photos and shards lie in a folder or at {', '.join(WRITABLE_SCHEMES)} addresses")
    return open_storage(location)


class Folder:
    """Files below a folder of this machine; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self.path = path.expanduser()
        self._open: dict[str, _WarmFile] = {}
        self._lock, self._reading_cached = threading.Lock(), threading.Lock()

    def read(self, name: str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
        """The whole of a small file. Raises OutOfBounds where it is no regular file, or larger."""
        with open_regular(self.path / name, max_bytes) as file:
            return file.read()

    def read_range(self, name: str, start: int, stop: int, num_bytes: int | None = None) -> bytes:
        """Bytes `start` up to `stop` of a file. Raises ReadFailed where it has fewer."""
        content = self._file(name).pread(stop - start, start)
        if len(content) != stop - start:
            raise ReadFailed(f"{self.path / name}: ends before byte {stop}")
        return content

    def read_records(
        self, records: Sequence[Record], spans: Sequence[slice], num_bytes: int, check: Check
    ) -> None:
        """Fills each record's arrays with these spans of its `num_bytes`; whatever else it holds is not wanted.

        What the system has in memory is read first and by one thread at a time: such reads take microseconds, and
        threads would spend more on handing Python's lock to each other. The rest is announced, then waited for.
        `check` gets the number of each record and its bytes, in parts, as soon as it was read.

        Raises:
            ReadFailed: a file ends before.
            Exception: what `check` raises.
        """
        ends = [0, *(span.stop for span in spans)]
        gaps = [bytearray(start - end) for start, end in zip([*(span.start for span in spans), num_bytes], ends)]
        limits = [(span.start, span.stop) for span in spans]
        missed = []
        with self._reading_cached:
            mapped = {name: self._file(name).checked_content() for name in {record[0] for record in records}}
            for number, (name, start, arrays) in enumerate(records):
                content = mapped[name]
                if content is not None:
                    parts: list[Any] = [content[start : start + num_bytes]]
                    for array, (first, last) in zip(arrays, limits):
                        array[...] = parts[0][first:last]
                elif not self._read_cached(name, start, parts := _interleave(gaps, arrays), num_bytes):
                    missed.append(number)
                    continue
                check(number, parts)
        for number in missed:
            self._file(records[number][0]).announce(records[number][1], num_bytes)
        for number in missed:
            name, start, arrays = records[number]
            if self._file(name).preadv(parts := _interleave(gaps, arrays), start) != num_bytes:
                raise ReadFailed(f"{self.path / name}: ends before byte {start + num_bytes}")
            check(number, parts)

    def _read_cached(self, name: str, start: int, buffers: list[Any], num_bytes: int) -> bool:
        """Whether the buffers could be filled without waiting for a disk."""
        file = self._file(name)
        try:
            cached = file.preadv(buffers, start, _NOWAIT) == num_bytes
        except OSError as error:  # EAGAIN: it would have to wait; the others: not to be had on this disk
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            cached = False
        file.count(num_bytes if cached else 0)
        return cached

    def _file(self, name: str) -> _WarmFile:
        file = self._open.get(name)
        if file is None:
            file = _WarmFile(self.path / name)
            with self._lock:
                if len(self._open) >= MAX_OPEN_FILES:  # closed when the last thread that reads from it is done
                    self._open.pop(next(iter(self._open)))
                self._open[name] = file
        return file

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of the files right in this folder of it, by their names there."""
        with os.scandir(self.path / folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def names(self) -> list[str]:
        """Of the files and folders right in it."""
        return os.listdir(self.path)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A file of this machine with the content of that one: here itself."""
        yield self.path / name

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A binary file to write and read, which has its name when it is whole, or not at all."""
        with atomic_file(self.path / name) as file:
            yield file

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def prepare(self, folders: Iterable[str]) -> None:
        """Makes these folders in it, and removes the files that an ended process has left unfinished in them."""
        for folder in (self.path / name for name in folders):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds its lock. Raises BlockingIOError where another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.path, seconds=0)
        try:
            yield
        finally:
            lock.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        self._open.clear()


class _WarmFile(OpenFile):
    """A file that is mapped after as many bytes as it has were found in memory without a miss.

    Copying out of a mapping takes half the time of a call of the system, but of a file that is not in memory it would
    read pages nobody asked for, and of one that has become shorter it would end the process: `checked_content`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path
        self.content: np.ndarray | None = None
        self._num_bytes_found = 0

    def count(self, num_bytes: int) -> None:
        """Notes that so many bytes were found in memory; 0: that some were not."""
        self._num_bytes_found = self._num_bytes_found + num_bytes if num_bytes else 0
        if self._num_bytes_found >= (size := os.fstat(self.number).st_size) > 0:
            self.content = np.frombuffer(mmap.mmap(self.number, size, access=mmap.ACCESS_READ), np.uint8)

    def announce(self, start: int, num_bytes: int) -> None:
        """Has the system begin to read."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, start, num_bytes, os.POSIX_FADV_WILLNEED)

    def checked_content(self) -> np.ndarray | None:
        """All its bytes, if it is mapped. Raises ReadFailed where it has become shorter since."""
        if self.content is not None and os.fstat(self.number).st_size < len(self.content):
            raise ReadFailed(f"{self.path}: has become shorter while it was read")
        return self.content


def _interleave(gaps: list[bytearray], arrays: Arrays) -> list[Any]:
    return [*(buffer for both in zip(gaps, arrays) for buffer in both), gaps[-1]]


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
        retries: Any = {"max_retries": 0}  # `_persistently` does it, also for answers that arrive cut short
        try:
            self._store = from_url(url, client_options=options, retry_config=retries)
        except Exception as error:  # what obstore and its parser of URLs raise has no common base
            raise ValueError(f"{self.location}: no address that can be read: {cause(error)}") from None

    def read(self, name: str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
        """The whole of a small file.

        Raises:
            FileNotFoundError: there is none.
            ReadFailed: it cannot be read, or is larger.
        """
        return bytes(self._again(name, "", lambda: collected(self._obstore.get(self._store, name), max_bytes)))

    def read_range(self, name: str, start: int, stop: int, num_bytes: int | None = None) -> Any:
        """Bytes `start` up to `stop` of a file, as a buffer; where `num_bytes` is given, of a file of that length.

        Raises:
            ReadFailed: absent, forbidden, of another length, or failing for too long.
        """
        def get() -> Any:
            result = self._obstore.get(self._store, name, options={"range": (start, stop)})
            if num_bytes is not None and result.meta["size"] != num_bytes:
                raise Final(f"has {result.meta['size']} bytes, the manifest says {num_bytes} bytes")
            content = collected(result, stop - start)
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes came instead of {stop - start}")
            return content

        try:
            return self._again(name, f"bytes {start} to {stop}: ", get)
        except FileNotFoundError as error:
            raise ReadFailed(str(error)) from error

    def _again(self, name: str, what: str, get: Callable[[], ResultT]) -> ResultT:
        """`get()`, again and again while that may help."""
        errors = self._obstore.exceptions
        final = (Final, errors.PermissionDeniedError, errors.UnauthenticatedError, errors.NotSupportedError)
        where = f"{self.location}/{name}: {what}"
        end, pause = time.monotonic() + self.access.give_up_seconds, FIRST_PAUSE_SECONDS
        closed = self._closed
        while True:
            try:
                return get()
            except (FileNotFoundError, errors.NotFoundError):
                raise FileNotFoundError(f"{where}is not there") from None  # what obstore says may hold secrets
            except final as error:
                raise ReadFailed(f"{where}{cause(error)}") from None
            except (OSError, errors.BaseError) as error:
                if re.search("non-partial|builder error|status code: 4(00|16)", str(error)):  # will not heal
                    raise ReadFailed(f"{where}{cause(error)}") from None
                if time.monotonic() + pause > end or closed.is_set():
                    tried = f"(tried for {self.access.give_up_seconds:g} s)"
                    raise ReadFailed(f"{where}{cause(error)} {tried}") from None
                logger.warning("%s%s; trying again", where, cause(error))
            closed.wait(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _call(self, name: str, call: Callable[[Any, Any], ResultT]) -> ResultT:
        """`call(obstore, store)`, tried again as reads are. Raises ReadFailed, or FileNotFoundError, naming `name`."""
        return self._again(name, "", lambda: call(self._obstore, self._store))

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


Storage = Folder | ObjectStore
