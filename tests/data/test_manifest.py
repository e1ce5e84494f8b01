from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import facts

from shards import tar
from srcnn.data import manifest as manifest_module
from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import IndexFile, Manifest, PhotosFile, Shard, ShardError, TileEncoding, read_manifest
from srcnn.runtime.storage import Folder

SHAPES: list[tuple[int, ...]] = [(128, 128), (128, 128, 3), (8, 8), (72, 72), (256, 256, 3)]


def tiles(num: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, *shape), dtype=np.uint8)


def write_tar(path: Path, pairs: np.ndarray, encoding: TileEncoding = "npy") -> None:
    """A shard of the pairs (n, 2, H, W[, 3])."""
    with path.open("w+b") as file:
        tar.write_tar(file, path.name, enumerate(map(tuple, pairs)), encoding)


def manifest(**changes: Any) -> Manifest:
    whole = Manifest(
        split="train",
        tile_shape=(16, 16),
        encoding="npy",
        members=("clean.npy", "degraded.npy"),
        stride=manifest_module.npy_stride((16, 16)),
        config={"resize": "none", "degradation": {"jpeg_quality": [10, 40]}},
        index=IndexFile("index.npy", 3),
        shards=(Shard("000000.tar", 6200, "ab", 3, "12"), Shard("000001.tar", 2100, "cd", 1, "34")),
        photos=PhotosFile("photos.jsonl", 9, "ef", 2, 1),
        degraded_psnr=31.0,
        versions=manifest_module.library_versions(),
    )
    return dataclasses.replace(whole, **changes)


def write_with_shards(folder: Path, written: Manifest) -> None:
    written.write(Folder(folder))
    for shard in written.shards:
        (folder / shard.name).write_bytes(b"x" * shard.bytes)


@given(number=st.integers(0, 10**10 - 1))
def test_a_key_is_ten_digits_in_the_order_of_the_numbers(number: int) -> None:
    assert len(manifest_module.sample_key(number)) == 10 and int(manifest_module.sample_key(number)) == number


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_tile_comes_back_as_it_was(shape: tuple[int, ...], encoding: TileEncoding) -> None:
    tile = tiles(1, shape)[0]
    for array in (tile, tile[::-1].swapaxes(0, 1)):  # the second is not contiguous
        found = manifest_module.decode_tile(manifest_module.encode_tile(array, encoding), encoding, shape)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.uint8


def test_npy_members_are_what_numpy_reads() -> None:
    tile = tiles(1, (24, 40))[0]
    np.testing.assert_array_equal(np.load(io.BytesIO(manifest_module.encode_tile(tile, "npy"))), tile)


def test_pickled_arrays_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="object"):
        manifest_module.decode_tile(buffer.getvalue(), "npy", (1,))


