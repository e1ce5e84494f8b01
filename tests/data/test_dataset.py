"""Reading pairs of shards in a folder: as stock webdataset reads them, from many threads, and damage named."""

import io
import json
import os
import re
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from messages import facts
from PIL import Image
from small import draw_photo, small_shards

from shards.__main__ import main as shards_main
from srcnn.data.dataset import PairBuffer, ShardDataset
from srcnn.data.index import INDEX, INDEX_DTYPE, encode_index_header, hash_bytes, hash_entries, index_file
from srcnn.data.loader import LoaderConfig, train_batches, val_batches
from srcnn.data.manifest import Manifest, Shard, ShardError, npy_stride, read_manifest
from srcnn.data.shuffle import BatchPlan
from srcnn.runtime import storage
from srcnn.runtime.object_store import ReadFailed
from srcnn.runtime.storage import Folder

KINDS = {"npy": {}, "png": {"encoding": "png"}, "rgb": {"color": "rgb"}}
NUM_PAIRS = 75
SECOND = "000001.tar"  # pairs 30 to 59


def stock_pairs(folder):
    """Every pair as stock webdataset reads the shards, without a line of ours."""
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def decoded(name, content):
        return np.load(io.BytesIO(content)) if name.endswith("npy") else np.asarray(Image.open(io.BytesIO(content)))

    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        names = sorted(name for name in sample if not name.startswith("__"))
        assert [name.split(".")[0] for name in names] == ["clean", "degraded"]
        yield tuple(decoded(name, sample[name]) for name in names)


