"""tarfile and `index_tar` are the oracles of what is written in one pass."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.tar import TarShard
from srcnn.index import index_tar
from srcnn.manifest import MEMBERS, TileEncoding, encode_tile


@pytest.mark.parametrize("num_pairs", [0, 1, 5, 40])
@pytest.mark.parametrize("shape", [(128, 128), (16, 24, 3)])
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_shard_is_what_tarfile_writes_and_its_rows_what_is_read_there(
    tmp_path: Path, encoding: TileEncoding, shape: tuple[int, ...], num_pairs: int
) -> None:
    pairs = np.random.default_rng(0).integers(0, 256, (num_pairs, 2, *shape), dtype=np.uint8)
    path, expected = tmp_path / "a.tar", io.BytesIO()
    with path.open("wb") as file:
        shard = TarShard(file, encoding)
        for number, (clean, degraded) in enumerate(pairs):
            shard.add(1_234_567_000 + number, clean, degraded)
        sha256, rows = shard.finish()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, pair in enumerate(pairs):
            for part, tile in zip(("clean", "degraded"), pair, strict=True):
                member = tarfile.TarInfo(f"{1_234_567_000 + number}.{part}.{encoding}")
                content = encode_tile(tile, encoding)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
    assert path.read_bytes() == expected.getvalue()
    assert sha256 == hashlib.sha256(expected.getvalue()).hexdigest()
    assert (shard.num_bytes, shard.num_samples) == (len(expected.getvalue()), num_pairs)
    np.testing.assert_array_equal(rows, index_tar(path, MEMBERS[encoding])[0])
