"""The index of a split: for each sample, where its members lie in its shard and a hash of its bytes.

With the index, samples of any shard can be read by byte ranges and verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash

from srcnn.data.manifest import IndexFile, Manifest, Shard, ShardError, check_file_size, encode_npy_header
from srcnn.runtime.storage import Folder, Storage

INDEX = "index.npy"
INDEX_DTYPE = np.dtype(
    [
        ("start", "<u8"),  # of the sample's first header, in bytes from the start of the shard
        ("bytes", "<u4"),  # from there to the end of the padding of its last member
        ("clean", "<u4"),  # contents of the members, in bytes from `start`
        ("clean_bytes", "<u4"),
        ("degraded", "<u4"),  # 0, like its length, in samples without a degraded picture
        ("degraded_bytes", "<u4"),
        ("hash", "<u8"),  # XXH3 of all bytes, including headers and padding
    ]
)
MAX_SAMPLE_BYTES = 256 << 20  # of a sample in a shard, including headers
MAX_LOADED_BYTES = 512 << 20  # a larger index in an object store (15 million samples) is read shard by shard
MAX_CACHED_ENTRIES = 16 << 20  # of an index that is read shard by shard; 600 MB
READ_ATTEMPTS = 3  # until bytes match their hash


def hash_bytes(*parts: Any) -> int:
    """The 64-bit XXH3 of the concatenated parts; about ten times as fast as the hashes of the standard library."""
    if len(parts) == 1:
        return xxhash.xxh3_64_intdigest(parts[0])
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def hash_entries(entries: np.ndarray) -> str:
    """The sha256 of a shard's index entries, as noted in the manifest."""
    return hashlib.sha256(np.ascontiguousarray(entries).view(np.uint8).data).hexdigest()


def index_entry(start: int, num_bytes: int, members: Sequence[tuple[int, int]], xxh3: int) -> tuple[int, ...]:
    """One element of INDEX_DTYPE; `members` are the (start, length) of the contents of one or two members."""
    clean, degraded = members[0], members[1] if len(members) > 1 else (0, 0)
    return (start, num_bytes, *clean, *degraded, xxh3)


def encode_index_header(num_samples: int) -> bytes:
    """The npy header of an index file."""
    return encode_npy_header((num_samples,), repr(np.lib.format.dtype_to_descr(INDEX_DTYPE)))


def encode_index(entries: np.ndarray) -> bytes:
    """The content of an index file."""
    return encode_index_header(len(entries)) + entries.tobytes()


def index_file(num_samples: int) -> IndexFile:
    """The manifest's record of the index of `num_samples` samples."""
    return IndexFile(INDEX, len(encode_index_header(num_samples)) + num_samples * INDEX_DTYPE.itemsize)


def entry_problem(entries: np.ndarray, manifest: Manifest, shard: Shard) -> str:
    """Why these cannot be the entries of neighbouring samples of the shard; "" if they can."""
    starts, num_bytes = entries["start"], entries["bytes"].astype(np.uint64)
    if np.any(starts > shard.bytes) or np.any(starts + num_bytes > shard.bytes):
        return "ends after the end of the shard"
    if np.any(starts[1:] < (starts + num_bytes)[:-1]):
        return "starts before the end of the previous sample"
    if manifest.stride is not None:
        return "" if np.all(num_bytes == manifest.stride) else "has another size than the stride of the manifest"
    ends = [entries[part].astype(np.uint64) + entries[f"{part}_bytes"] for part in ("clean", "degraded")]
    if any(np.any(end > num_bytes) for end in ends) or np.any(num_bytes > MAX_SAMPLE_BYTES):
        return f"has members outside of it, or more than {MAX_SAMPLE_BYTES} bytes"
    return ""


