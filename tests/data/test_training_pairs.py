"""Clean tiles degraded while training: pure in (seed, position), damages as Pillow makes them, trainings to the bit."""

import dataclasses
import io
from functools import partial

import numpy as np
import pytest
import torch
from jobs import assert_same_run
from PIL import Image
from small import draw_photo, small_config, small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig, train_batches
from srcnn.data.prefetch import BufferRing
from srcnn.data.shuffle import BatchPlan, generator_at, symmetries_at
from srcnn.data.training_pairs import DegradationConfig, PairMaker, apply_symmetry, make_training_pair
from srcnn.data.transforms import apply_symmetries
from srcnn.models.srcnn import ModelConfig
from srcnn.photos import damages
from srcnn.photos.damages import DAMAGES, Damaged, check_damage, damage
from srcnn.photos.jpeg_quality import CONDITION_SIZE, jpeg_save_of
from srcnn.runtime import signals
from srcnn.runtime.signals import StopRequested
from srcnn.training.config import TrainConfig
from srcnn.training.setup import open_shards
from srcnn.training.trainer import train

EVERY = {name: {} for name in ("bicubic", "blur", "clean", "jpeg", "jpeg_twice", "noise", "webp")}
MIXED = DegradationConfig(24, [1.0, 0.5], {**EVERY, "bicubic": {"scales": [2, 3]}, "jpeg": {"weight": 3}}, 0.2)
PHOTO = draw_photo(5, 65, 47)
RUNS = LoaderConfig(order="runs", run_samples=2, window_samples=8, lead_samples=16, num_lanes=2, prefetch_batches=2)


@pytest.fixture(scope="module", params=["npy", "png"])
def shards(request, tmp_path_factory):
    """Clean 48x48 tiles, 6 a photo; pairs for the validation."""
    made = {"contents": "clean", "tile_pixels": 48, "color": "rgb", "samples_per_shard": 12}
    return small_shards(tmp_path_factory.mktemp(request.param), encoding=request.param, **made)


def colour_config(run, shards, **changes):
    model = ModelConfig(filters=(8, 4), residual=True, channels=3)
    return small_config(run, shards, **{"model": model, "degradation": MIXED} | changes)


def by_position(shards, stream, start, stop, batch_size, num_ranks, config=MIXED):
    """Every sample of the batches of all ranks, by its step: sorted, as bytes."""
    steps = {}
    for rank in range(num_ranks):
        reader = ShardDataset(shards / "train")
        maker = PairMaker(config, 3, True, reader.tile_shape)
        batches = train_batches(reader, stream, BatchPlan(3, start, stop, batch_size, rank, num_ranks), maker=maker)
        for step, batch in enumerate(batches):
            assert not batch.symmetries.any(), "turned already"
            rows = zip(batch.samples.tolist(), batch.clean, batch.degraded, batch.conditions, strict=True)
            steps.setdefault(start + step * batch_size, []).extend(
                (sample, clean.tobytes(), degraded.tobytes(), told.tobytes()) for sample, clean, degraded, told in rows)
    return {position: sorted(rows) for position, rows in steps.items()}


@pytest.mark.parametrize("stream", [LoaderConfig(prefetch_batches=2), RUNS], ids=["uniform", "runs"])
def test_samples_are_the_same_for_any_ranks_and_after_any_stop(shards, stream):
    whole = by_position(shards, stream, 0, 91, 7, 1)
    assert len(whole) == 13 and len({row[2] for rows in whole.values() for row in rows}) > 80, "each time anew"
    assert by_position(shards, stream, 0, 91, 7, 2) == by_position(shards, stream, 0, 91, 7, 3) == whole
    resumed = by_position(shards, stream, 35, 91, 7, 3)
    assert resumed == {position: rows for position, rows in whole.items() if position >= 35}


