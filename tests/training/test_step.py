"""A step: what the host does not wait for, and that it makes no difference when it hears how a step ended."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from jobs import assert_same_bits, assert_same_run, state
from small import small_config, small_shards
from steps import begun, kept, spoiled
from torch.utils._python_dispatch import TorchDispatchMode

from srcnn.data.dataset import ShardDataset
from srcnn.models.srcnn import SRCNN
from srcnn.runtime import signals
from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.signals import StopRequested
from srcnn.training.optimizer import OptimizerConfig, build_optimizer, complete_state
from srcnn.training.setup import start_accelerator
from srcnn.training.step import resolve_pending_step, train_step
from srcnn.training.trainer import Trainer, train

AVERAGED = OptimizerConfig(lr=2e-3, average_halflife_samples=100, schedule="cosine")
OPTIMIZERS = [AVERAGED, OptimizerConfig("adamw", weight_decay=0.1), OptimizerConfig("sgd", lr=0.02)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("srcnn.training.trainer.write_report", lambda *_: None)


@pytest.fixture(params=["at once", "late"])
def hears(request, monkeypatch):
    """When the host hears how a step ended; late is what it does on a GPU."""
    monkeypatch.setattr("srcnn.training.components.ASYNC_DEVICES", ("cpu", "cuda") if request.param == "late" else ())
    return request.param


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_it_makes_no_difference_when_the_host_hears_of_a_step(tmp_path, shards, monkeypatch, optimizer):
    for devices in ((), ("cpu",)):
        monkeypatch.setattr("srcnn.training.components.ASYNC_DEVICES", devices)
        train(small_config(tmp_path / f"{len(devices)}", shards, optimizer=optimizer, micro_batch_size=3,
                           log_every_samples=24, validate_every_samples=40, save_every_samples=16))
    assert_same_run(tmp_path / "1", tmp_path / "0")


@pytest.fixture
def skipped(monkeypatch):
    """The steps that were reported as skipped."""
    found = []
    monkeypatch.setattr("srcnn.training.step.report_skipped_step", lambda _, step: found.append(step))
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
@pytest.mark.parametrize("first", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(tmp_path, shards, hears, skipped, optimizer, first):
    trainer, batches = begun(tmp_path, shards, optimizer=optimizer)
    for _ in range(first):
        train_step(trainer, next(batches))
    resolve_pending_step(trainer)
    before, sums, state = kept(trainer), trainer.meter.sums.clone(), trainer.state
    spoilt = next(batches)
    with spoiled(trainer):
        train_step(trainer, spoilt)
        resolve_pending_step(trainer)
    (step,) = skipped
    assert (step.step, step.samples) == (state.step, state.samples) == (first + 1, 8 * first + 8)
    assert torch.equal(step.tiles, spoilt.samples)
    assert (state.skipped_steps, state.skipped_in_a_row) == (1, 1)
    after = kept(trainer)
    assert_same_bits(after[:2], before[:2])
    for number, values in before[2].items():
        assert_same_bits(after[2][number], values)
    assert torch.equal(trainer.meter.sums, sums)
    train_step(trainer, next(batches))
    resolve_pending_step(trainer)
    assert skipped == [step] and state.skipped_in_a_row == 0
    assert all(parameter.isfinite().all() for parameter in trainer.network.parameters())
    assert all(value.isfinite().all() for values in trainer.optimizer.state_dict()["state"].values()
               for value in values.values())


def test_momentum_begins_at_zero_though_the_first_step_is_skipped(tmp_path, shards, hears, skipped):
    """The fused kernel leaves the memory of a skipped first step as it finds it."""
    ends = []
    for skips in (False, True):
        trainer, batches = begun(tmp_path, shards, optimizer=OptimizerConfig("sgd", lr=0.02))
        batch = next(batches)
        if skips:
            with spoiled(trainer):
                train_step(trainer, batch)
                resolve_pending_step(trainer)
        train_step(trainer, batch)
        resolve_pending_step(trainer)
        ends.append(kept(trainer)[:3])
    assert_same_bits(*ends)


@pytest.mark.parametrize("error", [OSError("a cable"), StopRequested("SIGTERM")])
def test_an_error_ends_the_run_after_a_whole_step(tmp_path, shards, monkeypatch, hears, error):
    """The fourth batch cannot be read."""
    config = small_config(tmp_path / "run", shards, optimizer=AVERAGED, log_every_samples=64, validate_every_samples=64)
    whole = Trainer.batches
    steps = []

    def failing(trainer):
        batches = whole(trainer)
        yield from (next(batches) for _ in range(3))
        raise error

    def counted(trainer, batch):
        steps.append(trainer.state.step)
        train_step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "batches", failing)
        patch.setattr("srcnn.training.trainer.train_step", counted)
        kind = StopRequested if isinstance(error, StopRequested) else DistributedError
        with pytest.raises(kind, match=str(error)):
            train(config)
    assert steps == ([0, 1, 2] if hears == "at once" else [0, 1, 2, 3])
    assert (state(tmp_path / "run")["step"], state(tmp_path / "run")["samples"]) == (3, 24)
    train(config)
    train(replace(config, run=str(tmp_path / "whole")))
    for key in ("network", "average", "optimizer", "step", "samples", "skipped_steps"):
        assert_same_bits(state(tmp_path / "run")[key], state(tmp_path / "whole")[key])


@pytest.mark.parametrize("number", [1, 4, 7])
def test_told_to_stop_at_any_step_it_goes_on_to_the_same_end(tmp_path, shards, monkeypatch, hears, number):
    config = small_config(tmp_path / "run", shards, optimizer=AVERAGED, validate_every_samples=64)
    asked = []

    def stop_requested():
        asked.append(1)
        return StopRequested("SIGTERM") if len(asked) >= number else None

    with monkeypatch.context() as patch:
        patch.setattr(signals, "stop_requested", stop_requested)
        with pytest.raises(StopRequested):
            train(config)
    assert state(tmp_path / "run")["samples"] <= 8 * number
    train(config)
    train(replace(config, run=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_skipped_steps_are_written_down_with_their_own_tiles(tmp_path, shards, monkeypatch, hears):
    batches = []

    def spoiling(trainer, batch):
        batches.append(batch.samples.tolist())
        with spoiled(trainer) if trainer.state.step in (3, 4) else nullcontext():
            train_step(trainer, batch)

    monkeypatch.setattr("srcnn.training.trainer.train_step", spoiling)
    config = small_config(tmp_path / "run", shards, log_every_samples=8, max_skipped_steps=2)
    train(config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["samples"]) for entry in entries] == [(4, 32), (5, 40)]
    reader = ShardDataset(shards / "train")
    for entry, samples in zip(entries, batches[3:5], strict=True):
        assert len(entry["keys_of_ranks"][0]) == 8
        first = bytes(reader.fetch(samples[0], samples[0] + 1)[0][:100]).rstrip(b"\0").decode()
        assert entry["keys_of_ranks"][0][0] == first
    assert state(tmp_path / "run")["skipped_steps"] == 2


def test_an_error_leaves_the_scaler_of_fp16_as_after_the_last_step(tmp_path, shards, monkeypatch, hears):
    """A scaler works on a CPU too; after two of three steps that make it grow."""

    def with_scaler(config):
        accelerator = start_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"  # so that gradients are unscaled
        return accelerator

    monkeypatch.setattr("srcnn.training.components.start_accelerator", with_scaler)
    trainer, batches = begun(tmp_path, shards)
    try:
        train_step(trainer, next(batches))
        batch, trainer.error = next(batches), OSError("a cable")
        with pytest.raises(DistributedError, match="a cable"):
            train_step(trainer, batch)
            train_step(trainer, batch)  # where the first one's outcome is read late
        assert trainer.state.step == 2 and kept(trainer)[3]["_growth_tracker"] == 2
        trainer.error = None
        train_step(trainer, next(batches))
        resolve_pending_step(trainer)
        assert trainer.accelerator.scaler.get_scale() == 8.0
    finally:
        trainer.accelerator.state._mixed_precision = "no"


class Reads(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for by the host, which on a GPU waits for all that is queued."""

    number = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_the_host_reads_two_numbers_a_step_and_those_of_the_step_before(tmp_path, shards, hears, optimizer):
    trainer, batches = begun(tmp_path, shards, optimizer=optimizer, augment=False)
    counts = []
    for batch in (next(batches), next(batches), next(batches)):
        with Reads() as reads:
            train_step(trainer, batch)
        counts.append(reads.number)
    assert counts == ([2, 2, 2] if hears == "at once" else [0, 2, 2])


def test_a_state_saved_in_another_memory_layout_is_laid_out_as_the_weights(tmp_path):
    """As when a run goes on from a CPU to a GPU."""
    model = SRCNN().to(memory_format=torch.channels_last)
    for config in OPTIMIZERS[1:]:
        optimizer = build_optimizer(model, config)
        names = ["momentum_buffer"] if config.name == "sgd" else ["exp_avg", "exp_avg_sq"]
        saved = {number: {"step": torch.ones(())} | {name: torch.rand(parameter.shape) for name in names}
                 for number, parameter in enumerate(model.parameters())}
        optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
        complete_state(optimizer)
        for number, parameter in enumerate(model.parameters()):
            for name, value in optimizer.state[parameter].items():
                assert torch.equal(value, saved[number][name])
                assert name == "step" or value.stride() == parameter.stride()


def test_gradients_keep_their_memory(tmp_path, shards):
    trainer, batches = begun(tmp_path, shards, micro_batch_size=3)
    addresses = [parameter.grad.data_ptr() for parameter in trainer.network.parameters()]
    for _ in range(2):
        train_step(trainer, next(batches))
    assert [parameter.grad.data_ptr() for parameter in trainer.network.parameters()] == addresses
