"""Files that appear under their name whole or not at all, their hashes, and JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY_PREFIX = ".writing-"
LOCK = ".lock"
logger = logging.getLogger(__name__)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; flushed to the disk and renamed to `path` at the end, removed on an error."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=path.suffix)
    os.close(handle)
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk: what was renamed is so after a power failure too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot do it for folders
            raise
    finally:
        os.close(handle)


def to_json(content: Any) -> bytes:
    """JSON for people too. A file name that is no UTF-8 comes as lone surrogates, which only an escape can hold."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as file:
        file.write(to_json(content))


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))  # one for all of the file, small enough to stay in the cache
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
    return digest.hexdigest()


class OpenFile:
    """The number of an open file, closed when nobody refers to it any more: threads may share and drop it."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.number = -1
        self.number = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def pread(self, num_bytes: int, start: int) -> bytes:
        """As os.pread; a method, so that the file is held, and its number cannot become another's, while it is read."""
        return os.pread(self.number, num_bytes, start)

    def preadv(self, buffers: Sequence[Any], start: int, flags: int = 0) -> int:
        """As os.preadv."""
        return os.preadv(self.number, buffers, start, flags)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class FolderLock:
    """Holds a folder for this process until it is dropped, or the process has ended, however it ends.

    Raises BlockingIOError where another holds it for longer than `seconds`.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path = folder / LOCK
        self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + seconds
        while not (self._try() and self.is_held()):
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process writes here", str(folder))
            time.sleep(0.1)
            if not self.is_held():  # whoever had it has put the folder aside
                self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT)

    def _try(self) -> bool:
        try:
            import fcntl  # Windows has none

            fcntl.flock(self._file.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except (OSError, ImportError) as error:
            logger.warning("%s: no locks here (%s): take care that only one writes", self.path.parent, error)
        return True

    def is_held(self) -> bool:
        """Whether the folder is still the one that was locked: not gone, not another under its name."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.number))
        except FileNotFoundError:
            return False