def test_a_set_in_memory_gives_the_same_samples(shards):
    from srcnn.data.device_loader import device_batches

    found = []
    for resident in ("no", "host"):
        reader = ShardDataset(shards / "train")
        maker, stream = PairMaker(MIXED, 3, True, reader.tile_shape), LoaderConfig(resident=resident)
        batches = device_batches(reader, stream, BatchPlan(3, 10, 40, 5, 0, 1), torch.device("cpu"), None, maker)
        found.append([[tensor.clone() for tensor in batch] for batch in batches])
    assert len(found[0]) == 6
    assert all(torch.equal(*both) for pair in zip(*found, strict=True) for both in zip(*pair, strict=True))


def test_pairs_are_those_of_the_function_at_their_position(shards):
    reader = ShardDataset(shards / "train")
    tiles, _ = reader.read(np.arange(reader.num_samples))
    maker, order = PairMaker(MIXED, 3, True, reader.tile_shape), LoaderConfig().make_shuffle(3, reader)
    batch = next(train_batches(reader, LoaderConfig(), BatchPlan(3, 14, 21, 7), maker=maker))
    for row, position in enumerate(range(14, 21)):
        at = np.array([position])
        tile, symmetry = tiles[order.samples_at(at)[0]], int(symmetries_at(3, at)[0])
        pair = make_training_pair(tile, MIXED, generator_at(3, position), symmetry)
        for made, expected in zip((batch.clean, batch.degraded, batch.conditions), pair, strict=True):
            assert np.array_equal(made[row], expected)


def test_crops_lie_anywhere_in_the_tile():
    tile = np.stack([*np.mgrid[:41, :47], np.zeros((41, 47))], -1).astype(np.uint8)
    config = DegradationConfig(24, damages={"clean": {}})
    corners = set()
    for position in range(2000):
        pair = make_training_pair(tile, config, generator_at(0, position))
        top, left = pair.clean[0, 0, :2].tolist()
        assert np.array_equal(pair.clean, tile[top : top + 24, left : left + 24])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(18)) and {left for _, left in corners} == set(range(24))
    assert {(top % 8, left % 8) for top, left in corners} == {(top, left) for top in range(8) for left in range(8)}


def test_reduced_crops_are_larger_ones_resized():
    config = DegradationConfig(24, [0.75], {"clean": {}})
    pair = make_training_pair(PHOTO[:32, :32], config, generator_at(1, 0))
    expected = Image.fromarray(PHOTO[:32, :32]).resize((24, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(pair.clean, np.asarray(expected))


def test_tiles_are_turned_as_tensors_are_and_before_they_are_damaged():
    tile, symmetries = PHOTO[:40, :40], torch.arange(8, dtype=torch.uint8)
    expected = apply_symmetries(torch.from_numpy(tile).permute(2, 0, 1).repeat(8, 1, 1, 1), symmetries)
    config = DegradationConfig(40, damages={"jpeg": {"quality": [30, 30], "share_444": 0}})
    for symmetry in range(8):
        assert np.array_equal(apply_symmetry(tile, symmetry), expected[symmetry].permute(1, 2, 0).numpy())
        pair = make_training_pair(tile, config, generator_at(0, 0), symmetry)
        assert np.array_equal(pair.clean, apply_symmetry(tile, symmetry))
        assert np.array_equal(pair.degraded, saved(pair.clean, 30, "4:2:0")[0])


def saved(pixels, quality, subsampling):
    """A JPEG by Pillow alone: its pixels, and what its own tables tell."""
    buffer = io.BytesIO()
    options = {"subsampling": subsampling} if pixels.ndim == 3 else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    image = Image.open(buffer)
    return np.asarray(image), jpeg_save_of(image).condition


@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[..., 1]], ids=["rgb", "grey"])
def test_a_jpeg_is_pillows_and_its_condition_that_of_the_files_tables(pixels):
    made = {saved(pixels, quality, sub)[0].tobytes(): saved(pixels, quality, sub)[1]
            for quality in range(10, 15) for sub in ("4:2:0", "4:4:4")}
    seen = set()
    for position in range(60):
        degraded, told = DAMAGES["jpeg"](pixels, generator_at(0, position), quality=[10, 14], share_444=0.5)
        assert np.array_equal(told, made[degraded.tobytes()])
        seen.add(degraded.tobytes())
    assert seen == set(made), "every quality and subsampling comes"


