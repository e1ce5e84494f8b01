"""Runs of a U-Net: the same loop, checkpoints, doctor and report; older run folders; the losses."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY, quiet_env
from messages import facts, says
from skimage.metrics import structural_similarity
from small import draw_photo, small_config, small_shards

from srcnn.commands.doctor import DoctorConfig, doctor
from srcnn.data.dataset import ShardDataset
from srcnn.models.device import prefers_bf16
from srcnn.models.srcnn import ModelConfig
from srcnn.models.unet import UNet, UNetConfig
from srcnn.models.weights import load_model, save_model
from srcnn.photos.degradation import Degradation, degrade
from srcnn.restoration.restore import restore
from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.settings import parse, plain, to_yaml
from srcnn.training import checkpoint
from srcnn.training.config import TrainConfig
from srcnn.training.loss import LOSSES, make_loss
from srcnn.training.resume import check_resumable, stream_state
from srcnn.training.setup import open_split
from srcnn.training.trainer import train
from srcnn.training.validation import validate

TINY = {"model": ModelConfig(), "unet": UNetConfig((4, 6), 1)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"))


def weights(run):
    return load_model(run).state_dict()


@pytest.mark.parametrize("unet", [TINY["unet"], UNetConfig((6, 8), 1, unshuffle=2, condition=True)], ids=str)
def test_a_u_net_trains_and_continues_as_if_it_had_never_stopped(tmp_path, shards, unet):
    values = train(small_config(tmp_path / "whole", shards, model=ModelConfig(), unet=unet))
    assert values["val/gain"] > 0
    parts = small_config(tmp_path / "parts", shards, model=ModelConfig(), unet=unet)
    train(replace(parts, total_samples=32))
    assert train(parts)["val/psnr"] == pytest.approx(values["val/psnr"], abs=1e-4)
    model = load_model(tmp_path / "parts")
    assert isinstance(model, UNet) and model.config == unet
    assert restore(np.zeros((9, 13), np.uint8), model).shape == (9, 13)
    assert (tmp_path / "parts" / "report" / "index.html").is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    """A trained U-Net of which a pixel sees more than the halo."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    config = small_config(run, shards, model=ModelConfig(), unet=UNetConfig((4, 8, 8, 8), 2), total_samples=480)
    assert train(config)["val/gain"] > 0.1
    return load_model(run)


@pytest.mark.slow
def test_tiles_with_the_halo_are_the_whole_photo_within_half_a_level(trained):
    assert trained.halo < trained.receptive_radius
    photo = np.float32(draw_photo(7, 288, 320)[..., 0]) / 255
    degraded = degrade(draw_photo(7, 288, 320)[..., 0], Degradation(jpeg_quality=20), 20) / np.float32(255)
    whole, tiled = (restore(degraded, trained, side, exact=True) for side in (320, 64))
    assert 255 * np.abs(tiled - whole).max() < 0.5 < 255 * np.abs(whole - degraded).max()
    errors = [np.mean((pixels - photo) ** 2) for pixels in (whole, tiled)]
    assert abs(10 * np.log10(errors[0] / errors[1])) < 0.005  # dB


def test_half_precision_in_files_costs_less_than_five_thousandths_of_a_decibel(tmp_path, trained, shards):
    save_model(trained, tmp_path / "half.safetensors", half=True)
    reader = ShardDataset(shards / "val")
    scores = [validate(model, reader, Accelerator(cpu=True))["val/psnr"]
              for model in (trained, load_model(tmp_path / "half.safetensors"))]
    assert scores[0] != scores[1] and abs(scores[0] - scores[1]) < 0.005


def test_another_u_net_in_the_same_folder_is_refused(tmp_path, shards):
    train(small_config(tmp_path / "run", shards, **TINY, total_samples=8))
    with pytest.raises(DistributedError, match=facts("unet.widths", [4, 6], [4, 8])):
        train(small_config(tmp_path / "run", shards, model=ModelConfig(), unet=UNetConfig((4, 8), 1)))
    with pytest.raises(DistributedError, match="unet.widths|model.filters"):
        train(small_config(tmp_path / "run", shards))


