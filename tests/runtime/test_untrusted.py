"""Manifests, indexes, tars and caches of strangers: nothing leaves its folder, runs, hangs or swells."""

import io
import os
import shutil
import struct
import tarfile

import numpy as np
import pytest
from messages import facts
from PIL import Image
from seeds import edit_manifest as edit
from small import draw_photo, small_shards

from shards.index_foreign import index_folder
from shards.tar import scan_tar
from srcnn.data.dataset import ShardDataset, SparseCache
from srcnn.data.index import INDEX_DTYPE, MAX_SAMPLE_BYTES, encode_index
from srcnn.data.manifest import ShardError, read_manifest
from srcnn.data.verify import verify_shards
from srcnn.runtime.storage import Folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {kind: small_shards(tmp_path_factory.mktemp(kind), encoding=kind) / "train" for kind in ("npy", "png")}


@pytest.fixture(params=["npy", "png"])
def shards(request, originals, tmp_path):
    return shutil.copytree(originals[request.param], tmp_path / "train")


def put(content, where, value):
    *path, last = where
    for key in path:
        content = content[key]
    content[last] = value


NAMES = ["../000000.tar", "/etc/passwd", "a/../../b.tar", "..", ".", "", "a\0.tar", "..\\a.tar", "C:a.tar", "x" * 256,
         "http://other/a.tar", "a\n.tar", "\x1b[2J", 7, None, ["a.tar"], "manifest.json", "index.npy", "000001.tar"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_shard_under_a_name_that_leads_elsewhere_or_comes_twice_is_refused(shards, name):
    edit(shards, lambda it: put(it, ("shards", 0, "name"), name))
    with pytest.raises(ShardError, match="manifest.json") as caught:
        ShardDataset(shards)
    assert len(str(caught.value)) < 600 + len(str(shards)) and "\x1b" not in str(caught.value)


VALUES = [
    (("shards", 0, "num_samples"), [10**18, 2**64, -1, 1.5, True, None, "3", float("nan"), [1], 31 + 10**6]),
    (("shards", 0, "bytes"), [10**30, 2**61, -1, 1.5, True, None, "3"]),
    (("tile_shape",), [[10**9, 10**9], [4097, 32], [0, 32], [-32, -32], [32.0, 32.0], [True, True], [32], [32] * 4, 32,
                       None, "ab", [32, 32, 4], [[32], [32]], {}, [float("nan"), 1]]),
    (("stride",), [-4096, 10**18, 4096.0, True, "4096", float("nan"), 1]),
    (("encoding",), ["pickle", "", None, 7, ["npy"], {}]),
    (("members",), [["clean.npy"], "ab c", [1, 2], None, ["a", None], {"a": 1, "b": 2}]),
    (("split",), [None, 7, ["train"], "../train", "/tmp/train", "", "a/b"]),
    (("config",), [None, [], "x"]),
    (("index",), [None, [], "index.npy", {"name": "index.npy", "more": 1}]),
    (("shards",), [None, 7, [7], [None], {"a": 1}, "ab"]),
    (("photos",), [7, [7], [{}], {"a": 1}, "photos.jsonl"]),
    (("photos", "name"), ["../photos.jsonl", "index.npy", "000000.tar", 7, None]),
    (("photos", "bytes"), [-1, 1.5, True, None, 10**30]),
    (("photos", "num_photos"), [-1, 1.5, True, None]),
    (("degraded_psnr",), ["high", None, float("nan"), float("inf"), [1], True, 10**400]),
    (("versions",), [None, []]),
]  # fmt: skip
PLACES = [(where, value) for where, values in VALUES for value in values]


@pytest.mark.parametrize(("where", "value"), PLACES, ids=repr)
def test_a_manifest_with_a_value_of_another_type_or_size_is_refused(originals, tmp_path, where, value):
    shards = shutil.copytree(originals["npy"], tmp_path / "train")
    edit(shards, lambda it: put(it, where, value))
    with pytest.raises(ShardError, match="manifest.json"):
        ShardDataset(shards)


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 10**6, "[]," * 10**6, "9" * 10**6, "\ufeff{}", "\x80"])
def test_json_that_is_deep_or_dense_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ShardError, match="manifest.json"):
        read_manifest(Folder(tmp_path))


