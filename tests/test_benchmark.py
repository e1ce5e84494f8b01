"""What launch/benchmark.py counts with."""

import pytest
import torch

from srcnn.benchmark import BenchmarkConfig, matrix_peak, training_flop
from srcnn.model import ModelConfig


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
