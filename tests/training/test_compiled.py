"""What is compiled for training: the loss and the scores, for one size, with outputs that the next call overwrites."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from jobs import assert_same_bits, assert_same_run
from small import small_config, small_shards
from steps import any_device, begun, kept  # noqa: F401  # a fixture

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize
from srcnn.photos.metrics import psnr
from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.settings import parse
from srcnn.training.config import TrainConfig
from srcnn.training.loss import LossAndScores, compile_static_shape
from srcnn.training.step import train_step
from srcnn.training.trainer import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("border", [0, 3])
def test_loss_and_scores_are_sums_over_the_tiles(border):
    network = SRCNN(ModelConfig(filters=(8, 4)))
    initialize(network, "pytorch", 0)
    clean, degraded = torch.rand(2, 5, 1, 19, 23, generator=torch.Generator().manual_seed(0))
    degraded[2] = clean[2]
    loss, sums = LossAndScores(network, border)(clean, degraded)
    restored = network(degraded).detach().double().numpy()
    pairs = [(tile, other) for tile, other in zip(clean.double().numpy(), restored, strict=True)]
    inside = (..., slice(border, 19 - border), slice(border, 23 - border))
    expected = sum(np.mean((tile - other)[inside] ** 2) for tile, other in pairs)
    assert loss.item() == pytest.approx(expected, rel=1e-5) == sums[2].item() and loss.requires_grad
    psnr_in = sum(psnr(255 * tile, 255 * other.double().numpy())
                  for (tile, _), other in zip(pairs, degraded, strict=True))
    psnr_out = sum(psnr(255 * tile, 255 * other.clip(0, 1)) for tile, other in pairs)
    assert sums.tolist()[:2] == pytest.approx([psnr_in, psnr_out], rel=1e-6) and sums[3] == 5
    assert sums.dtype == torch.float64 and not sums.requires_grad


def test_only_the_size_that_comes_first_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda tiles: compiled.append(len(tiles)) or len(tiles))
    call = compile_static_shape(len, len, "default")
    assert [call([0] * size) for size in (4, 4, 1, 3, 4, 5)] == [4, 4, 1, 3, 4, 5]
    assert compiled == [4, 4, 4]


def test_what_a_graph_overwrites_is_not_used_after(tmp_path, shards, monkeypatch):
    """Stands in for CUDA graphs: each call spoils what the one before gave."""

    def graphed(function, **_):
        given = []

        def call(*arguments):
            for tensor in given:
                tensor.fill_(math.nan)
            results = function(*arguments)
            given[:] = [result.detach() for result in results]
            return results

        return call

    def once(function, _, mode):  # the way from bytes to floats is compiled without graphs
        return graphed(function) if mode == "reduce-overhead" else function

    monkeypatch.setattr("srcnn.training.loss.compile_static_shape", once)
    monkeypatch.setattr("srcnn.training.components.compile_static_shape", once)
    config = small_config(tmp_path / "plain", shards, micro_batch_size=3)
    train(config)
    monkeypatch.setattr("srcnn.training.components.ASYNC_DEVICES", ("cpu",))
    train(replace(config, run=str(tmp_path / "graphs"), compile="reduce-overhead"))
    assert_same_run(tmp_path / "graphs", tmp_path / "plain")


def test_true_is_a_mode_and_so_is_the_name_of_one(capsys):
    for word, mode in (("true", "default"), ("false", None), ("reduce-overhead", "reduce-overhead")):
        assert parse(TrainConfig, "train", "", ["--compile", word]).compile_mode == mode
    with pytest.raises(SystemExit):
        parse(TrainConfig, "train", "", ["--compile", "fastest"])
    assert "max-autotune" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler for CPUs needs g++")
@pytest.mark.usefixtures("any_device")
@pytest.mark.parametrize("mode,precision", [("default", "no"), ("reduce-overhead", "bf16")])
def test_a_compiled_step_is_the_plain_one_and_is_compiled_once(tmp_path, shards, mode, precision):
    """The last part of a batch is smaller; a rank that cannot go on brings its last batch again."""
    results = []
    for compiles in (False, mode):
        trainer, batches = begun(tmp_path, shards, compile=compiles, mixed_precision=precision, micro_batch_size=3,
                                 loss_crop=True)
        train_step(trainer, next(batches))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                train_step(trainer, next(batches))
            batch, trainer.error = next(batches), OSError("a cable")
            with pytest.raises(DistributedError, match="a cable"):
                train_step(trainer, batch)
        results.append((kept(trainer)[0], trainer.meter.sums))
    assert not torch._dynamo.utils.counters["graph_break"]
    tolerance = 1e-5 if precision == "no" else 1e-3
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=tolerance)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=10 * tolerance, atol=tolerance)
    assert_same_bits(results[1][1][3], results[0][1][3])
