"""A GPU trains and restores as the CPU does; the CPU's own cases show that the tests themselves are right."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from jobs import assert_same_bits, state
from small import changing_network, draw_photo, small_config, small_shards
from steps import any_device, begun, kept, spoiled  # noqa: F401  # a fixture

from srcnn.data.loader import LoaderConfig
from srcnn.models.device import full_precision, to_device
from srcnn.restoration.restore import restore
from srcnn.tracking.history import read_metrics
from srcnn.training.optimizer import OptimizerConfig
from srcnn.training.step import resolve_pending_step, train_step
from srcnn.training.trainer import train

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
# Small steps: what is compared is the arithmetic of a step, not how training blows up its rounding.
OPTIMIZER = OptimizerConfig(lr=1e-4, average_halflife_samples=100)
pytestmark = pytest.mark.usefixtures("any_device")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@contextmanager
def working_on(device):
    """What is begun here computes on the device, in whole float32 where it is float32."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch, full_precision():
        patch.setattr("srcnn.training.setup.device_here", lambda: torch.device(device))
        patch.setattr("srcnn.training.trainer.write_report", lambda *_: None)
        yield


@pytest.fixture
def reproducible():
    """Of several ways to add up a gradient, those that do so in the same order every time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(device, folder, shards, **changes):
    """The points of a training of eight steps."""
    settings = {"optimizer": OPTIMIZER, "log_every_samples": 8, "validate_every_samples": 64} | changes
    with working_on(device):
        train(small_config(folder, shards, **settings))
    return read_metrics(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, shards):
    """The points of a training on the CPU, one tile at a time, in float32, not compiled."""
    return trained("cpu", tmp_path_factory.mktemp("plain") / "run", shards)


COMPILED = [({"compile": mode}, 1e-4) for mode in ("default", "reduce-overhead", "max-autotune")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes,tolerance", [
    ({}, 1e-4),
    ({"micro_batch_size": 3}, 1e-4),
    ({"stream": LoaderConfig(resident="device")}, 1e-4),
    ({"mixed_precision": "bf16"}, 3e-2),
    *COMPILED,
    ({"compile": "reduce-overhead", "micro_batch_size": 3}, 1e-4),
    ({"compile": "default", "mixed_precision": "bf16"}, 3e-2),
], ids=str)
def test_losses_are_those_of_the_plain_training(tmp_path, shards, plain, device, changes, tolerance):
    if device == "cpu" and "compile" in changes:
        pytest.skip("test_compiled compiles for a CPU")
    points = trained(device, tmp_path / "run", shards, **changes)
    for key in ("train/loss", "train/psnr", "train/psnr_in", "gradient_norm", "val/psnr", "val/psnr_last_weights"):
        expected = [point[key] for point in plain if key in point]
        assert [point[key] for point in points if key in point] == pytest.approx(expected, rel=tolerance), key
    assert points[-1]["skipped_steps"] == 0


@needs_gpu
def test_fp16_trains_too_while_its_scaler_looks_for_a_scale(tmp_path, shards, plain):
    points = trained("cuda", tmp_path / "run", shards, mixed_precision="fp16", total_samples=128)
    final = state(tmp_path / "run")
    assert points[-1]["skipped_steps"] <= 8 and final["scaler"]["scale"] > 0
    assert points[-1]["train/psnr_in"] > 10 and points[-1]["val/psnr"] == pytest.approx(plain[-1]["val/psnr"], abs=0.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name,first", [("adam", 0), ("sgd", 0), ("adamw", 3)])
def test_a_step_that_is_not_finite_is_left_out_by_the_device(tmp_path, shards, monkeypatch, device, name, first):
    monkeypatch.setattr("srcnn.training.components.ASYNC_DEVICES", ("cpu", "cuda"))
    reported = []
    monkeypatch.setattr("srcnn.training.step.report_skipped_step", lambda _, step: reported.append(step))
    with working_on(device):
        trainer, batches = begun(tmp_path, shards, optimizer=replace(OPTIMIZER, name=name))
        assert trainer.async_steps and trainer.accelerator.device.type == device
        for _ in range(first):
            train_step(trainer, next(batches))
        resolve_pending_step(trainer)
        before, spoilt = kept(trainer), next(batches)
        with spoiled(trainer):
            train_step(trainer, spoilt)
        assert not reported, "it is not known yet"
        after = kept(trainer)
        train_step(trainer, next(batches))
        resolve_pending_step(trainer)
        (skipped,) = reported
        assert (skipped.step, skipped.samples) == (first + 1, 8 * first + 8)
        assert torch.equal(skipped.tiles, spoilt.samples)
        assert_same_bits(after[:2], before[:2])
        for number, values in before[2].items():
            assert_same_bits(after[2][number], values)
        assert trainer.state.skipped_steps == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", [False, "reduce-overhead"])
def test_continued_it_is_the_same_to_the_last_bit(tmp_path, shards, reproducible, device, mode):
    if device == "cpu" and mode:
        pytest.skip("test_compiled compiles for a CPU")
    for name, ends in (("whole", (64,)), ("parts", (24, 64))):
        for total in ends:
            trained(device, tmp_path / name, shards, total_samples=total, compile=mode, validate_every_samples=24)
    parts, whole = state(tmp_path / "parts"), state(tmp_path / "whole")
    for key in ("network", "average", "optimizer", "step", "samples"):
        assert_same_bits(parts[key], whole[key])


@needs_gpu
def test_on_a_gpu_weights_gradients_and_state_are_channels_last_and_a_step_waits_for_nothing(tmp_path, shards):
    with working_on("cuda"):
        trainer, batches = begun(tmp_path, shards, optimizer=OPTIMIZER)
        assert trainer.async_steps
        for _ in range(3):
            train_step(trainer, next(batches))
        batch = next(batches)
        resolve_pending_step(trainer)  # which does wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(trainer, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        resolve_pending_step(trainer)
        weight = trainer.network.conv3.weight
        moments = trainer.optimizer.state[weight]
        for tensor in (weight, weight.grad, moments["exp_avg"], moments["exp_avg_sq"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [True, False])
def test_a_restored_photo_is_that_of_the_cpu_within_a_level(device, exact):
    photo, network = draw_photo(0, 203, 149), changing_network()
    expected = restore(photo, network, exact=True)
    restored = restore(photo, to_device(copy.deepcopy(network), torch.device(device)), exact=exact)
    difference = np.abs(restored.astype(int) - expected)
    assert np.any(expected != photo) and difference.max() <= (1 if exact else 2) and difference.mean() < 0.2
