"""Where photos and shards lie: a folder, or an object store (`object_store`), with one interface.

Names are relative to the folder or URL, with slashes. Folders and the stores of WRITABLE_SCHEMES are also written.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from srcnn.runtime.files import TEMPORARY_PREFIX, FolderLock, OpenFile, atomic_file
from srcnn.runtime.object_store import MAX_SMALL_BYTES, SCHEMES, WRITABLE_SCHEMES, AccessConfig, ObjectStore, ReadFailed
from srcnn.runtime.untrusted import open_regular

MAX_OPEN_FILES = 256
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux
Record = tuple[str, int, tuple[memoryview, ...]]  # file, first byte, what to fill
Check = Callable[[int, list[Any]], None]


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
        """Fills each record's views with these spans of its `num_bytes`; whatever else it holds is not wanted.

        What the system has in memory is read first and by one thread at a time: such reads take microseconds, and
        threads would spend more on handing Python's lock to each other. The rest is read ahead, then waited for.
        `check` gets the number of each record and its bytes, in parts, as soon as it was read.

        Raises:
            ReadFailed: a file ends before.
            Exception: what `check` raises.
        """
        ends = [0, *(span.stop for span in spans)]
        gaps = [bytearray(start - end) for start, end in zip([*(span.start for span in spans), num_bytes], ends)]
        missed = []
        with self._reading_cached:
            mapped = {name: self._file(name).checked_content() for name in {record[0] for record in records}}
            for number, (name, start, views) in enumerate(records):
                content = mapped[name]
                if content is not None:
                    parts: list[Any] = [content[start : start + num_bytes]]
                    for view, span in zip(views, spans):
                        view[:] = parts[0][span]
                elif not self._read_cached(name, start, parts := _interleave(gaps, views), num_bytes):
                    missed.append(number)
                    continue
                check(number, parts)
        for number in missed:
            self._file(records[number][0]).readahead(records[number][1], num_bytes)
        for number in missed:
            name, start, views = records[number]
            if self._file(name).preadv(parts := _interleave(gaps, views), start) != num_bytes:
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
                # The one opened first goes, and is closed when the last thread that reads from it is done. In a uniform
                # order of more shards than that, the one used least recently would be needed as soon as any other.
                if len(self._open) >= MAX_OPEN_FILES:
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
        self.content: memoryview | None = None
        self._num_bytes_found = 0

    def count(self, num_bytes: int) -> None:
        """Notes that so many bytes were found in memory; 0: that some were not."""
        self._num_bytes_found = self._num_bytes_found + num_bytes if num_bytes else 0
        if self._num_bytes_found >= (size := os.fstat(self.number).st_size) > 0:
            self.content = memoryview(mmap.mmap(self.number, size, access=mmap.ACCESS_READ))

    def readahead(self, start: int, num_bytes: int) -> None:
        """Has the system begin to read."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.number, start, num_bytes, os.POSIX_FADV_WILLNEED)

    def checked_content(self) -> memoryview | None:
        """All its bytes, if it is mapped. Raises ReadFailed where it has become shorter since."""
        if self.content is not None and os.fstat(self.number).st_size < len(self.content):
            raise ReadFailed(f"{self.path}: has become shorter while it was read")
        return self.content


def _interleave(gaps: list[bytearray], views: tuple[memoryview, ...]) -> list[Any]:
    return [*(buffer for both in zip(gaps, views) for buffer in both), gaps[-1]]


Storage = Folder | ObjectStore