def test_a_jpeg_saved_twice_is_told_by_its_last_tables_or_the_coarser_of_both():
    settings = {"quality": [20, 21], "share_444": 0.0}
    told_of = {saved(PHOTO, quality, "4:2:0")[1].tobytes(): quality for quality in (20, 21)}
    possible = {}
    for first in (20, 21):
        for rows in range(16):
            for columns in range(16):
                larger = np.pad(PHOTO, [(rows, 0), (columns, 0), (0, 0)], "symmetric")
                between = saved(larger, first, "4:2:0")[0][rows:, columns:]
                for last in (20, 21):
                    possible[saved(between, last, "4:2:0")[0].tobytes()] = (first, last, rows, columns)
    found = []
    for position in range(300):
        degraded, told = DAMAGES["jpeg_twice"](PHOTO, generator_at(0, position), **settings, share_shifted=0.5)
        first, last, *shift = possible[degraded.tobytes()]
        found.append((first, last, told_of[told.tobytes()], any(shift)))
    assert {told for first, last, told, _ in found if (first, last) == (20, 21)} == {20, 21}
    assert {told for first, last, told, _ in found if last == 20} == {20}
    coarser = np.mean([told == 20 for first, last, told, _ in found if (first, last) == (20, 21)])
    assert coarser == pytest.approx(0.5, abs=0.2)
    assert np.mean([shifted for *_, shifted in found]) == pytest.approx(0.5, abs=0.1)


def test_a_lower_quality_has_the_coarser_steps_throughout():
    luma, chroma = zip(*(condition_tables(quality) for quality in range(1, 101)), strict=True)
    assert (np.diff(luma, axis=0) <= 0).all() and (np.diff(chroma, axis=0) <= 0).all()


def condition_tables(quality):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization
    return tables[0], tables[1]


def test_clean_samples_are_unchanged_and_come_as_often_as_asked():
    config = DegradationConfig(24, damages={"clean": {"weight": 1}, "noise": {"weight": 3}}, unknown=0.25)
    pairs = [make_training_pair(PHOTO[:30, :31], config, generator_at(0, position)) for position in range(1200)]
    is_clean = np.array([np.array_equal(pair.clean, pair.degraded) for pair in pairs])
    assert is_clean.mean() == pytest.approx(0.25, abs=0.04)
    told = np.array([pair.condition for pair in pairs])
    assert not told[~is_clean].any(), "a file with noise that is no JPEG tells nothing"
    known = told[is_clean].any(1)
    assert known.mean() == pytest.approx(0.75, abs=0.08)
    finest = jpeg_save_of(Image.open(io.BytesIO(jpeg_bytes(PHOTO[:24, :24], 100)))).condition
    assert np.array_equal(np.unique(told[is_clean][known], axis=0), [finest])


def test_a_share_of_colour_samples_is_grey_and_damaged_as_a_grey_photo():
    damages_of_jpeg = {"jpeg": {"quality": [30, 30]}}
    config = DegradationConfig(24, damages=damages_of_jpeg, unknown=0, grey=0.25)
    pairs = [make_training_pair(PHOTO[:30, :31], config, generator_at(0, position)) for position in range(800)]
    is_grey = np.array([(pair.clean == pair.clean[..., :1]).all() for pair in pairs])
    assert is_grey.mean() == pytest.approx(0.25, abs=0.05)
    clean, degraded, condition = next(pair for pair, grey in zip(pairs, is_grey) if grey)
    buffer = io.BytesIO()
    Image.fromarray(clean[..., 0]).save(buffer, "JPEG", quality=30)
    saved = Image.open(buffer)
    assert np.array_equal(condition, jpeg_save_of(saved).condition)
    assert np.array_equal(degraded, np.dstack([saved] * 3))


