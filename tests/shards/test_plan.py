from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from messages import facts, says

from shards import plan
from shards.plan import ShardsConfig, Source
from srcnn.photos.degradation import Degradation
from srcnn.runtime.errors import UserError


def source(number: int, width: int = 1600, height: int = 1067, split: str = "", name: str = "") -> Source:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    return Source("photos", name or f"{number:04d}.jpg", sha256, width, height, split)


def config(**settings: Any) -> ShardsConfig:
    return ShardsConfig(**({"photos": "photos"} | settings))


def test_the_sources_settings_give_64_pairs_of_a_photo_of_any_size() -> None:
    num_samples = config(resize="1024x1024").num_samples
    assert [num_samples(source(1, *size)) for size in ((1, 1), (333, 77), (6000, 4000))] == [64, 64, 64]


def test_photos_are_neither_enlarged_nor_stretched_unless_that_is_asked_for() -> None:
    sizes = ((1, 1), (333, 77), (1024, 700), (1025, 1024), (6000, 4000), (3001, 7001))
    assert [config().clean_size(source(1, *size)) for size in sizes] == [
        (1, 1), (333, 77), (1024, 700), (1024, 1023), (1024, 683), (439, 1024)]


@pytest.mark.parametrize(("rule", "expected"), [
    ("max:1024", (6, 3, 0, 0, 2)),
    ("1024x1024", (6, 3, 3, 3, 0)),
    ("long:1024", (6, 3, 2, 0, 0)),
    ("none", (6, 0, 0, 0, 2)),
    ("x2", (6, 0, 6, 0, 0)),
    ("x0.5", (6, 6, 0, 0, 2)),
])
def test_what_resizing_does_is_counted(rule: str, expected: tuple[int, ...]) -> None:
    sizes = ((80, 80), (333, 77), (1024, 700), (1500, 1500), (6000, 4001), (1025, 1025))
    sources = [source(number, *size) for number, size in enumerate(sizes)]
    assert plan.count_resized(config(resize=rule), sources) == expected


def test_pair_pictures_are_not_resized() -> None:
    assert plan.count_resized(ShardsConfig(pairs="pairs"), [source(1, 9, 9)]).total == 0


@pytest.mark.parametrize("settings", [{"decode": "reduced"}, {"photos": "", "pairs": "pairs"}], ids=str)
def test_pixels_that_are_not_decoded_cannot_be_searched(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=facts("check_originals", "--decode exact")):
        config(check_originals="thorough", **settings)


def test_without_resizing_the_edge_remainder_is_left_out() -> None:
    num_samples = config(resize="none").num_samples
    assert [num_samples(source(1, *size)) for size in ((127, 500), (128, 128), (255, 257), (481, 321))] == [
        0,
        1,
        2,
        6,
    ]


def test_the_scale_crops_before_the_tiles_are_cut() -> None:
    scaled = config(resize="none", degradation=Degradation(scale=5))
    assert scaled.clean_size(source(1, 514, 129)) == (510, 125)
    assert (scaled.num_samples(source(1, 514, 129)), scaled.num_samples(source(1, 515, 134))) == (0, 4)


def test_only_pair_pictures_of_the_right_size_are_pairs() -> None:
    pairs = ShardsConfig(pairs="pairs")
    sizes = ((256, 128), (128, 256), (512, 256), (255, 128), (257, 128))
    assert [pairs.num_samples(source(1, *size)) for size in sizes] == [1, 0, 0, 0, 0]


def test_the_longest_folder_decides_the_resize_rule() -> None:
    rules = config(folders={"cities": "x0.25", "cities/far": "none", "c": "long:99"}, resize="640x480")
    names = ("cities/a.jpg", "cities/far/a.jpg", "cities/farther/a.jpg", "c/a.jpg", "other/a.jpg")
    found = [rules.clean_size(source(1, 800, 400, name=name)) for name in names]
    assert found == [(200, 100), (800, 400), (200, 100), (99, 50), (640, 480)]


@given(
    numbers=st.sets(st.integers(0, 999), min_size=20, max_size=60),
    more=st.sets(st.integers(0, 999), max_size=60),
)
def test_adding_photos_moves_none_between_splits(numbers: set[int], more: set[int]) -> None:
    before = plan.assign_splits(config(), [source(number) for number in numbers])
    if min(sum(item.split == split for item in before) for split in ("train", "val")) < 2:
        reject()  # so few that the split had to be forced
    after = plan.assign_splits(config(), [source(number) for number in numbers | more])
    assert set(before) <= set(after)


def test_the_share_of_validation_is_the_one_asked_for() -> None:
    for fraction in (0.0, 0.2, 0.5):
        split = plan.assign_splits(config(val_fraction=fraction), [source(number) for number in range(2000)])
        share = sum(item.split == "val" for item in split) / 2000
        assert abs(share - fraction) < 0.05


@given(first=st.integers(0, 9999), num=st.integers(2, 6), fraction=st.floats(0.01, 0.99))
def test_of_two_photos_or_more_neither_split_is_empty(first: int, num: int, fraction: float) -> None:
    sources = [source(number) for number in range(first, first + num)]
    split = plan.assign_splits(config(val_fraction=fraction), sources)
    assert {item.split for item in split} == {"train", "val"}