def test_a_run_that_is_older_than_the_setting_continues(tmp_path, shards):
    """Its checkpoints and config.yaml know neither `unet` nor `loss`."""
    config = small_config(tmp_path / "run", shards)
    train(small_config(tmp_path / "run", shards, total_samples=32))
    state = checkpoint.load_training(checkpoint.latest(tmp_path / "run"))
    del state["config"]["unet"], state["config"]["loss"]
    stream = stream_state(config, 32, open_split(config, "train"))
    (note,) = check_resumable(config, state, stream)
    assert says(note, "total_samples", 64, 32)


def test_settings_of_both_networks_are_refused():
    with pytest.raises(ValueError, match=facts("unet.widths", "model")):
        TrainConfig(unet=UNetConfig((2,)), model=ModelConfig(residual=True))
    with pytest.raises(ValueError, match=facts("unet.widths", "paper")):
        TrainConfig(unet=UNetConfig((2,)), initialization="paper")


def test_the_resolved_config_reads_back_the_same(tmp_path):
    for config in (TrainConfig(), TrainConfig(unet=UNetConfig((4, 6), 1, 3), loss="charbonnier")):
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert parse(TrainConfig, "test", "", ["--config", str(tmp_path / "config.yaml")]) == config
    assert parse(TrainConfig, "test", "", ["--unet.widths", "[4,6]"]).architecture == UNetConfig((4, 6))
    colour = ["--unet.channels", "3", "--unet.unshuffle", "2", "--unet.ycbcr", "true", "--unet.condition", "true"]
    assert parse(TrainConfig, "test", "", ["--unet.widths", "[4,6]", *colour]).architecture == UNetConfig(
        (4, 6), channels=3, unshuffle=2, ycbcr=True, condition=True)


def test_more_tiles_of_a_u_net_go_through_a_cpu_at_once():
    assert TrainConfig().tiles_at_once("cpu", 32) == 1
    unet = TrainConfig(unet=UNetConfig((2,)))
    assert [unet.tiles_at_once(*told) for told in (("cpu", 32), ("cpu", 3), ("cuda", 32))] == [8, 3, 32]
    assert TrainConfig(unet=UNetConfig((2,)), micro_batch_size=4).tiles_at_once("cpu", 32) == 4