def jpeg_bytes(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


def test_noise_and_blur_are_as_strong_as_told():
    flat = np.full((101, 103, 3), 128, np.uint8)
    noisy, told = DAMAGES["noise"](flat, generator_at(0, 0), sigma=[10, 10])
    assert told is None and noisy.std() == pytest.approx(10, rel=0.02) and noisy.mean() == pytest.approx(128, abs=0.2)
    edge = np.zeros((41, 101), np.uint8)
    edge[:, 50:] = 255
    blurred = DAMAGES["blur"](edge, generator_at(0, 0), sigma=[4, 4]).pixels
    spread = np.diff(blurred[20].astype(float)) / 255  # of an edge the blur's own shape
    centre = (spread * np.arange(100)).sum()
    assert np.sqrt((spread * (np.arange(100) - centre) ** 2).sum()) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[..., 0]], ids=["rgb", "grey"])
def test_webp_loses_more_at_a_lower_quality(pixels):
    saved = [DAMAGES["webp"](pixels, generator_at(0, 0), quality=[quality] * 2).pixels for quality in (5, 90)]
    errors = [np.square(picture.astype(float) - pixels) for picture in saved]
    assert errors[0].mean() > 2 * errors[1].mean() > 0


@pytest.fixture
def salt():
    """A damage of one's own."""

    @damage
    def salt(pixels, generator, share=0.01):
        return Damaged(np.where(generator.random(pixels.shape[:2])[..., None] < share, np.uint8(255), pixels))

    yield salt
    del DAMAGES["salt"]


def test_a_damage_of_ones_own_is_found_by_its_name(salt):
    config = DegradationConfig(24, damages={"salt": {"share": 0.5}, "clean": {}})
    found = {np.mean(make_training_pair(PHOTO, config, generator_at(0, position)).degraded == 255) > 0.2
             for position in range(20)}
    assert found == {True, False}


@pytest.mark.parametrize(("settings", "words"), [
    ({"crop_pixels": 20, "damages": {"jpeg": {}}}, ["crop_pixels 20"]),
    ({"crop_pixels": 24}, ["damages"]),
    ({"damages": {"jpeg": {}}}, ["crop_pixels"]),
    ({"crop_pixels": 24, "damages": {"jpg": {}}}, ["damages.jpg", "jpeg_twice"]),
    ({"crop_pixels": 24, "damages": {"jpeg": {"qualty": [5, 9]}}}, ["damages.jpeg", "qualty", "quality"]),
    ({"crop_pixels": 24, "damages": {"jpeg": {"quality": [0, 9]}}}, ["damages.jpeg", "[0, 9]"]),
    ({"crop_pixels": 24, "damages": {"jpeg": {"quality": [9, 5]}}}, ["damages.jpeg", "[9, 5]"]),
    ({"crop_pixels": 24, "damages": {"jpeg": {"quality": 9}}}, ["damages.jpeg"]),
    ({"crop_pixels": 24, "damages": {"jpeg_twice": {"share_shifted": 1.5}}}, ["damages.jpeg_twice", "1.5"]),
    ({"crop_pixels": 32, "damages": {"bicubic": {"scales": [3]}}}, ["damages.bicubic", "3"]),
    ({"crop_pixels": 24, "damages": {"clean": {"weight": 0}}}, ["damages.clean", "weight 0"]),
    ({"crop_pixels": 24, "damages": {"clean": {}}, "scales": [2.0]}, ["scales", "2.0"]),
    ({"crop_pixels": 24, "damages": {"clean": {}}, "unknown": -0.1}, ["unknown", "-0.1"]),
    ({"crop_pixels": 24, "damages": {"clean": {}}, "grey": 1.5}, ["grey", "1.5"]),
])
def test_settings_that_cannot_be_are_named(settings, words):
    with pytest.raises(ValueError) as caught:
        DegradationConfig(**settings).check((48, 48, 3))
    assert all(word in str(caught.value) for word in words)


