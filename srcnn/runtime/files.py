"""Atomic writes, hashes, JSON files and locks.

New files get the rights that the umask leaves; nothing is changed with chmod, which many network and USB disks refuse.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TEMPORARY_PREFIX = ".writing-"
LOCKED_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{16}(\..*)?")  # locked while its writer lives
MAX_TEMPORARY_AGE = 3600.0  # seconds, where locks do not tell
LOCK = ".lock"
OWNER_BYTES = 16  # of a lock: a random word of who has it
# What file systems answer that have no fsync, of files or of folders.
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF}
logger = logging.getLogger(__name__)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A temporary binary file for writing, fsynced and renamed to `path` at the end, deleted on an error."""
    temporary, fd = _locked_temporary(Path(path))
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            _fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _locked_temporary(target: Path) -> tuple[Path, int]:
    """A new file beside `target`, and its descriptor, which holds the lock that keeps `remove_unfinished` off."""
    while True:
        path = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{target.suffix}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            is_kept = lock_file(fd) and os.path.lexists(path)
        except OSError:  # no locks here
            is_kept = True
        if is_kept:
            return path, fd
        os.close(fd)  # another process removes it, which came before the lock


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of `atomic_file` whose writer was killed, and any that are older than an hour."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):  # not allowed, or another process removed it
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                continue
            if time.time() - status.st_mtime > MAX_TEMPORARY_AGE:
                path.unlink()
            elif LOCKED_TEMPORARY.fullmatch(path.name):
                file = OpenFile(path, os.O_RDWR)  # keeps the lock until the file is removed
                if lock_file(file.fd):
                    path.unlink()


def lock_file(fd: int) -> bool:
    """Locks an open file (flock) if no other process has; returns whether it is locked now.

    Raises:
        OSError: the file system or the system has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, "this system has no file locks") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flush_folder(folder: Path) -> None:
    """Writes the folder's entries to the disk, so that renames in it survive a power failure, where it can."""
    try:
        file = OpenFile(folder)
    except PermissionError:  # a folder that may be written but not read
        return
    _fsync(file.fd)


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def to_json(content: Any) -> bytes:
    """Indented UTF-8 JSON. File names that are not UTF-8 hold lone surrogates, which are written as escapes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_file(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all, see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    write_file(path, to_json(content))


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
        self.fd = os.open(path, flags, 0o666)
        weakref.finalize(self, os.close, self.fd).atexit = False  # at the exit threads may still read

    def pread(self, num_bytes: int, start: int) -> bytes:
        """As os.pread. The call holds a reference, so that the descriptor cannot be closed and reused meanwhile."""
        return os.pread(self.fd, num_bytes, start)

    def preadv(self, buffers: Sequence[Any], start: int, flags: int = 0) -> int:
        """As os.preadv."""
        return os.preadv(self.fd, buffers, start, flags)


class FolderLock:
    """An exclusive lock (flock) on a folder, released when the object is deleted or the process ends in any way.

    Raises BlockingIOError if another process still holds it after `seconds`. Only warns where the file system or the
    system has no locks. Some network disks grant every lock to everybody: there `claim` and `check_alone` find out.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path = folder / LOCK
        self._file = self._open()
        deadline = time.monotonic() + seconds
        while not (self._try() and self.is_held()):
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing in this folder", str(folder))
            time.sleep(0.1)
            if not self.is_held():  # the process that held the lock has moved the folder
                self._file = self._open()

    def _open(self) -> OpenFile:
        return OpenFile(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))

    def _read_owner(self) -> bytes:
        """Of a new descriptor: network disks look for what others have written when a file is opened."""
        return self._open().pread(OWNER_BYTES, 0)

    def claim(self) -> None:
        """Writes into the lock's file who has it, for `check_alone` of whoever thinks so too."""
        with suppress(OSError):  # a full disk
            os.pwrite(self._file.fd, secrets.token_hex(OWNER_BYTES // 2).encode(), 0)
            os.fsync(self._file.fd)
        self._owner = self._read_owner()

    def check_alone(self) -> None:
        """Raises BlockingIOError if another process has claimed the folder since `claim`."""
        if self._read_owner() != self._owner:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process writes in this folder too, as the disk's locks do"
                                  " not keep it out", str(self.path.parent))

    def _try(self) -> bool:
        try:
            return lock_file(self._file.fd)
        except OSError as error:
            logger.warning("%s: cannot lock it (%s): let only one process write in it", self.path.parent, error)
            return True

    def is_held(self) -> bool:
        """Whether the path still leads to the locked folder, which may have been deleted or replaced since."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fd))
        except FileNotFoundError:
            return False
