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
_KEY = re.compile(r"(?!__[^/]*__/)((?:.*/)?[^./]+)\.([^/]+)")  # webdataset's: the first dot of the base name ends it


def hash_of(content: bytes | memoryview) -> int:
    """XXH3, 64 bits: some ten times as fast as any hash of the standard library."""
    return xxhash.xxh3_64_intdigest(content)


def index_tar(path: Path, members: tuple[str, str]) -> tuple[np.ndarray, list[str]]:
    """The rows and the keys of a shard's samples; `members` are the names after the key, clean and degraded.

    Raises:
        ShardError: no plain and whole tar, half a pair, a key that comes twice; each of them is named.
    """
    rows, keys, problems = scan_tar(path, members)
    if problems:
        raise ShardError("\n".join(problems))
    return rows, keys


def scan_tar(path: Path, members: tuple[str, str]) -> tuple[np.ndarray, list[str], list[str]]:
    """The rows and the keys of a shard's whole samples, and what is wrong with the others or with the shard."""
    rows, keys, seen = [], [], set()
    content, samples, problems = _samples(path)
    for key, found in samples:
        missing = [name for name in members if name not in found]
        if missing:
            problems.append(f"{key}: has {', '.join(sorted(found))} but no {' and no '.join(missing)}")
        elif key in seen or max(map(len, found.values())) > 1:
            problems.append(f"{key}: comes twice")
        else:
            start = min(member.offset for (member,) in found.values())
            stop = max(member.offset_data + _padded(member.size) for (member,) in found.values())
            places = [(found[name][0].offset_data - start, found[name][0].size) for name in members]
            rows.append((start, stop - start, *places[0], *places[1], hash_of(content[start:stop])))
            keys.append(key)
        seen.add(key)
    return np.array(rows, ROW), keys, [f"{path}: {problem}" for problem in problems]


def names_in(path: Path) -> set[str]:
    """What follows the keys in a shard; nothing where it cannot be read."""
    return {name for _, found in _samples(path)[1] for name in found}


Samples = list[tuple[str, dict[str, list[tarfile.TarInfo]]]]


def _samples(path: Path) -> tuple[memoryview, Samples, list[str]]:
    """The content of a tar, its members of the same key by what follows the key, and what is wrong with it."""
    with path.open("rb") as file:
        try:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            with tarfile.open(path, "r:") as tar:
                samples, problems = _grouped(tar)
                end, rest = tar.offset, content[tar.offset :]
        except (tarfile.TarError, ValueError) as error:
            return memoryview(b""), [], [f"not a plain tar that can be read: {error}"]
    if not any(rest[:BLOCK_BYTES]) and any(rest):
        problems.append(f"ends at byte {end}, but there is more behind; take apart tars that were put together")
    elif not problems and (not rest or any(rest)):  # tarfile takes this for an end
        problems.append(f"is {'damaged' if rest else 'cut off'} at byte {end}: no member there, nor the tar's end")
    return content, samples, problems


def _grouped(tar: tarfile.TarFile) -> tuple[Samples, list[str]]:
    """Neighbouring members of a key as webdataset groups them: what follows the key is taken in lower case."""
    samples: Samples = []
    problems = []
    try:
        for member in tar:
            match = _KEY.fullmatch(member.name)
            if not member.isreg() or match is None:
                continue
            if not samples or samples[-1][0] != match[1]:
                samples.append((match[1], {}))
            samples[-1][1].setdefault(match[2].lower(), []).append(member)
            if member.issparse():
                problems.append(f"{member.name}: is stored without its holes; make the tar without --sparse")
    except tarfile.ReadError as error:
        if not samples:
            raise
        return samples[:-1], [f"{samples[-1][0]}: cannot be read: {error}"]
    return samples, problems


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
    found = hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else files.sha256_of(file)
    if found != manifest.index.sha256:
        raise ShardError(f"{where}: not the index the manifest names; copy both again")
    if isinstance(file, Path):
        return _map_rows(file, manifest, where)
    with tempfile.NamedTemporaryFile(prefix="srcnn-index-", suffix=".npy") as copy:
        copy.write(file)
        copy.flush()
        return _map_rows(Path(copy.name), manifest, where)


def _map_rows(file: Path, manifest: Manifest, where: str) -> np.ndarray:
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ShardError(f"{where}: damaged: {error}; copy it again") from error
    if rows.dtype != ROW or rows.shape != (manifest.num_samples,):
        found = f"{rows.shape} rows of {rows.dtype}"
        raise ShardError(f"{where}: no index of {manifest.num_samples} samples ({found}); copy it again")
    return np.asarray(rows)  # still mapped; slices of a plain array cost half
