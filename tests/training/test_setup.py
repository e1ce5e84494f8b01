"""The start of a training: what the environment and the launcher want is supported, or refused by name."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from examine import assert_note, assert_problem, examine
from small import small_config, small_shards

from srcnn.commands import doctor
from srcnn.runtime.errors import UserError
from srcnn.training import setup
from srcnn.training.setup import start_accelerator, training_device, unsupported_settings

ON_CPU = {"ACCELERATE_USE_CPU": "true"}
UNSUPPORTED = [
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
    ("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_USE_MEGATRON_LM", "1"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"), ("ACCELERATE_USE_SAGEMAKER", "True"), ("ACCELERATE_USE_NEXT", "yes"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"), ("ACCELERATE_MIXED_PRECISION", "fp8"), ("ACCELERATE_USE_CPU", "maybe"),
    ("ACCELERATE_TORCH_DEVICE", "xpu"), ("ACCELERATE_DOWNCAST_BF16", "true"), ("XLA_USE_BF16", "1"),
]
SUPPORTED = {
    "ACCELERATE_USE_CPU": "True", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_MIXED_PRECISION": "BF16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DEBUG_MODE": "1",
    "ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_CPU_AFFINITY": "1", "ACCELERATE_USE_DEEPSPEED": "",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("name, value", UNSUPPORTED)
def test_settings_of_the_environment_that_are_not_followed_are_refused_by_name(
    tmp_path, shards, name, value, monkeypatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}"):
        start_accelerator(small_config(tmp_path, shards))


def test_those_that_are_followed_or_off_are_not():
    assert unsupported_settings(SUPPORTED) == [] == unsupported_settings(ON_CPU)
    assert len(unsupported_settings(dict(UNSUPPORTED) | ON_CPU)) == len({name for name, _ in UNSUPPORTED}) - 1


def test_the_doctor_names_them_too(shards, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert_problem(examine(shards), "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "micro_batch_size")


@pytest.mark.parametrize("kind, told", [("FSDP", "note"), ("DEEPSPEED", "note"), ("XLA", "note"), ("'NO'", "ok")])
def test_the_doctor_looks_at_what_accelerate_launch_takes_by_default(shards, monkeypatch, tmp_path, kind, told):
    path = tmp_path / "default_config.yaml"
    path.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 1\n")
    monkeypatch.setattr(doctor, "default_config_file", str(path))
    examined = examine(shards)
    if told == "note":
        assert_note(examined, path, kind, "--config_file")
    else:
        assert examined[0] == 0 and any(str(path) in line and "ok" in line for line in examined[1])


@pytest.mark.parametrize("kind", ["xpu", "mtia", "xla"])
def test_devices_that_training_does_not_support_are_refused(tmp_path, shards, kind, monkeypatch):
    monkeypatch.setattr(setup, "device_here", lambda: torch.device(kind))
    with pytest.raises(UserError, match=kind):
        start_accelerator(small_config(tmp_path, shards))
    assert training_device(ON_CPU).type == "cpu" and unsupported_settings(ON_CPU) == []


def test_distributed_types_other_than_data_parallel_ranks_are_refused(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match="FSDP"):
        start_accelerator(small_config(tmp_path, shards))