@pytest.mark.parametrize("avx512_bf16,amx", [(False, False), (True, False), (True, True)])
def test_on_a_cpu_a_u_net_takes_bfloat16_only_with_amx(monkeypatch, avx512_bf16, amx):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    features = {"avx512_bf16": avx512_bf16, "amx_tile": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    cpu = torch.device("cpu")
    assert prefers_bf16(ModelConfig(), cpu) == avx512_bf16 and prefers_bf16(UNetConfig((4,)), cpu) == amx


def test_an_unknown_key_of_the_network_names_the_nearest(capsys):
    for wrong, right in (("--unet.width", "unet.widths"), ("--unet.unshufle", "unet.unshuffle"),
                         ("--unet.blocks", "unet.num_blocks")):
        with pytest.raises(SystemExit):
            parse(TrainConfig, "test", "", [wrong, "3"])
        assert right in capsys.readouterr().err


def test_the_doctor_knows_it_and_says_what_to_do_about_a_border_that_leaves_nothing(tmp_path, shards):
    changes = {"run": str(tmp_path / "run"), "shards": str(shards), "trackers": [], "batch_size_per_process": 8}
    config = DoctorConfig(**changes, unet=UNetConfig((4, 6), 1), ranks=1)
    told = [finding.text for finding in doctor(config)["network"]]
    assert len(told) == 1 and says(told[0], "U-Net 4-6", 1531, 11)
    assert sum(parameter.numel() for parameter in UNet(config.unet).parameters()) == 1531
    config = DoctorConfig(**changes, unet=UNetConfig((4, 6, 8), 1), ranks=1, loss_crop=True)
    told = [finding for finding in doctor(config)["shards"] if finding.level == "problem"]
    assert says(told[0].text, 32, "loss_crop")


@pytest.mark.parametrize("name", ["mse", "l1", "charbonnier"])
def test_the_losses_by_numpy(name):
    difference = np.random.default_rng(0).normal(0, 0.01, (3, 1, 7, 9))
    expected = {"mse": np.mean(difference**2), "l1": np.mean(np.abs(difference)),
                "charbonnier": np.mean(np.hypot(difference, 1e-3))}[name]
    clean = np.random.default_rng(1).random(difference.shape)
    restored, clean = torch.from_numpy(clean + difference), torch.from_numpy(clean)
    assert float(make_loss(name)(restored, clean)) == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_no_difference_is_zero():
    for name in LOSSES:
        clean = torch.rand(2, 1, 13, 12)
        restored = clean.clone().requires_grad_()
        make_loss(name)(restored, clean).backward()
        torch.testing.assert_close(restored.grad, torch.zeros_like(clean), atol=1e-6, rtol=0)


def test_the_other_losses_by_their_definitions():
    random = np.random.default_rng(2)
    clean, restored = random.random((2, 2, 1, 24, 17))
    tensors = torch.from_numpy(restored), torch.from_numpy(clean)
    spectrum = np.fft.fft2(restored - clean)
    expected = np.mean([np.abs(spectrum.real), np.abs(spectrum.imag)])
    assert float(make_loss("fft")(*tensors)) == pytest.approx(expected, rel=1e-9)
    similarity = [structural_similarity(*pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                        data_range=1, full=True)[1][5:-5, 5:-5].mean()
                  for pair in zip(clean[:, 0], restored[:, 0], strict=True)]
    assert float(make_loss("ssim")(*tensors)) == pytest.approx(1 - np.mean(similarity), rel=1e-6)
    both = make_loss({"l1": {}, "fft": {"weight": 0.1}, "charbonnier": {"weight": 2, "epsilon": 0.1}})
    difference = restored - clean
    expected = np.abs(difference).mean() + 0.1 * expected + 2 * np.hypot(difference, 0.1).mean()
    assert float(both(*tensors)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss,told", [
    ("mes", ["mes", "mse", "--plugins"]), ({}, ["loss"]), ({"l1": {"weight": 0}}, ["l1", "weight 0"]),
    ({"charbonnier": {"epsilon": "small"}}, ["charbonnier", "epsilon", "small", "float"]),
    ({"charbonnier": {"epsilom": 1}}, ["charbonnier", "epsilom", "epsilon"]),
])
def test_what_is_wrong_with_a_loss_is_said_before_anything_starts(loss, told):
    with pytest.raises(ValueError) as caught:
        TrainConfig(loss=loss)
    assert says(str(caught.value), *told)


@pytest.mark.slow
def test_micro_batches_and_ranks_do_not_change_a_run_with_another_loss(tmp_path, shards):
    """Two ranks of unequal parts, 5 and 4 tiles, as one rank of 9 tiles at once and one by one."""
    for number, micro in enumerate((1, 9)):
        train(small_config(tmp_path / f"one-{number}", shards, **TINY, loss="charbonnier", batch_size=9,
                           total_samples=27, micro_batch_size=micro))
    config = small_config(tmp_path / "two", shards, **TINY, loss="charbonnier", batch_size=9, total_samples=27)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "launch/train.py", "--config",
               str(tmp_path / "config.yaml")]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *command[1:]], cwd=REPOSITORY, env=quiet_env(),
                   check=True, timeout=300, capture_output=True)
    first = weights(tmp_path / "one-0")
    for other in ("one-1", "two"):
        for name, tensor in weights(tmp_path / other).items():
            torch.testing.assert_close(tensor, first[name], rtol=1e-3, atol=2e-5)
    points = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert points[-1]["train/loss"] > 5 * points[-1]["val/loss"]  # one is absolute, one squared
    assert plain(asdict(config))["loss"] == "charbonnier"
