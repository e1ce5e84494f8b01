"""Shards as tar files: written by webdataset's TarWriter, indexed, and scanned where they were made elsewhere."""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import re
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from srcnn.data.index import MAX_SAMPLE_BYTES, ROW, hash_of, hash_of_rows, index_row
from srcnn.data.manifest import BLOCK_BYTES, MEMBERS, Shard, ShardError, TileEncoding, encode_tile, key
from srcnn.runtime.untrusted import open_regular

MAX_TAR_HEADER_BYTES = 1 << 20  # of a long name, or of the attributes of a member
_KEY = re.compile(r"(?!__[^/]*__/)((?:.*/)?[^./]+)\.([^/]+)")  # webdataset's: the first dot of the base name ends it


def _import_tar_writer() -> Any:
    """webdataset.TarWriter from its own file: the package's `__init__` imports torch, 1.3 s of CPU for each worker."""
    package = importlib.util.find_spec("webdataset")
    if package is None or package.origin is None:
        raise ImportError("shards are written with the package webdataset: pip install webdataset")
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
    """Writes samples as a plain USTAR tar in which nothing depends on time, user or machine.

    Args:
        file: written from its start, and read again: open for both.
        samples: the number of each in its split, and its tiles: the clean and the degraded one, or the clean one.

    Returns:
        The shard's entry in the manifest, under this name, and its rows of the index.
    """
    positions: list[tuple[int, int, list[tuple[int, int]]]] = []  # of each sample: start, bytes, its members' contents
    start = 0
    with TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0) as writer:
        for number, tiles in samples:
            contents = {part: encode_tile(tile, encoding) for part, tile in zip(MEMBERS[encoding], tiles)}
            writer.write({"__key__": key(number), **contents})
            members, num_bytes = [], 0
            for content in contents.values():
                members.append((num_bytes + BLOCK_BYTES, len(content)))
                num_bytes += BLOCK_BYTES + _padded(len(content))
            positions.append((start, num_bytes, members))
            start += num_bytes
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        rows = np.array([index_row(start, num_bytes, members, hash_of(mapped[start : start + num_bytes]))
                         for start, num_bytes, members in positions], ROW)
        sha256 = hashlib.sha256(mapped).hexdigest()
        return Shard(name, len(mapped), sha256, len(rows), hash_of_rows(rows)), rows


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
    for sample_key, found in samples:
        missing = [name for name in members if name not in found]
        if missing:
            problems.append(f"{sample_key}: has {', '.join(sorted(found))} but no {' and no '.join(missing)}")
        elif sample_key in seen or max(map(len, found.values())) > 1:
            problems.append(f"{sample_key}: comes twice")
        elif (span := _span(found)).stop - span.start > MAX_SAMPLE_BYTES:
            problems.append(f"{sample_key}: has {span.stop - span.start} bytes, more than {MAX_SAMPLE_BYTES}")
        else:
            start, stop = span.start, span.stop
            contents = [(found[name][0].offset_data - start, found[name][0].size) for name in members]
            rows.append(index_row(start, stop - start, contents, hash_of(content[start:stop])))
            keys.append(sample_key)
        seen.add(sample_key)
    return content, np.array(rows, ROW), keys, [f"{path}: {problem}" for problem in problems]


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
        self._content, self._position = content, 0

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        found = bytes(self._content[self._position : self._position + num_bytes])
        if num_bytes > BLOCK_BYTES and re.search(rb"\d{200}", found):
            raise tarfile.ReadError("attributes of hundreds of digits")
        self._position += len(found)
        return found

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or not 0 <= position <= len(self._content):
            raise tarfile.ReadError("unexpected end of data")
        self._position = position
        return position


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
