"""The index of a split: where each sample's members lie in its shard, and a hash of its bytes. One row a sample.

With it any shard can be read by ranges, and what came can be checked; shards of ours and of others alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash

from srcnn.data.manifest import IndexFile, Manifest, Shard, ShardError, check_shard_size, encode_npy_header
from srcnn.runtime.object_store import ObjectStore
from srcnn.runtime.storage import Folder

INDEX = "index.npy"
ROW = np.dtype(
    [
        ("start", "<u8"),  # of the sample's first header in the shard
        ("bytes", "<u4"),  # from there to the end of its last member's padding
        ("clean", "<u4"),  # contents, from `start` on
        ("clean_bytes", "<u4"),
        ("degraded", "<u4"),  # 0, like its length, where there is a clean one only
        ("degraded_bytes", "<u4"),
        ("hash", "<u8"),  # XXH3 of all its bytes, headers and padding too
    ]
)
MAX_SAMPLE_BYTES = 256 << 20  # of a pair as it lies in a shard, headers and all between its members


def hash_of(*parts: Any) -> int:
    """XXH3, 64 bits, of bytes in one or more parts: some ten times as fast as any hash of the standard library."""
    if len(parts) == 1:
        return xxhash.xxh3_64_intdigest(parts[0])
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def index_row(start: int, num_bytes: int, places: Sequence[tuple[int, int]], hashed: int) -> tuple[int, ...]:
    """A `ROW` of a sample; `places` are (where, length) of its members."""
    clean, degraded = places[0], places[1] if len(places) > 1 else (0, 0)
    return (start, num_bytes, *clean, *degraded, hashed)


def index_header(num_samples: int) -> bytes:
    """The start of an index file; the rows follow."""
    return encode_npy_header((num_samples,), repr(np.lib.format.dtype_to_descr(ROW)))


def encode_index(rows: np.ndarray) -> bytes:
    """The content of an index file."""
    return index_header(len(rows)) + rows.tobytes()


def index_entry(num_samples: int) -> IndexFile:
    """What the manifest says of the index of so many samples."""
    return IndexFile(INDEX, len(index_header(num_samples)) + num_samples * ROW.itemsize)


def hash_of_rows(rows: np.ndarray) -> str:
    """sha256, for the manifest's entry of their shard."""
    return hashlib.sha256(np.ascontiguousarray(rows).view(np.uint8).data).hexdigest()


def row_problem(rows: np.ndarray, manifest: Manifest, shard: Shard) -> str:
    """Why these cannot be neighbouring samples of that shard; "" where they can."""
    starts, num_bytes = rows["start"], rows["bytes"].astype(np.uint64)
    if np.any(starts > shard.bytes) or np.any(starts + num_bytes > shard.bytes):
        return "lies behind the shard's end"
    if np.any(starts[1:] < (starts + num_bytes)[:-1]):
        return "lies before another one's end"
    if manifest.stride is not None:
        return "" if np.all(num_bytes == manifest.stride) else "is not as long as tiles are"
    ends = [rows[part].astype(np.uint64) + rows[f"{part}_bytes"] for part in ("clean", "degraded")]
    if any(np.any(end > num_bytes) for end in ends) or np.any(num_bytes > MAX_SAMPLE_BYTES):
        return f"has members that lie outside of it, or more than {MAX_SAMPLE_BYTES} bytes"
    return ""


WHOLE_BYTES = 512 << 20  # of an index that comes from an object store in one piece: 15 million samples
MAX_CACHED_ROWS = 16 << 20  # of one that comes shard by shard, 600 MB
READ_ATTEMPTS = 3  # of what arrives but does not match its hash


class IndexReader:
    """The index of a split's shards, each shard's checked against the manifest when it is first needed; safe to use
    from several threads. No process needs it all: that of ten million photos has 23 GB.

    In a folder it stays in its file, mapped. From an object store a small one comes whole, of a large one the rows of
    each shard when they are needed.

    Raises:
        ShardError: no index of these shards; damage within it shows when the rows are read.
    """

    def __init__(self, storage: Folder | ObjectStore, manifest: Manifest) -> None:
        self._storage, self._manifest = storage, manifest
        self._starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        self._is_checked = np.zeros(len(manifest.shards), bool)
        self._all: np.ndarray | None = None
        self.where = f"{storage.location}/{manifest.index.name}"
        self._header = index_header(manifest.num_samples)
        largest = max((shard.num_samples for shard in manifest.shards), default=1)
        self._cached = lru_cache(max(1, MAX_CACHED_ROWS // max(1, largest)))(self._read_shard)
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
            self._all = self._read_whole()
            self._is_checked[:] = True
        else:
            self._check_header(self._storage.read_range(entry.name, 0, len(self._header), entry.bytes))

    def _read_whole(self) -> np.ndarray:
        """All rows from an object store; read again where some do not match, which may be the network's fault."""
        for _ in range(READ_ATTEMPTS):
            content = self._storage.read(self._manifest.index.name, self._manifest.index.bytes)
            if len(content) == self._manifest.index.bytes and content.startswith(self._header):
                rows = np.frombuffer(content, ROW, offset=len(self._header))
                if all(self._fits(number, part) for number, part in enumerate(np.split(rows, self._starts[1:-1]))):
                    return rows
        self._check_header(content)
        raise self._mismatch("")

    def _check_header(self, content: Any) -> None:
        if bytes(content[: len(self._header)]) != self._header:
            raise ShardError(f"{self.where}: no index of {self._manifest.num_samples} samples; copy it again")

    def _fits(self, number: int, rows: np.ndarray) -> bool:
        return hash_of_rows(rows) == self._manifest.shards[number].index_sha256

    def _mismatch(self, of: str) -> ShardError:
        return ShardError(f"{self.where}: not the index{of} that the manifest names; copy both again")

    def of_shard(self, number: int) -> np.ndarray:
        """The rows of a shard, checked. Raises ShardError where they are not those, ReadFailed where not to be read."""
        if self._all is None:
            return self._cached(number)
        rows = self._all[self._starts[number] : self._starts[number + 1]]
        if not self._is_checked[number]:
            if not self._fits(number, rows):
                raise self._mismatch(f" of {self._manifest.shards[number].name}")
            self._is_checked[number] = True
        return rows

    def _read_shard(self, number: int) -> np.ndarray:
        entry = self._manifest.index
        start, stop = (len(self._header) + self._starts[number : number + 2] * ROW.itemsize).tolist()
        for _ in range(READ_ATTEMPTS):
            rows = np.frombuffer(self._storage.read_range(entry.name, start, stop, entry.bytes), ROW)
            if self._fits(number, rows):
                return rows
        raise self._mismatch(f" of {self._manifest.shards[number].name}")

    def hashes(self, samples: np.ndarray, numbers: np.ndarray) -> list[int]:
        """The hashes of samples (N,) that lie in the shards of these numbers (N,), of an index in a folder."""
        assert self._all is not None
        for number in np.unique(numbers[~self._is_checked[numbers]]).tolist():
            self.of_shard(number)
        found: list[int] = self._all["hash"][samples].tolist()
        return found
