"""Atomic writes, hashes, JSON files and folder locks."""

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
    """A temporary binary file for writing, fsynced and renamed to `path` at the end, deleted on an error."""
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
    """Writes the folder's entries to the disk, so that renames in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot fsync a folder
            raise
    finally:
        os.close(handle)


def to_json(content: Any) -> bytes:
    """Indented UTF-8 JSON. File names that are not UTF-8 hold lone surrogates, which are written as escapes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as file:
        file.write(to_json(content))


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))  # small enough for the CPU's cache
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
    return digest.hexdigest()


class OpenFile:
    """A file descriptor that is closed with the last reference to it, so that threads can share it."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.fd = -1  # for `__del__`, where the next line fails
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def pread(self, num_bytes: int, start: int) -> bytes:
        """As os.pread. The call holds a reference, so that the descriptor cannot be closed and reused meanwhile."""
        return os.pread(self.fd, num_bytes, start)

    def preadv(self, buffers: Sequence[Any], start: int, flags: int = 0) -> int:
        """As os.preadv."""
        return os.preadv(self.fd, buffers, start, flags)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class FolderLock:
    """An exclusive lock (flock) on a folder, released when the object is deleted or the process ends in any way.

    Raises BlockingIOError if another process still holds it after `seconds`. Only warns where the file system or the
    system has no locks.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path = folder / LOCK
        self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + seconds
        while not (self._try() and self.is_held()):
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing in this folder", str(folder))
            time.sleep(0.1)
            if not self.is_held():  # the process that held the lock has moved the folder
                self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT)

    def _try(self) -> bool:
        try:
            import fcntl  # not on Windows

            fcntl.flock(self._file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except (OSError, ImportError) as error:
            logger.warning("%s: cannot lock it (%s): let only one process write in it", self.path.parent, error)
        return True

    def is_held(self) -> bool:
        """Whether the path still leads to the locked folder, which may have been deleted or replaced since."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fd))
        except FileNotFoundError:
            return False
