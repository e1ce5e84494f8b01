"""A shard as it is written: members, their rows of the index, the hash of it all, in one pass over the samples."""

from __future__ import annotations

import hashlib
import tarfile
from functools import lru_cache
from typing import IO

import numpy as np

from srcnn.index import ROW, hash_of, index_row
from srcnn.manifest import BLOCK_BYTES, MEMBERS, TileEncoding, encode_tile, key

CHECKSUM = slice(148, 156)  # of a header; itself counted as spaces


def encode_member(name: str, content: bytes) -> bytes:
    """A tar member (USTAR) with nothing in it that depends on time, user or machine, padded to 512 bytes."""
    template, template_sum = _header(len(content))
    header, written = bytearray(template), name.encode("ascii")
    header[: len(written)] = written
    header[CHECKSUM] = b"%06o\0 " % (template_sum + sum(written))
    return b"".join((header, content, bytes(-len(content) % BLOCK_BYTES)))


@lru_cache(maxsize=64)  # tarfile would take ten times as long for each header
def _header(num_bytes: int) -> tuple[bytes, int]:
    """The header of a member, without its name, with spaces in place of the checksum; and the sum of its bytes."""
    member = tarfile.TarInfo()
    member.size, member.mode = num_bytes, 0o644
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[CHECKSUM] = b" " * 8
    return bytes(header), sum(header)


class TarShard:
    """Writes samples to a file as a plain USTAR tar.

    Attributes:
        num_bytes: written so far.
        num_samples: written so far.
    """

    def __init__(self, file: IO[bytes], encoding: TileEncoding) -> None:
        self.num_bytes = 0
        self._file = file
        self._encoding = encoding
        self._digest = hashlib.sha256()
        self._rows: list[tuple[int, ...]] = []

    @property
    def num_samples(self) -> int:
        return len(self._rows)

    def add(self, sample: int, *tiles: np.ndarray) -> None:
        """Appends a sample, the clean tile and the degraded one or the clean one alone; `sample` is its number in the
        split.
        """
        contents = [encode_tile(tile, self._encoding) for tile in tiles]
        names = MEMBERS[self._encoding][: len(tiles)]
        members = [encode_member(f"{key(sample)}.{name}", part) for name, part in zip(names, contents, strict=True)]
        starts = [BLOCK_BYTES, len(members[0]) + BLOCK_BYTES]
        whole = b"".join(members)
        self._rows.append(index_row(self.num_bytes, len(whole), list(zip(starts, map(len, contents))), hash_of(whole)))
        self._write(whole)

    def finish(self) -> tuple[str, np.ndarray]:
        """Writes the end of the tar; gives its sha256 and its rows of the index."""
        end = 2 * BLOCK_BYTES
        self._write(bytes(end + -(self.num_bytes + end) % tarfile.RECORDSIZE))
        return self._digest.hexdigest(), np.array(self._rows, ROW)

    def _write(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)
        self.num_bytes += len(content)
