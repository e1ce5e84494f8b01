"""Files that appear under their name whole or not at all, their hashes, and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY_PREFIX = ".writing-"


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


def write_json(path: Path, content: Any) -> None:
    # A file name that is no UTF-8 comes as lone surrogates, which only an escape can hold.
    with atomic_file(path) as file:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        file.write(text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Raises ValueError, naming the file, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error


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
