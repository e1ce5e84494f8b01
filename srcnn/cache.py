"""A bounded cache on a local disk for ranges of remote files, shared by the processes of a machine without locks."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from srcnn.files import OpenFile

logger = logging.getLogger(__name__)


class SparseCache:
    """What was read of a long sequence of bytes, kept at its place in one sparse file, up to a limit.

    The content at a place is always the same, so processes may write it over each other; a place beyond the limit is
    never kept (over whole passes through everything, no way of evicting keeps more); and whoever reads checks what
    comes against hashes, so that a hole, a half-written or a damaged place counts as absent.

    Attributes:
        num_bytes: the limit.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path.expanduser()
        self.num_bytes = num_bytes
        self._file: OpenFile | None = None
        self._lock, self._given_up = threading.Lock(), False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)  # nothing is written elsewhere
        except OSError as error:
            self._give_up(error)

    def read(self, start: int, stop: int) -> bytes | None:
        """What lies there, unchecked; None beyond the limit or the end of the file."""
        file = self._file
        if file is None or stop > self.num_bytes:
            return None
        try:
            content = file.pread(stop - start, start)
        except OSError as error:
            self._give_up(error)
            return None
        return content if len(content) == stop - start else None

    def write(self, start: int, content: Any) -> None:
        """Keeps it if it lies below the limit. A full or failing disk ends the keeping with a warning."""
        file = self._file
        if file is None or start + len(content) > self.num_bytes:
            return
        try:
            written = os.pwrite(file.number, content, start)
            if written < len(content):  # the next attempt says why
                os.pwrite(file.number, memoryview(content)[written:], start + written)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            self._file, first = None, not self._given_up
            self._given_up = True
        if first:
            logger.warning("%s: not used as a cache: %s", self.path, error)
