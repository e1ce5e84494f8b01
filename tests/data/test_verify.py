"""Every kind of damage to shards, their index and their manifest is found, and named with the shard and the pair."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from messages import lines_with, numbers, says
from seeds import edit_split
from servers import FaultyServer
from small import draw_photo, small_shards, write_photos

from shards.__main__ import main as shards_main
from srcnn.__main__ import main
from srcnn.data.manifest import ShardError
from srcnn.data.verify import verify_shards
from srcnn.photos.degradation import Degradation
from srcnn.runtime.object_store import AccessConfig

KINDS = ("npy", "png", "rgb", "foreign")
SHARD = "train/000001.tar"
NUM_BEFORE = 30  # pairs in the shards before that one; as many are in it


def foreign_shards(folder):
    """Pairs of several sizes with an extra member in each, as many a shard as those of ours."""
    for split, num_pairs in (("train", 75), ("val", 31)):
        (folder / split).mkdir(parents=True)
        with webdataset.ShardWriter(f"{folder}/{split}/%06d.tar", maxcount=30, verbose=0) as writer:
            for number in range(num_pairs):
                picture = draw_photo(number, 33 + 2 * (number % 4), 35 + number % 3)
                pair = {"clean.png": picture, "degraded.npy": picture // 2 + 1, "info.json": {"number": number}}
                writer.write({"__key__": f"{split}/picture {number}"} | pair)
        assert shards_main(["index", f"{folder}/{split}", "--tile_pixels", "32", "--num_workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Whole shards of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    ours = {"npy": {}, "png": {"encoding": "png"}, "rgb": {"color": "rgb"}}
    sets = {kind: small_shards(folder / kind, **changes) for kind, changes in ours.items()}
    return sets | {"foreign": foreign_shards(folder / "foreign")}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Shards of the same photos by another config."""
    return small_shards(tmp_path_factory.mktemp("others"), degradation=Degradation(jpeg_quality=11))


@pytest.fixture(params=KINDS)
def shards(request, originals, tmp_path):
    """A copy of the shards of each kind, to be damaged."""
    return shutil.copytree(originals[request.param], tmp_path / "shards")


@pytest.fixture
def npy_shards(originals, tmp_path):
    return shutil.copytree(originals["npy"], tmp_path / "shards")


def problems(location, **access):
    """What is wrong, by file below the location."""
    found = [checked for checked in verify_shards(location, AccessConfig(**access)) if checked.problem]
    return {checked.name.removeprefix(f"{location}/"): checked.problem for checked in found}


def assert_found(location, name, *told):
    """This file alone is named, and told of are all of these; gives what is said."""
    found = problems(location)
    assert list(found) == [name]
    assert says(found[name], *told), found
    return found[name]


