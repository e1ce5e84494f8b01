"""What launch/benchmark.py counts with."""

from dataclasses import fields

import pytest
import torch
from small import small_config, small_shards

from srcnn.models.srcnn import ModelConfig
from srcnn.training.benchmark import BenchmarkConfig, benchmark, matrix_peak, training_flop

pytestmark = pytest.mark.slow  # of what is measured once, not of the product


def test_flop_of_a_training_tile_by_hand():
    multiplications = 124**2 * 81 * 64 * 2 + 124**2 * 64 * 32 * 3 + 128**2 * 32 * 25 * 3
    assert training_flop(ModelConfig(), 128) == 2 * multiplications
    larger = 124**2 * 81 * 64 * 2 + 128**2 * 64 * 32 * 25 * 3 + 128**2 * 32 * 25 * 3
    assert training_flop(ModelConfig(kernels=(9, 5, 5)), 128) == 2 * larger


def test_the_peak_is_a_rate():
    assert 1e8 < matrix_peak(torch.device("cpu"), torch.float32) < 1e14


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps"):
        BenchmarkConfig(num_steps=0)


@pytest.mark.parametrize("lagging", [(), ("cpu",)])
def test_it_tells_the_phases_of_a_step(tmp_path, monkeypatch, lagging):
    monkeypatch.setattr("srcnn.training.components.ASYNC_DEVICES", lagging)
    config = small_config(tmp_path / "run", small_shards(tmp_path))
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    results = benchmark(BenchmarkConfig(**settings, num_steps=2, num_rounds=1))
    assert {"forward", "backward", "optimizer", "meter", "the rest"} <= set(results["seconds_per_step"])
    assert results["tiles_per_second_synthetic"] > 0 and not (tmp_path / "run").exists()
