"""The index of a split: where each sample's members lie in its shard, and a hash of its bytes. One row a sample.

With it any shard can be read by ranges, and what came can be checked; shards of ours and of others alike.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from srcnn.members import BLOCK_BYTES
from srcnn.sample import IndexFile, Manifest, Shard, ShardError
from srcnn.untrusted import open_regular

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
MAX_TAR_HEADER_BYTES = 1 << 20  # of a long name, or of the attributes of a member
_KEY = re.compile(r"(?!__[^/]*__/)((?:.*/)?[^./]+)\.([^/]+)")  # webdataset's: the first dot of the base name ends it


def hash_of(*parts: Any) -> int:
    """XXH3, 64 bits, of bytes in one or more parts: some ten times as fast as any hash of the standard library."""
    if len(parts) == 1:
        return xxhash.xxh3_64_intdigest(parts[0])
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def index_tar(path: Path, members: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """The rows and the keys of a shard's samples; `members` are the names after the key, clean and degraded,
    or clean alone.

    Raises:
        ShardError: no plain and whole tar, half a pair, a key that comes twice; each of them is named.
    """
    _, rows, keys, problems = scan_tar(path, members)
    if problems:
        raise ShardError("\n".join(problems))
    return rows, keys


def scan_tar(path: Path, members: tuple[str, ...]) -> tuple[memoryview, np.ndarray, list[str], list[str]]:
    """A shard's content (mapped), the rows and the keys of its whole samples, and what is wrong with it or them."""
    rows, keys, seen = [], [], set()
    content, samples, problems = _samples(path)
    for key, found in samples:
        missing = [name for name in members if name not in found]
        if missing:
            problems.append(f"{key}: has {', '.join(sorted(found))} but no {' and no '.join(missing)}")
        elif key in seen or max(map(len, found.values())) > 1:
            problems.append(f"{key}: comes twice")
        elif (span := _span(found)).stop - span.start > MAX_SAMPLE_BYTES:
            problems.append(f"{key}: has {span.stop - span.start} bytes, more than {MAX_SAMPLE_BYTES}")
        else:
            start, stop = span.start, span.stop
            places = [(found[name][0].offset_data - start, found[name][0].size) for name in members]
            rows.append(index_row(start, stop - start, places, hash_of(content[start:stop])))
            keys.append(key)
        seen.add(key)
    return content, np.array(rows, ROW), keys, [f"{path}: {problem}" for problem in problems]


def index_row(start: int, num_bytes: int, places: Sequence[tuple[int, int]], hashed: int) -> tuple[int, ...]:
    """A `ROW` of a sample; `places` are (where, length) of its members."""
    clean, degraded = places[0], places[1] if len(places) > 1 else (0, 0)
    return (start, num_bytes, *clean, *degraded, hashed)


def _span(found: dict[str, list[tarfile.TarInfo]]) -> range:
    """The bytes from the first header to the end of the last member's padding."""
    start = min(member.offset for (member,) in found.values())
    return range(start, max(member.offset_data + _padded(member.size) for (member,) in found.values()))


def names_in(path: Path) -> set[str]:
    """What follows the keys in a shard; nothing where it cannot be read."""
    return {name for _, found in _samples(path)[1] for name in found}


Samples = list[tuple[str, dict[str, list[tarfile.TarInfo]]]]


def _samples(path: Path) -> tuple[memoryview, Samples, list[str]]:
    """The content of a tar, its members of the same key by what follows the key, and what is wrong with it."""
    content = memoryview(b"")
    try:
        with open_regular(path) as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        headers: Any = _Headers(content)  # reads, tells and seeks, which is all that tarfile needs
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            samples, problems = _grouped(tar)
            end, rest = tar.offset, content[tar.offset :]
    except OSError:
        raise
    except Exception as error:  # tarfile raises ValueError, OverflowError, RecursionError, IndexError, ... too
        return content, [], [f"not a plain tar that can be read: {error}"]
    if not any(rest[:BLOCK_BYTES]) and any(rest):
        problems.append(f"ends at byte {end}, but there is more behind; take apart tars that were put together")
    elif not problems and (not rest or any(rest)):  # tarfile takes this for an end
        problems.append(f"is {'damaged' if rest else 'cut off'} at byte {end}: no member there, nor the tar's end")
    return content, samples, problems


class _Headers:
    """The content of a tar as a file to read its headers from, which are short.

    tarfile takes the length of names and attributes from the headers, and before Python 3.11.10 takes a time that grows
    with the square of the digits in a row in attributes (CVE-2024-6232).
    """

    def __init__(self, content: memoryview) -> None:
        self._content, self._place = content, 0

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        found = bytes(self._content[self._place : self._place + num_bytes])
        if num_bytes > BLOCK_BYTES and re.search(rb"\d{200}", found):
            raise tarfile.ReadError("attributes of hundreds of digits")
        self._place += len(found)
        return found

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or not 0 <= place <= len(self._content):
            raise tarfile.ReadError("unexpected end of data")
        self._place = place
        return place


def _grouped(tar: tarfile.TarFile) -> tuple[Samples, list[str]]:
    """Neighbouring members of a key as webdataset groups them: what follows the key is taken in lower case."""
    samples: Samples = []
    problems = []
    try:
        for member in tar:
            if member.size < 0:  # which would lead back to it, for ever (CVE-2025-8194)
                raise tarfile.ReadError(f"a member of {member.size} bytes")
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


def index_header(num_samples: int) -> bytes:
    """The start of an index file, npy format 1.0; the rows follow."""
    description = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (num_samples,)}
    text = "{" + "".join(f"'{key}': {value!r}, " for key, value in description.items()) + "}"
    length = -(-(len(text) + 11) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


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