class IndexReader:
    """Reads the index of a split; safe to use from several threads.

    The entries of a shard are checked against the manifest when they are first needed. An index in a folder is memory
    mapped. From an object store a small index is read whole, a large one shard by shard: the index of ten million
    photos has 23 GB.

    Raises:
        ShardError: the index is missing or of other shards. Damaged entries are found when they are read.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage, self._manifest = storage, manifest
        self._starts = manifest.first_samples
        self._is_checked = np.zeros(len(manifest.shards), bool)
        self._entries: np.ndarray | None = None  # of all shards, unless they are read shard by shard
        self.path = f"{storage.location}/{manifest.index.name}"
        self._header = encode_index_header(manifest.num_samples)
        largest = max((shard.num_samples for shard in manifest.shards), default=1)
        self._cached = lru_cache(max(1, MAX_CACHED_ENTRIES // max(1, largest)))(self._read_shard)
        if manifest.index != index_file(manifest.num_samples):
            raise ShardError(f"{self.path}: is not an index of {manifest.num_samples} samples; copy it and the "
                             "manifest again")
        try:
            self._open()
        except FileNotFoundError as error:
            raise ShardError(f"{self.path}: is missing; copy it again") from error

    def _open(self) -> None:
        file = self._manifest.index
        if isinstance(self._storage, Folder):
            path = self._storage.path / file.name
            check_file_size(path, file)
            self._check_header(self._storage.read_range(file.name, 0, len(self._header)))
            if self._manifest.num_samples:
                # Slicing a plain array takes half the time of slicing a memmap; its memory is mapped all the same.
                self._entries = np.asarray(np.memmap(path, INDEX_DTYPE, "r", len(self._header)))
            else:
                self._entries = np.empty(0, INDEX_DTYPE)
        elif file.bytes <= MAX_LOADED_BYTES:
            self._entries = self._read_whole()
            self._is_checked[:] = True
        else:
            self._check_header(self._storage.read_range(file.name, 0, len(self._header), file.bytes))

    def _read_whole(self) -> np.ndarray:
        """Reads all entries from an object store; again if they do not match, as the network may have damaged them."""
        for _ in range(READ_ATTEMPTS):
            content = self._storage.read(self._manifest.index.name, self._manifest.index.bytes)
            if len(content) == self._manifest.index.bytes and content.startswith(self._header):
                entries = np.frombuffer(content, INDEX_DTYPE, offset=len(self._header))
                by_shard = np.split(entries, self._starts[1:-1])
                if all(self._matches(number, part) for number, part in enumerate(by_shard)):
                    return entries
        self._check_header(content)
        raise self._mismatch("")

    def _check_header(self, content: Any) -> None:
        if bytes(content[: len(self._header)]) != self._header:
            raise ShardError(f"{self.path}: is not an index of {self._manifest.num_samples} samples; copy it again")

    def _matches(self, number: int, entries: np.ndarray) -> bool:
        return hash_entries(entries) == self._manifest.shards[number].index_sha256

    def _mismatch(self, where: str) -> ShardError:
        return ShardError(f"{self.path}: its hash{where} is not the one in the manifest; copy both again")

    def shard_entries(self, number: int) -> np.ndarray:
        """The entries of a shard's samples, an array of INDEX_DTYPE.

        Raises:
            ShardError: they do not match the manifest.
            ReadFailed: they cannot be read.
        """
        if self._entries is None:
            return self._cached(number)
        entries = self._entries[self._starts[number] : self._starts[number + 1]]
        if not self._is_checked[number]:
            if not self._matches(number, entries):
                raise self._mismatch(f" for {self._manifest.shards[number].name}")
            self._is_checked[number] = True
        return entries

    def _read_shard(self, number: int) -> np.ndarray:
        file = self._manifest.index
        start, stop = (len(self._header) + self._starts[number : number + 2] * INDEX_DTYPE.itemsize).tolist()
        for _ in range(READ_ATTEMPTS):
            entries = np.frombuffer(self._storage.read_range(file.name, start, stop, file.bytes), INDEX_DTYPE)
            if self._matches(number, entries):
                return entries
        raise self._mismatch(f" for {self._manifest.shards[number].name}")

    def hashes(self, samples: np.ndarray, numbers: np.ndarray) -> list[int]:
        """The hashes of samples (N,) in the shards of these numbers (N,); only for an index in a folder."""
        assert self._entries is not None
        for number in np.unique(numbers[~self._is_checked[numbers]]).tolist():
            self.shard_entries(number)
        found: list[int] = self._entries["hash"][samples].tolist()
        return found
