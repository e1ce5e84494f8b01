"""One interface to a folder or an object store (`object_store`) of photos or shards.

File names are relative to the folder or URL, with slashes. Only http(s) URLs cannot be written.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from srcnn.runtime.errors import UserError
from srcnn.runtime.files import TEMPORARY_PREFIX, FolderLock, OpenFile, atomic_file
from srcnn.runtime.object_store import MAX_SMALL_BYTES, SCHEMES, WRITABLE_SCHEMES, AccessConfig, ObjectStore, ReadFailed
from srcnn.runtime.untrusted import open_regular

MAX_OPEN_FILES = 256
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux
Record = tuple[str, int, tuple[memoryview, ...]]  # file name, offset, buffers to fill
Check = Callable[[int, list[Any]], None]  # (index of the record, its bytes in parts)


def is_url(location: str | Path) -> bool:
    """Whether this is a URL rather than a path. `pipe:cat x` counts as a path here, and `open_storage` refuses it."""
    return "://" in str(location)


def join(location: str | Path, name: str) -> str:
    """The path or URL of `name` in a folder or below a URL."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(location) else str(Path(location, name))


def is_within(inner: str, outer: str) -> bool:
    """Whether a path or URL is the other one or lies below it."""
    if is_url(inner) or is_url(outer):
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    return Path(inner).expanduser().resolve().is_relative_to(Path(outer).expanduser().resolve())


def open_storage(location: str | Path, access: AccessConfig | None = None) -> Storage:
    """Opens a folder or, with the settings in `access`, a URL.

    Raises:
        ValueError: a URL whose scheme is not one of SCHEMES.
    """
    return _open(str(location), SCHEMES, access)


def open_writable(location: str) -> Storage:
    """Opens a folder, or a URL that can also be written and listed.

    Raises:
        ValueError: a URL whose scheme is not one of WRITABLE_SCHEMES.
    """
    return _open(location, WRITABLE_SCHEMES)


def _open(location: str, schemes: Sequence[str], access: AccessConfig | None = None) -> Storage:
    scheme, colon, _ = location.partition(":")
    if not is_url(location) and not (scheme == "pipe" and colon):
        return Folder(Path(location))
    if scheme not in schemes:
        raise UserError(f"{scheme}: expected a folder or a URL of {', '.join(schemes)}")
    return ObjectStore(location, access or AccessConfig())


class Folder:
    """A local folder; thread-safe."""

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self.path = path.expanduser()
        self._open: dict[str, _MappableFile] = {}
        self._lock, self._reading_cached = threading.Lock(), threading.Lock()

    def read(self, name: str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
        """The content of a file. Raises InvalidInput if it is not a regular file or has more than `max_bytes`."""
        with open_regular(self.path / name, max_bytes) as file:
            return file.read()

    def read_range(self, name: str, start: int, stop: int, num_bytes: int | None = None) -> bytes:
        """Bytes `start` up to `stop` of a file; `num_bytes` is not used. Raises ReadFailed if it ends before `stop`."""
        content = self._file(name).pread(stop - start, start)
        if len(content) != stop - start:
            raise ReadFailed(f"{self.path / name}: ends before byte {stop}")
        return content

    def read_records(self, records: Sequence[Record], spans: Sequence[slice], num_bytes: int, check: Check) -> None:
        """Reads records of `num_bytes` each, and copies the byte ranges `spans` of each into its buffers.

        Records in the page cache are read first, by one thread at a time: such a read takes microseconds, and threads
        would spend more on handing Python's lock to each other. The others are prefetched by the system, then read.
        `check` is called with each record's index and bytes (in parts) as soon as the record was read.

        Raises:
            ReadFailed: a file is too short.
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
        """Fills the buffers if that needs no disk access, and returns whether it did."""
        file = self._file(name)
        try:
            cached = file.preadv(buffers, start, _NOWAIT) == num_bytes
        except OSError as error:  # EAGAIN: not in the page cache; the others: not supported by the file system
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            cached = False
        file.count_cached(num_bytes if cached else 0)
        return cached

    def _file(self, name: str) -> _MappableFile:
        file = self._open.get(name)
        if file is None:
            file = _MappableFile(self.path / name)
            with self._lock:
                # Drops the file that was opened first; it is closed when the last thread has read from it. Least
                # recently used would be no better: with more shards in uniform order each is as likely to be the next.
                if len(self._open) >= MAX_OPEN_FILES:
                    self._open.pop(next(iter(self._open)))
                self._open[name] = file
        return file

    def sizes(self) -> dict[str, int]:
        """Size in bytes of each file in the folder itself, by name."""
        with os.scandir(self.path) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def names(self) -> list[str]:
        """Names of the files and folders in the folder itself."""
        return os.listdir(self.path)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """The path of a local file with the content of this one: the file itself."""
        yield self.path / name

    def create(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file to write and read; it gets its name at the end, and is deleted on an error."""
        return atomic_file(self.path / name)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def prepare(self, folders: Iterable[str]) -> None:
        """Creates these subfolders, and deletes the unfinished files that an ended process left in them."""
        for folder in (self.path / name for name in folders):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and holds its lock. Raises BlockingIOError if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.path, seconds=0)
        try:
            yield
        finally:
            lock.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files; later reads open them again."""
        self._open.clear()


class _MappableFile(OpenFile):
    """A file that is memory-mapped once reads of as many bytes as it has were all served from the page cache.

    Copying from the mapping takes half the time of a system call. But a mapping of a file that is not cached would
    read more pages than needed, and one of a file that was truncated would crash the process: `checked_content`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path
        self.content: memoryview | None = None
        self._num_cached_bytes = 0

    def count_cached(self, num_bytes: int) -> None:
        """Counts bytes that were read from the page cache; 0 resets the count after a miss."""
        self._num_cached_bytes = self._num_cached_bytes + num_bytes if num_bytes else 0
        if self._num_cached_bytes >= (size := os.fstat(self.fd).st_size) > 0:
            self.content = memoryview(mmap.mmap(self.fd, size, access=mmap.ACCESS_READ))

    def readahead(self, start: int, num_bytes: int) -> None:
        """Asks the system to read these bytes into the page cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, start, num_bytes, os.POSIX_FADV_WILLNEED)

    def checked_content(self) -> memoryview | None:
        """All its bytes, if it is mapped. Raises ReadFailed if it was truncated since."""
        if self.content is not None and os.fstat(self.fd).st_size < len(self.content):
            raise ReadFailed(f"{self.path}: was truncated while it was read")
        return self.content


def _interleave(gaps: list[bytearray], views: tuple[memoryview, ...]) -> list[Any]:
    return [*(buffer for both in zip(gaps, views) for buffer in both), gaps[-1]]


Storage = Folder | ObjectStore