def edit(path, change):
    """The JSON file as `change` makes it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def members_of(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


def padded_member(path):
    """A member whose content does not fill its last block, and the number of its pair in the shard."""
    keys = list(dict.fromkeys(member.name.split(".")[0] for member in members_of(path)))
    member = next(member for member in members_of(path)[20:] if member.size % 512)
    return member, keys.index(member.name.split(".")[0])


def test_whole_shards_pass_and_every_file_is_looked_at(shards):
    checked = list(verify_shards(shards))
    assert not [item.problem for item in checked if item.problem]
    assert sorted(item.name for item in checked) == sorted(str(path) for path in shards.glob("*/*"))
    assert len(list(verify_shards(shards / "val"))) == len(list((shards / "val").iterdir()))


def test_an_empty_split_is_whole(tmp_path):
    photos = write_photos(tmp_path / "photos", 2)
    arguments = ["--resize", "none", "--tile_pixels", "32", "--val_fraction", "0", "--num_workers", "1"]
    assert shards_main(["--photos", str(photos), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert not problems(tmp_path / "out")


@pytest.mark.parametrize("place", ["tile", "header", "padding"])
def test_a_flipped_byte_is_found_with_its_pair(shards, place):
    member, number = padded_member(shards / SHARD)
    places = {"tile": member.offset_data + member.size // 2, "header": member.offset_data - 500,
              "padding": member.offset_data + member.size}
    flip(shards / SHARD, places[place])
    assert_found(shards, SHARD, NUM_BEFORE + number)


def test_a_flipped_byte_behind_the_pairs_is_found(shards):
    flip(shards / SHARD, -1)
    assert not numbers(assert_found(shards, SHARD)), "no pair is named"


def test_every_damaged_pair_is_told_up_to_ten(npy_shards):
    members = members_of(npy_shards / SHARD)
    for damaged, told in (((3, 4, 17), [33, 34, 47]), (range(20, 29), [33, 34, 47, *range(50, 57)])):
        for number in damaged:
            flip(npy_shards / SHARD, members[2 * number].offset_data + 200)
        assert numbers(assert_found(npy_shards, SHARD)) == told


@pytest.mark.parametrize("num_lost", [1, 2, 7])
def test_a_shard_cut_at_a_member_is_found_with_its_lengths_and_the_pairs_lost(shards, num_lost):
    members = members_of(shards / SHARD)
    whole, stop = (shards / SHARD).stat().st_size, members[-num_lost].offset
    os.truncate(shards / SHARD, stop)
    first_lost = 60 - -(-num_lost * 30 // len(members))
    assert_found(shards, SHARD, stop, whole, first_lost)


def test_half_a_pair_in_a_tar_that_is_whole_is_found(shards):
    """The last member taken away, by a tool that writes proper tars, at the length there was."""
    size, last = (shards / SHARD).stat().st_size, members_of(shards / SHARD)[-1]
    with (shards / SHARD).open("r+b") as file:
        file.truncate(last.offset)
        file.truncate(size)
    assert_found(shards, SHARD, 59)


def test_bytes_behind_the_end_are_found(shards):
    size = (shards / SHARD).stat().st_size
    os.truncate(shards / SHARD, size + 512)
    assert_found(shards, SHARD, size + 512, size)


def test_a_missing_shard_is_found(shards):
    (shards / SHARD).unlink()
    assert not numbers(assert_found(shards, SHARD)), "nothing of it is there"
    (shards / SHARD).mkdir()
    assert not numbers(assert_found(shards, SHARD)), "nothing of it is there"


def test_an_extra_shard_is_found(shards):
    shutil.copy(shards / SHARD, shards / "train/000003.tar")
    assert_found(shards, "train/000003.tar", "manifest")


def test_swapped_shards_are_found_both(shards):
    first, second, kept = shards / "train/000000.tar", shards / SHARD, shards / "kept"
    same_size = first.stat().st_size == second.stat().st_size
    for source, target in ((first, kept), (second, first), (kept, second)):
        source.rename(target)
    found = problems(shards)
    assert list(found) == ["train/000000.tar", SHARD]
    if same_size:
        assert "000001.tar" in found["train/000000.tar"] and "000000.tar" in found[SHARD]


def test_a_shard_of_another_config_under_the_same_name_is_found(npy_shards, others):
    assert (npy_shards / SHARD).stat().st_size == (others / SHARD).stat().st_size
    shutil.copy(others / SHARD, npy_shards / SHARD)
    assert not numbers(assert_found(npy_shards, SHARD, "config")), "no single pairs are named"


@pytest.mark.parametrize("names", [["manifest.json"], ["manifest.json", "index.npy"]])
def test_a_manifest_of_another_config_is_found_with_what_differs(npy_shards, others, names):
    for name in names:
        shutil.copy(others / "train" / name, npy_shards / "train" / name)
    found = problems(npy_shards)
    assert "plan.json" in found["train/manifest.json"] and "jpeg_quality" in found["train/manifest.json"]
    assert ("train/index.npy" in found) == ("index.npy" not in names)
    assert {f"train/00000{number}.tar" for number in range(3)} <= found.keys()


@pytest.mark.parametrize("key", ["resize", "more", "color"])
def test_a_manifest_whose_config_was_edited_is_found(npy_shards, key):
    changes = {"resize": {"resize": "x0.5"}, "more": {"more": 1}, "color": {}}
    edit(npy_shards / "train/manifest.json", lambda it: (it["config"].pop(key, 0), it["config"].update(changes[key])))
    assert_found(npy_shards, "train/manifest.json", "plan.json", key)


def test_counts_that_do_not_add_up_are_found(npy_shards):
    edit_split(npy_shards / "train", change_photos=lambda it: it[2].update(num_samples=14))
    assert_found(npy_shards, "train/photos.jsonl", "000001.tar", "+1")


def test_a_count_that_is_not_the_shards_is_found(shards):
    """Total and index fit, but the border between two shards does not."""
    def moved(first, second):
        return lambda it: [entry.update(num_samples=entry["num_samples"] + more) for entry, more in
                           ((it[first], -1), (it[second], 1))]

    def moved_photos(photos):
        moved(2, 4)(photos)
        photos[3]["first_sample"] -= 1

    edit_split(shards / "train", moved(1, 2), moved_photos)
    assert_found(shards, "train/000002.tar")


def test_a_count_that_is_not_the_indexs_is_found(shards):
    edit(shards / "train/manifest.json", lambda it: it["shards"][0].update(num_samples=31))
    assert says(problems(shards)["train/index.npy"], 76)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "header", "row", "of val", "pickled"])
def test_an_index_that_is_not_the_shards_is_found(shards, damage):
    index = shards / "train/index.npy"
    if damage == "missing":
        index.unlink()
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "cut":
        os.truncate(index, index.stat().st_size - 5)
    elif damage in ("header", "row"):
        flip(index, 3 if damage == "header" else -40)
    elif damage == "of val":
        shutil.copy(shards / "val/index.npy", index)
    else:
        np.save(index, np.array([{}] * 75), allow_pickle=True)
    assert_found(shards, "train/index.npy")


def test_pairs_are_told_of_only_where_the_index_is_whole(shards):
    flip(shards / "train/index.npy", -40)
    flip(shards / SHARD, padded_member(shards / SHARD)[0].offset_data)
    assert list(problems(shards)) == ["train/index.npy", SHARD]


def test_a_manifest_that_cannot_be_read_is_an_error(npy_shards):
    os.truncate(npy_shards / "val/manifest.json", 500)
    with pytest.raises(ShardError, match="val/manifest.json"):
        list(verify_shards(npy_shards))
    with pytest.raises(FileNotFoundError, match=str(npy_shards.parent)):
        list(verify_shards(npy_shards.parent))


def test_the_command_tells_by_its_status_what_it_found(shards, capsys):
    assert main(["verify-shards", str(shards)]) == 0
    assert says(capsys.readouterr().out, shards, 0)
    flip(shards / SHARD, padded_member(shards / SHARD)[0].offset_data)
    (shards / "val/000000.tar").unlink()
    assert main(["verify-shards", str(shards)]) == 1
    told = capsys.readouterr()
    assert says(told.out, shards, 2)
    assert lines_with(told.err, shards / SHARD) and lines_with(told.err, shards / "val/000000.tar")
    assert main(["verify-shards", str(shards / "nowhere")]) == 1 and "nowhere" in capsys.readouterr().err


def test_the_same_is_found_behind_a_web_server(shards, capsys):
    pytest.importorskip("obstore")
    with FaultyServer(shards) as server:
        assert main(["verify-shards", server.url]) == 0
        assert says(capsys.readouterr().out, server.url, 0)
        member, number = padded_member(shards / SHARD)
        flip(shards / SHARD, member.offset_data + 5)
        assert_found(server.url, SHARD, NUM_BEFORE + number)
        os.truncate(shards / SHARD, member.offset_data)
        assert_found(server.url, SHARD, member.offset_data)
        (shards / SHARD).unlink()
        assert_found(server.url, SHARD)
        flip(shards / "train/index.npy", -40)
        assert list(problems(server.url)) == ["train/index.npy", SHARD]
        assert main(["verify-shards", server.url]) == 1


def test_damage_on_the_way_is_found_and_damage_that_passes_is_not(originals):
    pytest.importorskip("obstore")
    with FaultyServer(originals["npy"]) as server:
        server.fault = lambda path, start, stop, number: "flip" if path == SHARD else None
        assert list(problems(server.url)) == [SHARD]
        server.clear()
        server.fault = lambda path, start, stop, number: "503" if number == 1 else None
        assert not problems(server.url)