def test_a_grey_tile_of_128_takes_34816_bytes() -> None:
    assert manifest_module.npy_stride((128, 128)) == 34816


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_i_lies_at_i_strides(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pairs = tiles(10, shape).reshape(5, 2, *shape)
    write_tar(tmp_path / "a.tar", pairs)
    content, stride = (tmp_path / "a.tar").read_bytes(), manifest_module.npy_stride(shape)
    num_pixels = int(np.prod(shape))
    for number, pair in enumerate(pairs):
        for part, tile in enumerate(pair):
            start = number * stride + part * stride // 2 + 512 + len(manifest_module.encode_npy_header(shape))
            np.testing.assert_array_equal(
                np.frombuffer(content, np.uint8, num_pixels, start).reshape(shape), tile
            )


def test_members_tell_nothing_of_time_user_or_machine(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", tiles(4, (8, 8)).reshape(2, 2, 8, 8))
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    parts = [f"000000000{number}.{part}.npy" for number in (0, 1) for part in ("clean", "degraded")]
    assert [member.name for member in members] == parts
    for member in members:
        owner = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
        assert owner == (0, 0, 0, "", "", 0o644)
        assert not member.pax_headers


@pytest.mark.parametrize("encoding", ["npy", "png"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_stock_webdataset_reads_the_same_pairs(
    tmp_path: Path, encoding: TileEncoding, shape: tuple[int, ...]
) -> None:
    webdataset = pytest.importorskip("webdataset")
    pairs = tiles(14, shape).reshape(7, 2, *shape)
    write_tar(tmp_path / "a.tar", pairs, encoding)
    stream = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    if encoding == "png":
        stream = stream.decode("rgb8" if len(shape) == 3 else "l8")
    else:
        stream = stream.decode()
    found = list(stream)
    assert [item["__key__"] for item in found] == [f"{number:010d}" for number in range(7)]
    for item, (clean, degraded) in zip(found, pairs, strict=True):
        np.testing.assert_array_equal(item[f"clean.{encoding}"], clean)
        np.testing.assert_array_equal(item[f"degraded.{encoding}"], degraded)


def test_any_aligned_range_of_a_shard_is_a_stream_of_its_own(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pairs = tiles(14, (16, 16)).reshape(7, 2, 16, 16)
    write_tar(tmp_path / "a.tar", pairs)
    stride = manifest_module.npy_stride((16, 16))
    part = io.BytesIO((tmp_path / "a.tar").read_bytes()[2 * stride : 5 * stride])
    found = list(webdataset.tariterators.tar_file_iterator(part))
    assert [member["fname"][:10] for member in found[::2]] == [f"{number:010d}" for number in (2, 3, 4)]
    np.testing.assert_array_equal(manifest_module.decode_tile(found[0]["data"], "npy", (16, 16)), pairs[2, 0])


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    write_with_shards(tmp_path, manifest())
    assert read_manifest(Folder(tmp_path)) == manifest()
    content = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["num_samples"]) == ("srcnn-shards", 3, 4)


def test_the_hash_is_that_of_the_samples() -> None:
    assert manifest(split="val", photos=None, versions={}).hash() == manifest().hash()
    other = Shard("000001.tar", 2100, "ce", 1, "34")
    changes: list[dict[str, Any]] = [
        {"shards": (manifest().shards[0], other)},
        {"shards": manifest().shards[::-1]},
        {"tile_shape": (8, 8)},
        {"encoding": "png"},
    ]
    assert len({manifest(**change).hash() for change in changes} | {manifest().hash()}) == 5


def test_a_missing_or_short_shard_is_named(tmp_path: Path) -> None:
    write_with_shards(tmp_path, manifest())
    (tmp_path / "000001.tar").write_bytes(b"x")
    with pytest.raises(ShardError, match=facts("000001.tar", 1, 2100)):
        ShardDataset(tmp_path)
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(ShardError, match=facts(tmp_path / "000001.tar")):
        ShardDataset(tmp_path)
    assert read_manifest(Folder(tmp_path)) == manifest()


def test_no_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=facts("srcnn shards --photos", f"--out {tmp_path}")):
        read_manifest(Folder(tmp_path / "train"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, ["format"]),
        ({"version": 1}, [1, 3]),
        ({"stride": 100}, ["stride", 100]),
        (
            {"shards": [{"name": "../a.tar", "bytes": 1, "sha256": "", "num_samples": 1, "index_sha256": ""}]},
            ["../a.tar"],
        ),
        ({"shards": [{"name": "a.tar"}]}, ["Shard", "num_samples"]),
        ({"photos": [{"name": "a.png"}]}, ["PhotosFile"]),
        ({"degraded_psnr": float("nan")}, ["degraded_psnr", "nan"]),
        ({"photos": {"name": "index.npy", "bytes": 1, "sha256": "", "num_photos": 1, "num_refused": 0}}, []),
        ({"index": {"name": "../index.npy", "bytes": 1}}, ["../index.npy"]),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], told: list[object]
) -> None:
    write_with_shards(tmp_path, manifest())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardError, match=facts(path, *told)):
        read_manifest(Folder(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ShardError, match="manifest.json"):
        read_manifest(Folder(tmp_path))


@pytest.mark.parametrize(("degradation", "told"), [
    ({"jpeg_quality": 20, "scale": 1}, "JPEG quality 20"), ({"jpeg_quality": [5, 95]}, "JPEG quality [5, 95]"),
    ({"jpeg_quality": [], "scale": 3}, "reduced and enlarged 3x"), (None, ""), (7, ""), ({}, "")])
def test_the_damage_is_told_where_it_is_known(degradation: Any, told: str) -> None:
    assert manifest(config={"degradation": degradation}).damage == told
    clean_only = manifest(config={"degradation": degradation}, members=("clean.npy",))
    assert clean_only.damage == manifest(config={}).damage == ""