def test_a_manifest_of_a_gigabyte_is_refused_unread(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ShardError, match=facts("manifest.json", 1 << 30)):
        read_manifest(Folder(tmp_path))


def test_files_that_would_wait_for_ever_are_refused(shards):
    first = shards / "000000.tar"
    for name in ("manifest.json", "index.npy", "000000.tar"):
        kept = (shards / name).read_bytes()
        (shards / name).unlink()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            make(shards / name)
            with pytest.raises((ShardError, FileNotFoundError), match=name):
                ShardDataset(shards).fetch(0, 1)
            (shards / name).unlink()
        (shards / name).write_bytes(kept)
    assert ShardDataset(shards).num_samples == 75 and first.is_file()


def test_a_shard_that_links_elsewhere_is_read_only_if_it_is_the_one_meant(shards, tmp_path):
    first = shards / "000000.tar"
    first.rename(tmp_path / "elsewhere.tar")
    first.symlink_to(tmp_path / "elsewhere.tar")
    assert ShardDataset(shards).num_samples == 75
    first.unlink()
    first.symlink_to("/etc/passwd")
    with pytest.raises(ShardError, match="000000.tar"):
        ShardDataset(shards)


ROWS = [("start", 2**64 - 1), ("start", 2**40), ("bytes", 2**32 - 1), ("bytes", 0), ("clean", 2**32 - 1),
        ("clean_bytes", 2**32 - 1), ("degraded", 2**31), ("degraded_bytes", 10**9)]


@pytest.mark.parametrize(("part", "value"), ROWS, ids=str)
def test_an_index_that_points_outside_is_refused(originals, tmp_path, part, value):
    shards = shutil.copytree(originals["png"], tmp_path / "train")
    rows = np.load(shards / "index.npy")
    rows[part][3] = value
    (shards / "index.npy").write_bytes(encode_index(rows))
    edit(shards, lambda it: None)
    reader = ShardDataset(shards)
    with pytest.raises(ShardError, match=facts("index.npy", 0, 4, "000000.tar")):
        reader.fetch(0, 5)
    assert any("000000.tar" in checked.name and checked.problem for checked in verify_shards(shards))


OTHER_HEADERS = ["{'descr': '|O', 'fortran_order': False, 'shape': (75,), }", "{" * 90, "9" * 5000, "",
                 "{'descr': '<u8', 'fortran_order': False, 'shape': (9000000000000,), }"]


@pytest.mark.parametrize("text", OTHER_HEADERS)
def test_an_index_with_another_header_is_refused_and_never_evaluated(shards, text):
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text))
    (shards / "index.npy").write_bytes(start + text.encode() + bytes(75 * 36))
    edit(shards, lambda it: None)
    with pytest.raises(ShardError, match=facts("index.npy", 75)):
        ShardDataset(shards).fetch(0, 1)


def test_a_zip_in_place_of_an_index_is_refused(shards):
    np.savez(shards / "index.npz", np.zeros(75, INDEX_DTYPE))
    (shards / "index.npz").rename(shards / "index.npy")
    edit(shards, lambda it: None)
    with pytest.raises(ShardError, match=facts("index.npy", 75)):
        ShardDataset(shards).fetch(0, 1)


def header(name, size, kind=b"0", raw_size=b""):
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = raw_size or b"%011o\0" % size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def number(value):
    """A size as GNU tar writes those that are negative or beyond 8 GB."""
    return struct.pack(">B", 0xFF if value < 0 else 0x80) + (value % 2**88).to_bytes(11, "big")


