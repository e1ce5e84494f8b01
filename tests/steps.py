"""Single steps of a training, for the tests of what one leaves and what it does not."""

from contextlib import contextmanager

import pytest
import torch
from accelerate.state import AcceleratorState
from small import small_config

from srcnn import state as runs
from srcnn.dataset import ShardDataset
from srcnn.device_loader import on_device
from srcnn.loader import StreamConfig, train_batches
from srcnn.meter import Meter
from srcnn.shuffle import BatchPlan
from srcnn.transforms import to_float_batch


@pytest.fixture
def any_device():
    """Trainings of this test may have another device or precision than those before it in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def begun(folder, shards, start_accelerator=runs.start_accelerator, **changes):
    """A config, a run of its own at its start, its meter and its batches."""
    config = small_config(folder, shards, **changes)
    run = runs.start_run(config, start_accelerator(config))
    batches = train_batches(ShardDataset(shards / "train"), StreamConfig(), BatchPlan(0, 0, 10_000, 8))
    return config, run, Meter(run.accelerator.device), on_device(batches, run.accelerator.device)


def kept(run):
    """Copies of all that a step changes."""
    scaler = run.accelerator.scaler
    average = run.average.state_dict() if run.average is not None else {}
    return copied([run.network.state_dict(), average, run.optimizer.state_dict()["state"],
                   scaler.state_dict() if scaler else {}, run.step, run.samples])


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@contextmanager
def spoiled(run):
    """A pixel of the pairs is infinite."""
    before = run.to_float_batch

    def infinite(batch, augment):
        clean, degraded = to_float_batch(batch, augment)
        degraded[-1, 0, 3, 5] = torch.inf
        return clean, degraded

    run.to_float_batch = infinite
    try:
        yield
    finally:
        run.to_float_batch = before
