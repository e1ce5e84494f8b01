"""Writes shards as tar files with webdataset's TarWriter, and indexes the tar files of any shards."""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from srcnn.data.index import INDEX_DTYPE, MAX_SAMPLE_BYTES, hash_bytes, hash_entries, index_entry
from srcnn.data.manifest import (
    BLOCK_BYTES,
    MEMBERS,
    Shard,
    ShardError,
    TileEncoding,
    encode_tile,
    padded_bytes,
    sample_key,
)
from srcnn.runtime.untrusted import open_regular

MAX_TAR_HEADER_BYTES = 1 << 20  # of a long name, or of the attributes of a member
_KEY = re.compile(r"(?!__[^/]*__/)((?:.*/)?[^./]+)\.([^/]+)")  # as in webdataset: up to the first dot of the base name
# (key, {file extension: its members}) of each sample; more than one member has an extension if a key is repeated
Samples = list[tuple[str, dict[str, list[tarfile.TarInfo]]]]


def _import_tar_writer() -> Any:
    """webdataset.TarWriter, loaded from its file: the package's `__init__` imports torch, 1.3 s of CPU per worker."""
    package = importlib.util.find_spec("webdataset")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("writing shards needs the package webdataset", name="webdataset")
    name, path = "webdataset_writer", Path(package.origin).with_name("writer.py")
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TarWriter


TarWriter = _import_tar_writer()


def write_tar(
    file: IO[bytes], name: str, samples: Iterable[tuple[int, tuple[np.ndarray, ...]]], encoding: TileEncoding
) -> tuple[Shard, np.ndarray]:
    """Writes samples as a plain USTAR tar whose bytes do not depend on time, user or machine.

    Args:
        file: open for writing and reading, at its start.
        name: file name of the shard.
        samples: for each, its number in the split and its tiles: clean and degraded, or clean only.

    Returns:
        The manifest's record of the shard, and its index entries.
    """
    spans: list[tuple[int, int, list[tuple[int, int]]]] = []  # of each sample: start, size, (start, size) of contents
    start = 0
    with TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0) as writer:
        for number, tiles in samples:
            contents = {part: encode_tile(tile, encoding) for part, tile in zip(MEMBERS[encoding], tiles)}
            writer.write({"__key__": sample_key(number), **contents})
            members, num_bytes = [], 0
            for content in contents.values():
                members.append((num_bytes + BLOCK_BYTES, len(content)))
                num_bytes += BLOCK_BYTES + padded_bytes(len(content))
            spans.append((start, num_bytes, members))
            start += num_bytes
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        entries = np.array([index_entry(start, num_bytes, members, hash_bytes(mapped[start : start + num_bytes]))
                            for start, num_bytes, members in spans], INDEX_DTYPE)
        sha256 = hashlib.sha256(mapped).hexdigest()
        return Shard(name, len(mapped), sha256, len(entries), hash_entries(entries)), entries


def index_tar(path: Path, members: tuple[str, ...]) -> np.ndarray:
    """The index entries of a shard's samples; `members` are the file extensions of a sample's members.

    Raises:
        ShardError: not a complete plain tar, samples that lack a member, repeated keys; names all of them.
    """
    _, entries, _, problems = scan_tar(path, members)
    if problems:
        raise ShardError("\n".join(problems))
    return entries


def scan_tar(path: Path, members: tuple[str, ...]) -> tuple[memoryview, np.ndarray, list[str], list[str]]:
    """Returns (memory-mapped content, index entries, keys, problems); entries and keys are of the usable samples."""
    entries, keys, seen = [], [], set()
    content, samples, problems = _read_samples(path)
    num_groups = Counter(key for key, _ in samples)
    for key, found in samples:
        missing = [name for name in members if name not in found]
        if num_groups[key] > 1 and missing:
            if key not in seen:
                problems.append(f"{key}: its members are not adjacent; make the tar with `tar --sort=name`")
        elif missing:
            problems.append(f"{key}: has {', '.join(sorted(found))} but no {' and no '.join(missing)}")
        elif key in seen or max(map(len, found.values())) > 1:
            problems.append(f"{key}: occurs twice")
        else:
            start = min(member.offset for (member,) in found.values())
            stop = max(member.offset_data + padded_bytes(member.size) for (member,) in found.values())
            if stop - start > MAX_SAMPLE_BYTES:
                problems.append(f"{key}: has {stop - start} bytes, more than {MAX_SAMPLE_BYTES}")
            else:
                contents = [(found[name][0].offset_data - start, found[name][0].size) for name in members]
                entries.append(index_entry(start, stop - start, contents, hash_bytes(content[start:stop])))
                keys.append(key)
        seen.add(key)
    return content, np.array(entries, INDEX_DTYPE), keys, [f"{path}: {problem}" for problem in problems]


def member_names(path: Path) -> set[str]:
    """The file extensions after the keys in a shard; none if it cannot be read."""
    return {name for _, found in _read_samples(path)[1] for name in found}


def _read_samples(path: Path) -> tuple[memoryview, Samples, list[str]]:
    """Reads the headers of a tar; returns (memory-mapped content, samples, problems)."""
    content = memoryview(b"")
    try:
        with open_regular(path) as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        headers: Any = _HeaderFile(content)  # has read, tell and seek, which is all that tarfile needs
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            samples, problems = _group_members(tar)
            end, rest = tar.offset, content[tar.offset :]
    except OSError:
        raise
    except Exception as error:  # tarfile also raises ValueError, OverflowError, RecursionError, IndexError, ...
        return content, [], [f"cannot be read as an uncompressed tar: {error}"]
    if not any(rest[:BLOCK_BYTES]) and any(rest):
        problems.append(f"ends at byte {end}, but more follows; separate concatenated tar files")
    elif not problems and (not rest or any(rest)):  # tarfile mistakes this for the end
        problems.append(f"is {'damaged' if rest else 'truncated'} at byte {end}: no member and no end of the tar there")
    return content, samples, problems


class _HeaderFile:
    """A file object over a tar that only allows short reads, as needed for headers.

    tarfile trusts the lengths of names and attributes, and before Python 3.11.10 its time is quadratic in the number
    of consecutive digits in attributes (CVE-2024-6232).
    """

    def __init__(self, content: memoryview) -> None:
        self._content, self._position = content, 0

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        found = bytes(self._content[self._position : self._position + num_bytes])
        if num_bytes > BLOCK_BYTES and re.search(rb"\d{200}", found):
            raise tarfile.ReadError("attributes with hundreds of consecutive digits")
        self._position += len(found)
        return found

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or not 0 <= position <= len(self._content):
            raise tarfile.ReadError("unexpected end of data")
        self._position = position
        return position


def _group_members(tar: tarfile.TarFile) -> tuple[Samples, list[str]]:
    """Groups consecutive members of the same key, as webdataset does, with extensions in lower case."""
    samples: Samples = []
    problems = []
    try:
        for member in tar:
            if member.size < 0:  # an endless loop (CVE-2025-8194)
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            match = _KEY.fullmatch(member.name)
            if not member.isreg() or match is None:
                continue
            if not samples or samples[-1][0] != match[1]:
                samples.append((match[1], {}))
            samples[-1][1].setdefault(match[2].lower(), []).append(member)
            if member.issparse():
                problems.append(f"{member.name}: is a sparse file; make the tar without --sparse")
    except tarfile.ReadError as error:
        if not samples:
            raise
        return samples[:-1], [f"{samples[-1][0]}: cannot be read: {error}"]
    return samples, problems
