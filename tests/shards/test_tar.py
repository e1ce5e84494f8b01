"""tarfile and `index_tar` are the oracles of what is written."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.tar import index_tar, write_tar
from srcnn.data.index import hash_entries
from srcnn.data.manifest import MEMBERS, Shard, TileEncoding, encode_tile


@pytest.mark.parametrize("num_pairs", [0, 1, 5, 40])
@pytest.mark.parametrize("shape", [(128, 128), (16, 24, 3)])
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_shard_is_what_tarfile_writes_and_its_rows_what_is_read_there(
    tmp_path: Path, encoding: TileEncoding, shape: tuple[int, ...], num_pairs: int
) -> None:
    pairs = np.random.default_rng(0).integers(0, 256, (num_pairs, 2, *shape), dtype=np.uint8)
    path, expected = tmp_path / "a.tar", io.BytesIO()
    with path.open("w+b") as file:
        samples = ((1_234_567_000 + number, tuple(pair)) for number, pair in enumerate(pairs))
        shard, rows = write_tar(file, "a.tar", samples, encoding)
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, pair in enumerate(pairs):
            for part, tile in zip(("clean", "degraded"), pair, strict=True):
                member = tarfile.TarInfo(f"{1_234_567_000 + number}.{part}.{encoding}")
                content = encode_tile(tile, encoding)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
    assert path.read_bytes() == expected.getvalue()
    sha256 = hashlib.sha256(expected.getvalue()).hexdigest()
    assert shard == Shard("a.tar", len(expected.getvalue()), sha256, num_pairs, hash_entries(rows))
    np.testing.assert_array_equal(rows, index_tar(path, MEMBERS[encoding]))
