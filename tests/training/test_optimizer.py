"""Learning rates by samples, per-layer rates, averaged weights."""

import math

import pytest
import torch

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize
from srcnn.runtime.errors import UserError
from srcnn.training.optimizer import OptimizerConfig, build_optimizer, lr_factor, set_lr, update_average


def test_the_schedule_depends_on_samples_alone():
    config = OptimizerConfig(schedule="cosine", warmup_samples=100)
    assert lr_factor(config, 0, 1000) == pytest.approx(0.01, rel=1e-3)
    assert lr_factor(config, 500, 1000) == pytest.approx(0.5)
    assert lr_factor(config, 750, 1000) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert lr_factor(config, 1000, 1000) == pytest.approx(0) == lr_factor(config, 1234, 1000)
    assert lr_factor(OptimizerConfig(), 10**9, 1) == 1


def test_the_last_layer_learns_at_its_own_rate():
    model = SRCNN()
    optimizer = build_optimizer(model, OptimizerConfig(name="sgd", lr=1e-2, last_layer_lr_factor=0.1, momentum=0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.5)
    optimizer.step()
    moved = [float((a - b).max()) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([5e-3] * 4 + [5e-4] * 2, rel=1e-4)


def test_the_average_moves_half_way_in_a_half_life_whatever_the_batch():
    config = OptimizerConfig(average_halflife_samples=100)
    ends = []
    for batch in (10, 50):
        model, average = SRCNN(ModelConfig(filters=(2, 2))), SRCNN(ModelConfig(filters=(2, 2)))
        initialize(model, "pytorch", 0)
        torch.nn.init.zeros_(average.conv1.weight)
        for samples in range(10_000, 10_100, batch):
            update_average(average, model, config, samples, batch)
        torch.testing.assert_close(average.conv1.weight, model.conv1.weight / 2)
        ends.append(average.conv1.weight.clone())
    torch.testing.assert_close(*ends)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="optimizer.lr"):
        OptimizerConfig(lr=0)
    with pytest.raises(ValueError, match="average_halflife_samples"):
        OptimizerConfig(average_halflife_samples=-1)


@pytest.mark.parametrize("name,settings", [
    ("adam", {"betas": [2, 0.9]}), ("adamw", {"eps": -1}), ("sgd", {"nesterov": True}),
])
def test_a_value_that_pytorch_refuses_is_a_mistake_of_the_user(name, settings):
    with pytest.raises(UserError, match=name):
        build_optimizer(SRCNN(), OptimizerConfig(name=name, settings=settings, momentum=0))
