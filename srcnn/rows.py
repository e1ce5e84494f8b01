"""The rows of a split's index as they are wanted, each shard's checked against the manifest when it first is.

No reader needs them all: those of ten million photos are 23 GB.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from srcnn.index import ROW, hash_of_rows, index_entry, index_header
from srcnn.sample import Manifest, ShardError, check_shard_size
from srcnn.storage import Folder, ObjectStore

WHOLE_BYTES = 512 << 20  # of an index that comes from an object store in one piece: 15 million samples
MOST_ROWS_KEPT = 16 << 20  # of those that come shard by shard, 600 MB
READ_ATTEMPTS = 3  # of what arrives but does not match its hash


class Rows:
    """The index of a split's shards; safe to use from several threads.

    In a folder it stays in its file, mapped. From an object store a small one comes whole, of a large one the rows of
    each shard when they are wanted.

    Raises:
        ShardError: no index of these shards; damage within it shows when the rows are wanted.
    """

    def __init__(self, storage: Folder | ObjectStore, manifest: Manifest) -> None:
        self._storage, self._manifest = storage, manifest
        self._starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        self._is_checked = np.zeros(len(manifest.shards), bool)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._num_kept = 0
        self._all: np.ndarray | None = None
        self.where = f"{storage.location}/{manifest.index.name}"
        self._header = index_header(manifest.num_samples)
        if manifest.index != index_entry(manifest.num_samples):
            raise ShardError(f"{self.where}: no index of {manifest.num_samples} samples; copy both again")
        try:
            self._open()
        except FileNotFoundError as error:
            raise ShardError(f"{self.where}: is missing; copy it again") from error

    def _open(self) -> None:
        entry, is_empty = self._manifest.index, not self._manifest.num_samples
        if isinstance(self._storage, Folder):
            path = self._storage.path / entry.name
            check_shard_size(path, entry)
            self._check_header(self._storage.read_range(entry.name, 0, len(self._header)))
            # Slices of a plain array cost half of those of a memmap, and are still mapped.
            self._all = np.empty(0, ROW) if is_empty else np.asarray(np.memmap(path, ROW, "r", len(self._header)))
        elif entry.bytes <= WHOLE_BYTES:
            self._all = self._whole()
            self._is_checked[:] = True
        else:
            self._check_header(self._storage.read_range(entry.name, 0, len(self._header), entry.bytes))

    def _whole(self) -> np.ndarray:
        """All rows from an object store; read again where some do not match, which may be the way's fault."""
        for _ in range(READ_ATTEMPTS):
            content = self._storage.read(self._manifest.index.name, self._manifest.index.bytes)
            if len(content) == self._manifest.index.bytes and content.startswith(self._header):
                rows = np.frombuffer(content, ROW, offset=len(self._header))
                parts = [rows[start:stop] for start, stop in zip(self._starts, self._starts[1:])]
                if all(self._fits(number, part) for number, part in enumerate(parts)):
                    return rows
        self._check_header(content)
        raise self._wrong()

    def _check_header(self, content: Any) -> None:
        if bytes(content[: len(self._header)]) != self._header:
            raise ShardError(f"{self.where}: no index of {self._manifest.num_samples} samples; copy it again")

    def _fits(self, number: int, rows: np.ndarray) -> bool:
        return hash_of_rows(rows) == self._manifest.shards[number].index_sha256

    def _wrong(self, number: int | None = None) -> ShardError:
        name = "" if number is None else f" of {self._manifest.shards[number].name}"
        return ShardError(f"{self.where}: not the index{name} that the manifest names; copy both again")

    def of_shard(self, number: int) -> np.ndarray:
        """The rows of a shard, checked. Raises ShardError where they are not those, ReadFailed where not to be read."""
        start, stop = self._starts[number : number + 2].tolist()
        if self._all is not None:
            rows = self._all[start:stop]
            if not self._is_checked[number]:
                if not self._fits(number, rows):
                    raise self._wrong(number)
                self._is_checked[number] = True
            return rows
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        rows = self._fetched(number, start, stop)
        with self._lock:
            if number not in self._kept:
                self._kept[number] = rows
                self._num_kept += len(rows)
            while self._num_kept > MOST_ROWS_KEPT and len(self._kept) > 1:
                self._num_kept -= len(self._kept.popitem(last=False)[1])
        return rows

    def _fetched(self, number: int, start: int, stop: int) -> np.ndarray:
        entry, begin = self._manifest.index, len(self._header)
        for _ in range(READ_ATTEMPTS):
            first, last = begin + start * ROW.itemsize, begin + stop * ROW.itemsize
            rows = np.frombuffer(self._storage.read_range(entry.name, first, last, entry.bytes), ROW)
            if self._fits(number, rows):
                return rows
        raise self._wrong(number)

    def hashes(self, samples: np.ndarray, numbers: np.ndarray) -> list[int]:
        """The hashes of samples (N,) that lie in the shards of these numbers (N,), of an index in a folder."""
        assert self._all is not None
        unchecked = numbers[~self._is_checked[numbers]]
        for number in np.unique(unchecked).tolist() if len(unchecked) else ():
            self.of_shard(number)
        found: list[int] = self._all["hash"][samples].tolist()
        return found
