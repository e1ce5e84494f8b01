"""The training loop in this process: same result however it is cut up, continued exactly, learning at all."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from messages import facts, lines_with
from small import small_config, small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import Batch, LoaderConfig
from srcnn.data.shuffle import symmetries_at
from srcnn.data.transforms import apply_symmetries, to_float_batch
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize, load_model
from srcnn.runtime.distributed import DistributedError
from srcnn.tracking.history import read_metrics
from srcnn.training import checkpoint
from srcnn.training.optimizer import OptimizerConfig, build_optimizer
from srcnn.training.setup import start_accelerator
from srcnn.training.trainer import train
from srcnn.training.validation import BATCH_SIZE, validate


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


def weights(run):
    """The latest weights, not the best ones, which may be older than what a test changes."""
    return [tensor.numpy() for tensor in load_model(checkpoint.latest(run)).state_dict().values()]


def assert_same_weights(first, second, tolerance=0.0):
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_a_run_leaves_what_the_design_promises(tmp_path, shards):
    values = train(small_config(tmp_path / "run", shards))
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {"config.yaml", "metrics.jsonl", "checkpoint.pth", "best", "checkpoints/step-00000008/model.safetensors",
            "report/loss.png", "report/psnr.png", "report/tiles.png", "report/photo.png", "report/table.md",
            "report/index.html"} <= names
    points = read_metrics(tmp_path / "run")
    assert [point["samples"] for point in points] == [32, 64]
    assert points[-1]["val/psnr"] == values["val/psnr"]
    assert values["val/gain"] == pytest.approx(values["val/psnr"] - values["val/psnr_in"])
    assert values["val/psnr_in"] == pytest.approx(ShardDataset(shards / "val").manifest.degraded_psnr, abs=1e-3)
    keys = ("loss", "psnr", "psnr_in")
    for key in (*(f"train/{key}" for key in keys), "learning_rate", "tiles_per_second", "data_wait", "memory_gib"):
        assert np.isfinite(points[0][key])


def test_people_are_told_what_is_trained_on_what_and_where_the_results_are(tmp_path, shards, caplog):
    caplog.set_level("INFO")
    config = small_config(tmp_path / "run", shards)
    values = train(config)  # the last validation is the best
    weights = sum(tensor.numel() for tensor in load_model(tmp_path / "run").state_dict().values())
    for told in ((f"{weights:,} weights", "SRCNN 9-1-5"), (shards, "75 tiles", "32x32", "45", "JPEG quality 20"),
                 ("1 x", "float32"), ("64 tiles", "batches of 8"), (tmp_path / "run/report/index.html",),
                 ("best", f"{values['val/psnr']:.2f} dB", f"{values['val/gain']:+.2f} dB",
                  f"srcnn restore PHOTO --model {config.run}")):
        assert lines_with(caplog.text, *told), told


def test_training_learns(tmp_path, shards):
    config = small_config(tmp_path / "run", shards, total_samples=2000, validate_every_samples=2000,
                          log_every_samples=400, optimizer=OptimizerConfig(lr=3e-3, schedule="cosine"))
    assert train(config)["val/gain"] > 0.3


def test_micro_batches_change_nothing_but_rounding(tmp_path, shards):
    for micro in (8, 3, 1):
        train(small_config(tmp_path / str(micro), shards, micro_batch_size=micro))
    assert_same_weights(tmp_path / "8", tmp_path / "3", 1e-6)
    assert_same_weights(tmp_path / "8", tmp_path / "1", 1e-6)


def test_a_run_is_repeatable_to_the_last_bit(tmp_path, shards):
    for name in ("a", "b"):
        train(small_config(tmp_path / name, shards))
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("halflife", [0, 100])
def test_a_continued_run_equals_an_uninterrupted_one(tmp_path, shards, halflife):
    optimizer = OptimizerConfig(lr=2e-3, average_halflife_samples=halflife)
    train(small_config(tmp_path / "whole", shards, optimizer=optimizer))
    train(small_config(tmp_path / "parts", shards, optimizer=optimizer, total_samples=32))
    train(small_config(tmp_path / "parts", shards, optimizer=optimizer, total_samples=64))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    whole, parts = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    for key in ("samples", "train/loss", "val/psnr"):
        assert [point.get(key) for point in whole] == [point.get(key) for point in parts]


def test_a_finished_run_started_again_changes_nothing(tmp_path, shards):
    train(small_config(tmp_path / "run", shards))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes(), weights(tmp_path / "run")
    values = train(small_config(tmp_path / "run", shards))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before[0]
    assert values["val/psnr"] == read_metrics(tmp_path / "run")[-1]["val/psnr"]


def test_numbers_after_the_checkpoint_are_not_doubled_when_continuing(tmp_path, shards):
    run = tmp_path / "run"
    train(small_config(run, shards, total_samples=32))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"samples": 48, "train/loss": 1.0}) + '\n{"samples": 5')  # then killed
    train(small_config(run, shards))
    assert [point["samples"] for point in read_metrics(run)] == [32, 64]


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": ModelConfig(filters=(8, 5), residual=True)}])
def test_a_run_does_not_continue_as_another(tmp_path, shards, change):
    train(small_config(tmp_path / "run", shards))
    with pytest.raises(DistributedError, match=facts(next(iter(change)), "--run", "--fresh")):
        train(small_config(tmp_path / "run", shards, **change))


def test_a_run_does_not_continue_with_other_lanes(tmp_path, shards):
    stream = LoaderConfig("runs", run_samples=1, num_lanes=2, window_samples=8, lead_samples=4)
    train(small_config(tmp_path / "run", shards, stream=stream))
    other = replace(stream, lanes="kept")
    with pytest.raises(DistributedError, match=facts("data.order", 1, 2, "kept", "--fresh")):
        train(small_config(tmp_path / "run", shards, stream=other))


def test_a_continued_run_takes_the_new_learning_rate_but_no_other_optimizer(tmp_path, shards):
    train(small_config(tmp_path / "run", shards, total_samples=32))
    train(small_config(tmp_path / "run", shards, optimizer=OptimizerConfig(lr=1e-5)))
    points = [point["learning_rate"] for point in read_metrics(tmp_path / "run") if "learning_rate" in point]
    assert points == pytest.approx([2e-3, 1e-5])
    with pytest.raises(DistributedError, match=facts("optimizer.name", "adam", "sgd")):
        train(small_config(tmp_path / "run", shards, optimizer=OptimizerConfig(name="sgd", lr=1e-5)))


def test_a_kill_before_the_best_was_linked_is_mended_by_the_next_start(tmp_path, shards):
    run = tmp_path / "run"
    train(small_config(run, shards, validate_every_samples=64))
    (run / "best").unlink()
    (run / "checkpoint.pth").unlink()
    train(small_config(run, shards, validate_every_samples=64))
    assert (run / "best").resolve().name == "step-00000008" and (run / "checkpoint.pth").is_file()


def test_a_best_checkpoint_that_is_damaged_is_told_and_replaced(tmp_path, shards, caplog):
    run = tmp_path / "run"
    config = small_config(run, shards, total_samples=32, save_every_samples=8, keep_checkpoints=1)
    train(config)
    train(replace(config, total_samples=40, optimizer=OptimizerConfig(lr=0.3)))  # worse
    best = (run / "best").resolve()
    (best / "model.safetensors").write_bytes(b"damaged")
    (run / "best").unlink()
    train(replace(config, total_samples=64))
    assert lines_with(caplog.text, best, "model.safetensors")
    load_model(run)


def test_weights_of_another_network_are_refused_as_a_start(tmp_path, shards):
    train(small_config(tmp_path / "first", shards))
    for model in (ModelConfig(filters=(8, 4)), ModelConfig(filters=(8, 5), residual=True)):
        with pytest.raises(ValueError, match=facts("ModelConfig", "residual=True")):
            train(small_config(tmp_path / "second", shards, model=model, weights=str(tmp_path / "first")))


@pytest.mark.parametrize("changes", [{"encoding": "png"}, {"color": "rgb"}])
def test_png_and_rgb_shards_train_too(tmp_path, changes):
    channels = 3 if "color" in changes else 1
    model = ModelConfig(filters=(8, 4), residual=True, channels=channels)
    values = train(small_config(tmp_path / "run", small_shards(tmp_path, **changes), model=model))
    assert np.isfinite(values["val/psnr"])


def test_tiles_too_small_for_the_network_and_its_scores_are_named(tmp_path):
    shards = small_shards(tmp_path, tile_pixels=16)
    model = ModelConfig(kernels=(9, 5, 5), filters=(2, 2))
    with pytest.raises(ValueError, match=facts(16, 17)):
        train(small_config(tmp_path / "run", shards, model=model, loss_crop=True))


def test_a_run_may_continue_with_another_batch_size(tmp_path, shards):
    train(small_config(tmp_path / "run", shards, total_samples=32))
    train(small_config(tmp_path / "run", shards, batch_size_per_process=4))
    state = checkpoint.load_training(checkpoint.latest(tmp_path / "run"))
    assert (state["step"], state["samples"]) == (4 + 8, 64)


def test_averaged_weights_are_validated_and_saved(tmp_path, shards):
    config = small_config(tmp_path / "run", shards, optimizer=OptimizerConfig(lr=5e-3, average_halflife_samples=1000))
    train(config)
    state = checkpoint.load_training(checkpoint.latest(tmp_path / "run"))
    average = SRCNN(config.model, centred=True)
    average.load_state_dict(state["average"])
    assert not torch.equal(state["average"]["conv1.weight"], state["network"]["conv1.weight"])
    scored = validate(average, ShardDataset(shards / "val"), Accelerator(cpu=True))
    point = read_metrics(tmp_path / "run")[-1]
    assert point["val/psnr"] == pytest.approx(scored["val/psnr"], abs=1e-9)
    assert point["val/psnr_last_weights"] != point["val/psnr"]


def test_overfitting_trains_and_validates_on_the_same_tiles(tmp_path, shards, caplog):
    caplog.set_level("INFO")
    config = small_config(tmp_path / "run", shards, model=ModelConfig(filters=(16, 8), residual=True), overfit_tiles=4,
                          augment=False, batch_size_per_process=4, total_samples=3200, validate_every_samples=3200,
                          optimizer=OptimizerConfig(lr=2e-3, last_layer_lr_factor=0.1, schedule="cosine"))
    values = train(config)
    assert values["val/gain"] > 1
    assert values["val/psnr"] == pytest.approx(read_metrics(tmp_path / "run")[-1]["train/psnr"], abs=0.1)
    assert lines_with(caplog.text, 4, f"{values['val/gain']:.2f}")


def test_starting_from_other_weights(tmp_path, shards):
    train(small_config(tmp_path / "first", shards))
    values = train(small_config(tmp_path / "second", shards, weights=str(tmp_path / "first"), total_samples=8,
                                validate_every_samples=8, optimizer=OptimizerConfig(lr=1e-12)))
    assert values["val/psnr"] == pytest.approx(read_metrics(tmp_path / "first")[-1]["val/psnr"], abs=1e-4)


def test_tiles_and_network_of_other_channels_are_refused(tmp_path, shards):
    with pytest.raises(ValueError, match=facts("model.channels", 1, 3)):
        train(small_config(tmp_path / "run", shards, model=ModelConfig(channels=3)))


@pytest.mark.parametrize("log_every,validate_every", [(32, 32), (64, 8), (8, 64)])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, shards, log_every, validate_every):
    config = small_config(tmp_path / "run", shards, optimizer=OptimizerConfig(name="sgd", lr=1e30),
                          log_every_samples=log_every, validate_every_samples=validate_every)
    with pytest.raises(FloatingPointError, match="optimizer.lr"):
        train(config)
    if folder := checkpoint.latest(tmp_path / "run"):
        state = checkpoint.load_training(folder)
        assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_both_tiles_of_a_pair_get_the_symmetry_of_their_position():
    tiles = np.random.default_rng(0).integers(0, 256, (64, 5, 5), np.uint8)
    symmetries = symmetries_at(3, np.arange(64))
    batch = Batch(tiles, 255 - tiles, np.arange(64), symmetries)
    clean, degraded = to_float_batch(batch.map(torch.from_numpy), augment=True)
    torch.testing.assert_close(clean + degraded, torch.ones_like(clean))
    for tile, symmetry, out in zip(tiles, symmetries, clean, strict=True):
        expected = tile[:, ::-1] if symmetry & 1 else tile
        expected = expected[::-1] if symmetry & 2 else expected
        expected = expected.T if symmetry & 4 else expected
        np.testing.assert_allclose(out[0].numpy() * 255, expected, atol=1e-3)


def test_the_eight_symmetries_are_all_different():
    square = torch.arange(9.0).view(1, 1, 3, 3).expand(8, 1, 3, 3)
    symmetries = torch.arange(8, dtype=torch.uint8)
    results = apply_symmetries(square, symmetries)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 8


@pytest.mark.slow
def test_compiled_the_symmetries_are_the_same():
    square, symmetries = torch.rand(8, 1, 3, 3), torch.arange(8, dtype=torch.uint8)
    compiled = torch.compile(apply_symmetries, fullgraph=True)(square, symmetries)
    torch.testing.assert_close(compiled, apply_symmetries(square, symmetries), rtol=0, atol=0)


def test_validation_does_not_depend_on_the_batch_size(shards, monkeypatch):
    model = SRCNN(ModelConfig(residual=True))
    initialize(model, "pytorch", 0)
    reader, accelerator = ShardDataset(shards / "val"), Accelerator(cpu=True)
    scores = []
    for size in (1, 7, 64):
        monkeypatch.setitem(BATCH_SIZE, "cpu", size)
        scores.append(validate(model, reader, accelerator)["val/psnr"])
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("is_finite", [True, False])
def test_a_scaler_is_kept_in_checkpoints_and_lowered_by_steps_that_are_not_finite(
    tmp_path, shards, monkeypatch, is_finite
):
    """fp16's scaler, which works on a CPU too."""
    scalers, optimizers = [], []

    def with_scaler(config):
        accelerator = start_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        accelerator.clip_grad_norm_ = unscaled_norm  # as Accelerate's own does for fp16
        scalers.append(accelerator.scaler)
        return accelerator

    def unscaled_norm(parameters, max_norm):
        scalers[-1].unscale_(optimizers[-1])
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def keep(*arguments):
        optimizers.append(build_optimizer(*arguments))
        return optimizers[-1]

    def far_too_bright(batch, augment):
        clean, degraded = to_float_batch(batch, augment)
        return clean, degraded * 1e30

    monkeypatch.setattr("srcnn.training.components.start_accelerator", with_scaler)
    monkeypatch.setattr("srcnn.training.components.build_optimizer", keep)
    if not is_finite:
        monkeypatch.setattr("srcnn.training.components.to_float_batch", far_too_bright)
    config = small_config(tmp_path / "run", shards, total_samples=32)
    train(config)
    state = checkpoint.load_training(checkpoint.latest(tmp_path / "run"))
    assert state["scaler"] == scalers[0].state_dict()
    assert state["skipped_steps"] == (0 if is_finite else 4)
    assert state["scaler"]["scale"] == (8.0 if is_finite else 0.25)
    train(replace(config, total_samples=64))
    assert scalers[1].get_scale() == (16.0 if is_finite else 4 / 256)


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_a_run_folder_has_the_rights_of_the_umask(tmp_path, shards, mask):
    """077: a private run stays so. 002: a colleague of the same group can continue it."""
    before = os.umask(mask)
    try:
        train(small_config(tmp_path / "run", shards, total_samples=16, trackers=["tensorboard"]))
    finally:
        os.umask(before)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        if not path.is_symlink():
            rights = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == rights, path
