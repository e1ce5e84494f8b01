"""The index of a split: where each sample's members lie in its shard, and a hash of its bytes. One row a sample.

With it any shard can be read by ranges, and what came can be checked; shards of ours and of others alike.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from srcnn import files
from srcnn.sample import BLOCK_BYTES, IndexFile, Manifest, ShardError

INDEX = "index.npy"
ROW = np.dtype(
    [
        ("start", "<u8"),  # of the sample's first header in the shard
        ("bytes", "<u4"),  # from there to the end of its last member's padding
        ("clean", "<u4"),  # contents, from `start` on
        ("clean_bytes", "<u4"),
        ("degraded", "<u4"),
        ("degraded_bytes", "<u4"),
        ("hash", "<u8"),  # XXH3 of all its bytes, headers and padding too
    ]
)
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # webdataset's rule: the first dot of the base name ends the key


def hash_of(content: bytes | memoryview) -> int:
    """XXH3, 64 bits: some ten times as fast as any hash of the standard library."""
    return xxhash.xxh3_64_intdigest(content)


def index_tar(path: Path, members: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
    """The rows and the keys of a shard's samples; `members` are the names after the key, clean and degraded.

    Raises:
        ShardError: no plain tar, half a pair, a key that comes twice.
    """
    rows, keys = [], []
    with path.open("rb") as file:
        try:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            samples = list(_samples(path))
        except (tarfile.TarError, ValueError) as error:
            raise ShardError(f"{path}: not a plain tar that can be read: {error}") from error
    for key, found in samples:
        missing = [name for name in members if name not in found]
        if missing:
            raise ShardError(f"{path}: {key}: has {', '.join(sorted(found))} but no {' and no '.join(missing)}")
        start = min(member.offset for member in found.values())
        stop = max(member.offset_data + _padded(member.size) for member in found.values())
        if stop > len(content):
            raise ShardError(f"{path}: {key}: cut off at byte {len(content)}")
        places = [(found[name].offset_data - start, found[name].size) for name in members]
        rows.append((start, stop - start, *places[0], *places[1], hash_of(content[start:stop])))
        keys.append(key)
    if len(set(keys)) != len(keys):
        raise ShardError(f"{path}: {next(key for key in keys if keys.count(key) > 1)}: comes twice")
    return np.array(rows, ROW), keys


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members of the same key, by what follows the key."""
    before = None
    found: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            match = _KEY.fullmatch(member.name)
            if not member.isreg() or match is None:
                continue
            if match[1] != before and found:
                yield str(before), found
                found = {}
            before = match[1]
            found[match[2]] = member
    if found:
        yield str(before), found


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def encode_index(rows: np.ndarray) -> bytes:
    """The content of an index file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_index(folder: Path, rows: np.ndarray) -> IndexFile:
    """Writes a split's index; returns its entry in the manifest."""
    content = encode_index(rows)
    with files.atomic_file(folder / INDEX) as file:
        file.write(content)
    return IndexFile(INDEX, len(content), hashlib.sha256(content).hexdigest())


def open_index(file: Path | bytes, manifest: Manifest, where: str) -> np.ndarray:
    """The rows of an index, checked against the manifest; they stay in a file that is mapped.

    Raises:
        ShardError: no index of these shards.
    """
    if isinstance(file, bytes):
        if hashlib.sha256(file).hexdigest() != manifest.index.sha256:
            raise ShardError(f"{where}: not the index the manifest names; copy both again")
        with tempfile.NamedTemporaryFile(prefix="srcnn-index-", suffix=".npy") as copy:
            copy.write(file)
            copy.flush()
            return open_index(Path(copy.name), manifest, where)
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ShardError(f"{where}: damaged: {error}; copy it again") from error
    if rows.dtype != ROW or rows.shape != (manifest.num_samples,):
        found = f"{rows.shape} rows of {rows.dtype}"
        raise ShardError(f"{where}: no index of {manifest.num_samples} samples ({found}); copy it again")
    return rows
