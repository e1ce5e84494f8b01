"""Single steps of a training, for the tests of what one leaves and what it does not."""

from contextlib import contextmanager

import pytest
import torch
from accelerate.state import AcceleratorState
from small import small_config

from srcnn.data.dataset import ShardDataset
from srcnn.data.device_loader import copy_to_device
from srcnn.data.loader import LoaderConfig, train_batches
from srcnn.data.shuffle import BatchPlan
from srcnn.data.transforms import to_float_batch
from srcnn.training.trainer import Trainer


@pytest.fixture
def any_device():
    """Trainings of this test may have another device or precision than those before it in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def begun(folder, shards, **changes):
    """A trainer at its start, which holds no run folder, and batches for it."""
    trainer = Trainer(small_config(folder, shards, **changes))
    batches = train_batches(ShardDataset(shards / "train"), LoaderConfig(), BatchPlan(0, 0, 10_000, 8))
    return trainer, copy_to_device(batches, trainer.accelerator.device)


def kept(trainer):
    """Copies of all that a step changes."""
    scaler = trainer.accelerator.scaler
    average = trainer.average.state_dict() if trainer.average is not None else {}
    return copied([trainer.network.state_dict(), average, trainer.optimizer.state_dict()["state"],
                   scaler.state_dict() if scaler else {}, trainer.state.step, trainer.state.samples])


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@contextmanager
def spoiled(trainer):
    """A pixel of the pairs is infinite."""
    before = trainer.to_float_batch

    def infinite(batch, augment):
        clean, degraded = to_float_batch(batch, augment)
        degraded[-1, 0, 3, 5] = torch.inf
        return clean, degraded

    trainer.to_float_batch = infinite
    try:
        yield
    finally:
        trainer.to_float_batch = before