def test_copies_of_a_photo_go_to_the_same_split() -> None:
    copies = [source(number)._replace(name=f"copy-{number}.jpg") for number in range(50)]
    split = plan.assign_splits(config(), [source(number) for number in range(50)] + copies)
    assert [item.split for item in split[:50]] == [item.split for item in split[50:]]
    two_copies = plan.assign_splits(config(), [source(1), source(1)._replace(name="copy.jpg")])
    assert len({item.split for item in two_copies}) == 1


def test_a_training_photo_that_is_in_the_validation_folder_too_is_refused() -> None:
    mine = [
        source(1, split="train", name="a.jpg"),
        source(2, split="train"),
        source(1, split="val", name="b.jpg"),
    ]
    kept, refused = plan.select_usable(config(), mine)
    assert kept == mine[1:]
    assert [(item.name, item.split) for item in refused] == [("a.jpg", "train")]
    assert "b.jpg" in refused[0].reason


def test_photos_that_give_no_pair_are_refused_with_their_size() -> None:
    sources = [source(1, 500, 127), source(2, 500, 128)]
    usable, refused = plan.select_usable(config(resize="none"), sources)
    assert usable == sources[1:]
    assert says(refused[0].reason, "500x127", 128)
    _, refused = plan.select_usable(ShardsConfig(pairs="pairs"), [source(3, 128, 128)])
    assert says(refused[0].reason, "128x128", "256x128")


def test_photos_larger_than_a_jpeg_can_be_are_refused() -> None:
    wide = [source(1, 65500, 128), source(2, 65501, 128)]
    usable, refused = plan.select_usable(config(resize="none"), wide)
    assert usable == wide[:1] and says(refused[0].reason, "65501x128", "JPEG", 65500)
    without_jpeg = config(resize="none", degradation=Degradation(jpeg_quality=[], scale=2))
    assert plan.select_usable(without_jpeg, wide) == (wide, [])


SIZES = st.lists(st.tuples(st.integers(64, 400), st.integers(64, 400)), min_size=1, max_size=40)


@given(sizes=SIZES, per_shard=st.integers(1, 60))
def test_every_photo_is_in_one_shard_and_keys_follow_each_other(
    sizes: list[tuple[int, int]], per_shard: int
) -> None:
    settings = config(resize="none", tile_pixels=64, samples_per_shard=per_shard)
    sources = plan.assign_splits(settings, [source(number, *size) for number, size in enumerate(sizes)])
    tasks = plan.plan_shards(settings, sources)
    for split in ("train", "val"):
        mine = [task for task in tasks if task.split == split]
        in_shards = [photo for task in mine for photo in task.sources]
        assert in_shards == [photo for photo in sources if photo.split == split]
        assert [task.name for task in mine] == [f"{number:06d}.tar" for number in range(len(mine))]
        next_sample = 0
        for task in mine:
            counts = [settings.num_samples(photo) for photo in task.sources]
            assert task.first_sample == next_sample
            assert sum(counts) <= per_shard or len(counts) == 1
            next_sample += sum(counts)


def test_the_plans_hash_is_that_of_what_goes_where() -> None:
    settings = config(samples_per_shard=64)
    sources = [source(number, split="train") for number in range(4)]
    hashes = {
        plan.plan_hash(plan.plan_shards(settings, members))
        for members in (
            sources,
            sources[:3],
            sources[::-1],
            [photo._replace(split="val") for photo in sources],
            [sources[0]._replace(name="renamed.jpg"), *sources[1:]],
            [sources[0]._replace(sha256="0" * 64), *sources[1:]],
        )
    }
    assert len(hashes) == 6
    moved = [photo._replace(root="elsewhere") for photo in sources]
    assert plan.plan_hash(plan.plan_shards(settings, moved)) in hashes


def test_where_and_how_fast_is_no_part_of_what_shards_are() -> None:
    here = config(num_workers=1, out="a", allow_refused=True, num_sheet_pairs=3)
    assert here.identity() == config(photos="elsewhere", num_workers=7, out="b").identity()
    others = (
        config(resize="none"),
        config(decode="reduced"),
        config(tile_pixels=64),
        config(color="rgb"),
        config(encoding="png"),
        config(val_fraction=0.1),
        config(val="val"),
        config(degradation=Degradation(jpeg_quality=21)),
        config(folders={"a": "none"}),
        ShardsConfig(pairs="photos"),
    )
    assert all(other.identity() != here.identity() for other in others)


def test_a_key_that_came_later_is_noted_only_where_it_changes_something() -> None:
    assert "decode" not in config().identity() and config(decode="reduced").identity()["decode"] == "reduced"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"photos": ""}, ["photos", "pairs"]),
        ({"pairs": "b"}, ["photos", "pairs"]),
        ({"tile_pixels": 100}, ["tile_pixels", 100, 8]),
        ({"tile_pixels": 0}, ["tile_pixels", 0, 8]),
        ({"val_fraction": 1.0}, ["val_fraction", 1.0]),
        ({"samples_per_shard": 0}, ["samples_per_shard"]),
        ({"num_workers": -1}, ["num_workers"]),
        ({"num_sheet_pairs": -1}, ["num_sheet_pairs"]),
        ({"max_megapixels": 0.0}, ["max_megapixels"]),
        ({"resize": "big"}, ["resize", "big"]),
        ({"folders": {"a": "x0"}}, ["x0"]),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], told: list[object]) -> None:
    with pytest.raises(ValueError, match=facts(*told)):
        config(**settings)