@pytest.fixture(scope="module", params=KINDS)
def shards(request, tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp(request.param), **KINDS[request.param]) / "train"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Shards of npy and of png tiles."""
    return {kind: small_shards(tmp_path_factory.mktemp(kind), **KINDS[kind]) / "train" for kind in ("npy", "png")}


@pytest.fixture(params=["npy", "png"])
def copy(request, originals, tmp_path):
    """Shards to be damaged."""
    return shutil.copytree(originals[request.param], tmp_path / "train")


@pytest.fixture
def npy_copy(originals, tmp_path):
    return shutil.copytree(originals["npy"], tmp_path / "train")


def test_pairs_are_those_that_stock_webdataset_reads(shards):
    expected = list(stock_pairs(shards))
    reader = ShardDataset(shards)
    assert reader.num_samples == len(expected) == NUM_PAIRS and reader.tile_shape == expected[0][0].shape
    chosen = np.concatenate([np.random.default_rng(0).permutation(NUM_PAIRS), [29, 30, 31, 59, 60, 61, 5, 5]])
    for tiles, part in zip(reader.read(chosen), (0, 1), strict=True):
        assert tiles.dtype == np.uint8
        assert np.array_equal(tiles, [expected[sample][part] for sample in chosen])


def test_no_samples_are_an_empty_batch(shards):
    assert [len(tiles) for tiles in ShardDataset(shards).read(np.empty(0, np.int64))] == [0, 0]


def test_the_same_room_is_filled_again_and_again(shards):
    reader = ShardDataset(shards)
    room = PairBuffer(7, reader.tile_shape)
    for start in (0, 26, 50, 68):
        samples = np.arange(start, start + 7)
        clean, degraded = reader.read(samples, room)
        assert clean is room.clean and degraded is room.degraded
        reader.close()  # reading opens the files again
        fresh = reader.read(samples)
        assert np.array_equal(clean, fresh[0]) and np.array_equal(degraded, fresh[1])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in memory", "on a disk"])
def test_more_shards_than_may_be_open_are_read_right_by_many_threads(shards, monkeypatch, where):
    expected = [clean for clean, _ in stock_pairs(shards)]
    monkeypatch.setattr(storage, "MAX_OPEN_FILES", 1)
    if where == "on a disk":
        monkeypatch.setattr(storage.Folder, "_read_cached", lambda *_: False)
    reader = ShardDataset(shards)
    num_open = len(os.listdir("/proc/self/fd"))

    def read(seed):
        for samples in np.random.default_rng(seed).permutation(NUM_PAIRS * 6).reshape(-1, 9) % NUM_PAIRS:
            assert np.array_equal(reader.read(samples)[0], [expected[sample] for sample in samples])

    every = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(24)))
    finally:
        sys.setswitchinterval(every)
    assert len(os.listdir("/proc/self/fd")) <= num_open + 1


@pytest.mark.parametrize("stop", [0, 1, 700, 5000, -20_000])
def test_a_shard_cut_while_it_is_read_is_named(copy, stop):
    reader = ShardDataset(copy)
    size = (copy / SECOND).stat().st_size
    os.truncate(copy / SECOND, stop % size)
    with pytest.raises((ShardError, ReadFailed), match=facts(copy / SECOND)):
        reader.read(np.array([59]))
    with pytest.raises((ShardError, ReadFailed), match=SECOND):
        for _ in train_batches(reader, LoaderConfig(), BatchPlan(0, 0, NUM_PAIRS, 5)):
            pass
    assert reader.read(np.array([29, 60]))[0].shape == (2, 32, 32)


def test_a_shard_lost_before_it_was_opened_is_named(copy):
    reader = ShardDataset(copy)
    reader.close()
    (copy / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=SECOND):
        reader.read(np.array([30]))


def test_swapped_shards_are_named_when_opened(copy):
    same_size = (copy / "000000.tar").stat().st_size == (copy / SECOND).stat().st_size
    for source, target in (("000000.tar", "kept"), (SECOND, "000000.tar"), ("kept", SECOND)):
        (copy / source).rename(copy / target)
    first_pair_or_size = 0 if same_size else (copy / "000000.tar").stat().st_size
    with pytest.raises(ShardError, match=facts("000000.tar", first_pair_or_size)):
        ShardDataset(copy)


def test_a_shard_of_another_config_is_named_when_opened(npy_copy, tmp_path):
    other = small_shards(tmp_path / "other", num_train=5, num_val=1, resize="x0.9")
    assert npy_stride((32, 32)) == read_manifest(Folder(other / "train")).stride
    size = (npy_copy / SECOND).stat().st_size
    content = (other / "train" / "000000.tar").read_bytes()
    (npy_copy / SECOND).write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(ShardError, match=facts(SECOND, 30)):
        ShardDataset(npy_copy)


def test_a_flipped_byte_in_a_png_shard_is_named_with_its_pair(originals, tmp_path):
    folder = shutil.copytree(originals["png"], tmp_path / "train")
    with tarfile.open(folder / SECOND) as tar:
        member = tar.getmembers()[2 * 17 + 1]
    content = bytearray((folder / SECOND).read_bytes())
    content[member.offset_data + member.size // 2] ^= 4
    (folder / SECOND).write_bytes(content)
    reader = ShardDataset(folder)
    for samples in ([47], [45, 46, 47, 48], [3, 47, 1]):
        with pytest.raises(ShardError, match=facts(SECOND, 47)):
            reader.read(np.array(samples))
    with pytest.raises(ShardError, match=facts(SECOND, 47)):
        list(val_batches(reader, LoaderConfig(), 8))
    assert reader.read(np.array([46, 48]))[0].shape == (2, 32, 32)


def test_a_flipped_byte_of_a_foreign_shard_is_named_with_its_pair(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(9):
            picture = draw_photo(number, 37, 53)
            writer.write({"__key__": f"{number}", "clean.png": picture, "degraded.jpg": picture, "txt": "some words"})
    assert shards_main(["index", str(tmp_path), "--tile_pixels", "32", "--num_workers", "1"]) == 0
    with tarfile.open(tmp_path / "a.tar") as tar:
        place = tar.getmember("6.degraded.jpg").offset_data + 400
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[place] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ShardError, match=facts("a.tar", 6)):
        list(train_batches(ShardDataset(tmp_path), LoaderConfig(), BatchPlan(0, 0, 9, 3)))


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of val", "of others"])
def test_an_index_that_is_not_the_shards_is_named_when_opened(copy, originals, damage):
    index = copy / INDEX
    if damage == "missing":
        index.unlink()
    elif damage == "cut":
        os.truncate(index, index.stat().st_size - 9)
    elif damage == "flipped":
        content = bytearray(index.read_bytes())
        content[-500] ^= 1  # of a pair that nobody looks at when shards are opened
        index.write_bytes(content)
    else:
        folders = [folder.parent / "val" if damage == "of val" else folder for folder in originals.values()]
        contents = [(folder / INDEX).read_bytes() for folder in folders]
        index.write_bytes(next(content for content in contents if content != index.read_bytes()))
    with pytest.raises(ShardError, match=re.escape(str(index))):
        ShardDataset(copy)


def test_shards_missing_or_of_another_size_are_named_when_opened(copy):
    with (copy / SECOND).open("ab") as file:
        file.write(b"\0")
    size = (copy / SECOND).stat().st_size
    with pytest.raises(ShardError, match=facts(SECOND, size, size - 1)):
        ShardDataset(copy)
    (copy / SECOND).unlink()
    with pytest.raises(ShardError, match=SECOND):
        ShardDataset(copy)


def test_a_manifest_of_the_version_before_says_what_to_do(copy):
    content = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(ShardError, match=facts("manifest.json", 2, 3)):
        ShardDataset(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=facts("srcnn shards --photos", "srcnn shards index")):
        ShardDataset(copy)


def large_set(folder, num_shards=10_000, pairs_a_shard=1000, tile_shape=(8, 8)):
    """Sparse files of ten million pairs of black tiles."""
    folder.mkdir()
    stride = npy_stride(tile_shape)
    num_bytes = pairs_a_shard * stride + 10240
    names = [f"{number:06d}.tar" for number in range(num_shards)]
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(num_bytes)
    one = np.zeros(pairs_a_shard, INDEX_DTYPE)
    one["start"], one["bytes"], one["hash"] = np.arange(pairs_a_shard) * stride, stride, hash_bytes(bytes(stride))
    rows = np.tile(one, num_shards)
    (folder / INDEX).write_bytes(encode_index_header(len(rows)) + rows.tobytes())
    hashes = hash_entries(rows[:pairs_a_shard])  # the same for all
    shards = tuple(Shard(name, num_bytes, "", pairs_a_shard, hashes) for name in names)
    index = index_file(len(rows))
    members = ("clean.npy", "degraded.npy")
    Manifest("train", tile_shape, "npy", members, stride, {}, index, shards, None, 0.0, {}).write(Folder(folder))
    return folder


@pytest.mark.slow
def test_ten_million_pairs_in_ten_thousand_shards_are_read(tmp_path):
    folder = large_set(tmp_path / "train")
    reader = ShardDataset(folder)
    assert reader.num_samples == 10_000_000 and len(reader.manifest.shards) == 10_000
    chosen = np.random.default_rng(3).choice(reader.num_samples, 400, replace=False)
    chosen[:2] = 0, reader.num_samples - 1
    rows, manifest = np.lib.format.open_memmap(folder / INDEX, "r+"), reader.manifest
    for number, sample in enumerate(chosen.tolist()):
        shard, place = divmod(sample, 1000)
        record = bytearray(2048)
        for half in range(2):  # the last pixel of each tile
            record[half * 1024 + 512 + 128 + 63] = number % 97 + 100 * half
        with (folder / f"{shard:06d}.tar").open("r+b") as file:
            file.seek(2048 * place)
            file.write(record)
        rows["hash"][sample] = hash_bytes(record)
    touched = set((chosen // 1000).tolist())
    shards = [replace(shard, index_sha256=hash_entries(rows[1000 * number : 1000 * number + 1000]))
              if number in touched else shard for number, shard in enumerate(manifest.shards)]
    replace(manifest, shards=tuple(shards)).write(Folder(folder))
    reader = ShardDataset(folder)
    clean, degraded = reader.read(chosen)
    assert not clean.reshape(400, -1)[:, :-1].any()
    assert np.array_equal(clean[:, 7, 7], np.arange(400) % 97)
    assert np.array_equal(degraded[:, 7, 7], np.arange(400) % 97 + 100)
    assert len(reader.storage._open) <= storage.MAX_OPEN_FILES
    batches = train_batches(reader, LoaderConfig(), BatchPlan(0, 3 * 10**7, 3 * 10**7 + 600, 200))
    assert len(np.unique(np.concatenate([batch.samples for batch in batches]))) == 600


@pytest.mark.parametrize("where", ["header", "pixels", "padding"])
@pytest.mark.parametrize("times_read_before", [0, 3])  # by calls of the system, then out of a mapping
def test_a_flipped_bit_of_a_local_tile_is_found_when_its_pair_is_read(tmp_path, where, times_read_before):
    folder = small_shards(tmp_path) / "train"
    reader = ShardDataset(folder)
    everything = np.arange(reader.num_samples)
    for _ in range(times_read_before):
        reader.read(everything)
    stride = reader.manifest.stride
    place = 7 * stride + {"header": 3, "pixels": 1000, "padding": stride - 1}[where]
    with (folder / "000000.tar").open("r+b") as file:
        file.seek(place)
        level = file.read(1)[0]
        file.seek(place)
        file.write(bytes([level ^ 1]))
    reader.read(everything[:7])
    with pytest.raises(ShardError, match=facts("000000.tar", 7)):
        reader.read(everything[:8])