def test_a_name_is_not_taken_twice():
    def jpeg(pixels, generator):
        return Damaged(pixels)

    with pytest.raises(ValueError, match="srcnn.photos.damages.*jpeg"):
        damage(jpeg)
    assert DAMAGES["jpeg"] is damages.jpeg


def test_a_damage_that_gives_something_else_is_refused(salt, monkeypatch):
    for give in (lambda pixels: pixels, lambda pixels: Damaged(pixels / 2), lambda pixels: Damaged(pixels[1:])):
        wrong = partial(lambda give, pixels, _: give(pixels), give)
        monkeypatch.setitem(DAMAGES, "salt", wrong)
        with pytest.raises(ValueError, match="expected"):
            check_damage("salt", {}, (24, 24, 3))


def test_settings_that_do_not_fit_the_shards_are_named(shards, tmp_path):
    pairs = small_shards(tmp_path, tile_pixels=48, color="rgb")
    none, large = DegradationConfig(), DegradationConfig(32, [0.5], {"clean": {}})
    for config, words in (
        (colour_config(tmp_path / "run", shards, degradation=none), ["train", "degradation.crop_pixels"]),
        (colour_config(tmp_path / "run", shards, degradation=large), ["crop_pixels 32", "64 pixels", "48x48"]),
        (colour_config(tmp_path / "run", shards, model=ModelConfig(filters=(8, 4))), ["3 channels", "model.channels"]),
        (colour_config(tmp_path / "run", pairs), ["train", "pairs", "contents clean"]),
    ):
        with pytest.raises(ValueError) as caught:
            open_shards(config)
        assert all(word in str(caught.value) for word in words), caught.value


def test_settings_that_exclude_each_other_are_named():
    made = {"degradation": MIXED, "model": ModelConfig(channels=3)}
    for changes, word in (({"overfit_tiles": 8}, "overfit_tiles 8"),
                          ({"stream": LoaderConfig(resident="device")}, "stream.resident device"),
                          ({"model": ModelConfig(), "luma_weight": 0.5}, "luma_weight 0.5"),
                          ({"luma_weight": -1.0}, "luma_weight -1")):
        with pytest.raises(ValueError, match=word):
            TrainConfig(**made | changes)


def test_a_training_that_was_stopped_continues_to_the_same_bits(shards, tmp_path, monkeypatch):
    whole = train(colour_config(tmp_path / "whole", shards))
    assert whole["val/psnr_luma"] > whole["val/psnr"], "chroma is damaged most"
    steps = []

    def stop_requested():
        return StopRequested("by the test") if len(steps) >= 5 else None

    made = PairMaker.fill

    def counting(maker, *arguments):
        steps.append(1)
        return made(maker, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(PairMaker, "fill", counting)
        patched.setattr(signals, "stop_requested", stop_requested)
        with pytest.raises(StopRequested):
            train(colour_config(tmp_path / "stopped", shards, stream=LoaderConfig(num_threads=1, prefetch_batches=1)))
    assert 0 < len(steps) < 8
    assert train(colour_config(tmp_path / "stopped", shards)) == whole
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    gentler = dataclasses.replace(MIXED, damages=EVERY | {"bicubic": {"scales": [2]}})
    for other in (gentler, dataclasses.replace(MIXED, scales=[1.0])):
        with pytest.raises(Exception, match="degradation"):
            train(colour_config(tmp_path / "stopped", shards, degradation=other))


def test_buffers_come_again_in_turn():
    ring = BufferRing((3, 5), 3, num_members=1)
    taken = [ring.take(size) for size in (4, 4, 4, 4, 2, 4)]
    assert taken[3] is taken[0] and taken[5] is taken[2] and len({id(buffer) for buffer in taken[:3]}) == 3
    assert taken[4].clean.shape == (2, 3, 5) and taken[0].degraded is taken[0].clean
    assert damages.MCU_PIXELS == 16 and CONDITION_SIZE == 22
