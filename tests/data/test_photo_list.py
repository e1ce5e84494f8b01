"""photos.jsonl of strangers, damaged, or with names that no encoding has: what it may hold, and what is said."""

import shutil

import pytest
from conftest import photos_of
from messages import facts
from seeds import edit_manifest, edit_split
from small import small_shards

from srcnn.data.manifest import PhotoRecord, RefusedRecord, ShardError, read_manifest
from srcnn.data.photo_list import decode_line, encode_line
from srcnn.data.verify import verify_shards
from srcnn.runtime.storage import Folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("listing")) / "train"


@pytest.fixture
def shards(original, tmp_path):
    return shutil.copytree(original, tmp_path / "train")


NAMES = ["Москва 🌆.png", b"caf\xe9.png".decode("utf-8", "surrogateescape"), "new\nline.png", "a/b.png"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_photo_comes_back_as_it_was_in_one_line(name):
    for entry in (PhotoRecord(name, "00", 33, 17, 20, "000000.tar", 0, 3, 30.0),
                  PhotoRecord(name, "00", 33, 17, None, "000000.tar", 0, 3, 30.5),
                  RefusedRecord(name, "why", "val", "0")):
        line = encode_line(entry)
        assert decode_line(line) == entry and line.count(b"\n") == 1 and line.decode("utf-8")


def test_a_list_of_an_older_version_lacks_the_quality_of_originals(shards):
    edit_split(shards, change_photos=lambda photos: [photo.pop("original_quality") for photo in photos])
    edit_manifest(shards, lambda it: it["photos"].pop("num_poor"))
    manifest = read_manifest(Folder(shards))
    assert manifest.photos.num_poor == 0
    assert [photo.original_quality for photo in photos_of(shards)] == [None] * manifest.photos.num_photos


def edit_photo(folder, change):
    """Changes the first line of the list."""
    edit_split(folder, change_photos=lambda photos: change(photos[0]))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "a\0b"])
def test_a_photo_under_a_name_that_leads_elsewhere_is_refused(shards, name):
    edit_photo(shards, lambda it: it.update(name=name))
    with pytest.raises(ShardError, match=facts("photos.jsonl", repr(name))):
        photos_of(shards)


IN_PHOTOS = [("shard", "none.tar"), ("shard", ""), ("shard", None), ("shard", 7), ("num_samples", -1),
             ("num_samples", 1.5),
             ("num_samples", True), ("num_samples", 2**64), ("width", -1), ("width", "9"), ("degraded_psnr", "high"),
             ("degraded_psnr", float("nan")), ("reason", "too"), ("more", 1), ("name", 7), ("quality", 101),
             ("first_sample", 999)]


@pytest.mark.parametrize(("key", "value"), IN_PHOTOS, ids=repr)
def test_a_photo_with_a_value_of_another_type_or_size_is_refused(shards, key, value):
    edit_photo(shards, lambda it: it.update({key: value}))
    with pytest.raises(ShardError, match="photos.jsonl"):
        photos_of(shards)
    assert any("photos.jsonl" in checked.name and checked.problem for checked in verify_shards(shards))


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"[" * 10**5 + b"\n", b"7\n", b"\xff\n", b"x" * (2 << 20)])
def test_a_list_of_photos_that_is_none_is_refused(shards, content):
    before = (shards / "photos.jsonl").read_bytes()
    (shards / "photos.jsonl").write_bytes(content)
    with pytest.raises(ShardError, match="photos.jsonl"):
        photos_of(shards)
    (shards / "photos.jsonl").write_bytes(before.replace(b"photo 0", b"photo 7"))
    with pytest.raises(ShardError, match=facts(shards / "photos.jsonl", "manifest")):
        photos_of(shards)
    if content:
        (shards / "photos.jsonl").write_bytes(content)
        edit_manifest(shards, lambda it: None)
        with pytest.raises(ShardError, match="photos.jsonl"):
            photos_of(shards)