TARS = {
    "a negative size, for ever": header("a", 0) + header("a.clean.png", 0, raw_size=number(-512)) + bytes(2048),
    "a negative size": header("a.clean.png", 0, raw_size=number(-1024)) + bytes(2048),
    "a size beyond all": header("a.clean.png", 0, raw_size=number(2**80)) + bytes(2048),
    "a name of gigabytes": header("a", 0, b"L", number(2**33)) + bytes(2048),
    "attributes of gigabytes": header("a", 0, b"x", number(2**33)) + bytes(2048),
    "a negative name": header("a", 0, b"L", number(-512)) + bytes(2048),
    "attributes of digits": header("a", 10**6, b"x") + b"1" * 10**6 + bytes(2048),
    "attributes within attributes": (header("a", 0, b"x")) * 3000 + bytes(2048),
    "holes cut off": (header("a.png", 512, b"S")[:482] + b"\1" + header("a.png", 512, b"S")[483:]),
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", TARS)
def test_a_tar_that_lies_is_named(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(TARS[kind])
    _, rows, _, problems = scan_tar(path, ("clean.png", "degraded.png"))
    assert not len(rows) and len(problems) == 1 and str(path) in problems[0]


def foreign(folder, extra=()):
    """A shard of a stranger: one pair, and other members."""
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(1, 32, 32)).save(buffer, "PNG")
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("0.clean.png", "0.degraded.png"):
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
        for info, content in extra:
            tar.addfile(info, io.BytesIO(content))
    return folder


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def test_members_that_lead_elsewhere_or_would_run_are_left_alone(tmp_path):
    made = tmp_path / "made"
    pickled = b"cos\nmkdir\n(S'" + str(made).encode() + b"'\ntR."
    odd = [member("1.clean.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
           member("1.degraded.png", type=tarfile.LNKTYPE, linkname="../../secret"),
           member("2.clean.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), member("3.fifo", type=tarfile.FIFOTYPE),
           member("0.pickle", pickled), member("0.pyd", pickled), member("0.url", f"pipe:mkdir {made}".encode())]
    folder = foreign(tmp_path / "set", odd)
    assert index_folder(folder, tile_pixels=32, num_workers=1).num_samples == 1
    assert ShardDataset(folder).read(np.array([0]))[0].shape == (1, 32, 32)
    assert not made.exists() and sorted(os.listdir(folder)) == ["a.tar", "index.npy", "manifest.json"]


@pytest.mark.parametrize("name", ["b\n.tar", "b:c.tar"])
def test_a_foreign_shard_under_a_name_no_manifest_can_hold_is_named(tmp_path, name):
    folder = foreign(tmp_path / "set")
    (folder / "a.tar").rename(folder / name)
    with pytest.raises(ShardError, match=facts(folder, repr(name))):
        index_folder(folder, tile_pixels=32, num_workers=1)


def test_a_pipe_among_foreign_shards_does_not_hang(tmp_path):
    folder = foreign(tmp_path / "set")
    os.mkfifo(folder / "b.tar")
    with pytest.raises(ShardError, match="b.tar"):
        index_folder(folder, tile_pixels=32, num_workers=1)


def test_a_pair_that_would_take_too_much_memory_is_named(tmp_path):
    folder = foreign(tmp_path / "set", [member("1.clean.png", b"x")])
    with (folder / "a.tar").open("r+b") as file:
        file.truncate(tarfile.open(folder / "a.tar").getmembers()[-1].offset)
        file.seek(0, 2)
        file.write(header("1.clean.png", 0, raw_size=number(MAX_SAMPLE_BYTES)))
        file.seek(MAX_SAMPLE_BYTES, 1)
        file.write(header("1.degraded.png", 1) + b"x" + bytes(10_000))
    with pytest.raises(ShardError, match=facts("a.tar", 1, MAX_SAMPLE_BYTES)):
        index_folder(folder, tile_pixels=32, num_workers=1)


def test_a_cache_is_not_written_through_a_link(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    (tmp_path / "cache.shards").symlink_to(mine)
    SparseCache(tmp_path / "cache.shards", 1000).write(0, b"overwritten")
    assert mine.read_bytes() == b"precious"
