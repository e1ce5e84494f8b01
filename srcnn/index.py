"""The index of a split: where each sample's members lie in its shard, and a hash of its bytes. One row a sample.

With it any shard can be read by ranges, and what came can be checked; shards of ours and of others alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from srcnn.sample import IndexFile, Manifest, Shard

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
