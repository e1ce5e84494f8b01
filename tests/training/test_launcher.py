"""How a training ends: exit statuses, what is printed, which parent process is a launcher."""

import sys

import pytest
import torch
import torch.distributed as dist
from small import small_config, small_shards

from srcnn.runtime.distributed import (
    DistributedError,
    PeerLostError,
    all_gather_json,
    is_connection_error,
    raise_if_any_rank_failed,
)
from srcnn.runtime.errors import DivergedError, UserError, is_out_of_memory
from srcnn.runtime.settings import parse
from srcnn.runtime.signals import EXIT_INTERRUPTED, EXIT_REQUEUE, StopRequested, is_launcher
from srcnn.training import launcher
from srcnn.training.config import TrainConfig
from srcnn.training.trainer import train


@pytest.fixture
def ended(monkeypatch):
    """The exit statuses of `launch`."""
    statuses = []
    monkeypatch.setattr(launcher, "exit_now", lambda line, status: statuses.append(status))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return statuses


def failing(error):
    def work(config):
        raise error

    return work


@pytest.mark.parametrize("error,status", [
    (UserError("no such key"), 1), (FileNotFoundError("no shards"), 1), (DistributedError("a cable"), 1),
    (DivergedError("too high a rate"), 1),
    (StopRequested("SIGTERM"), EXIT_REQUEUE), (StopRequested("SIGINT"), EXIT_INTERRUPTED),
    (PeerLostError("lost", 1), 1), (PeerLostError("lost", EXIT_REQUEUE), EXIT_REQUEUE),
], ids=str)
def test_expected_errors_end_with_a_line_and_a_status(ended, error, status):
    launcher.launch("train.py", None, TrainConfig, failing(error))
    assert ended == [status]


@pytest.mark.parametrize("error", [
    ValueError("too many values to unpack"), TypeError("no number"), RuntimeError("gloo timed out NCCL"),
    FloatingPointError("divide by zero"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), KeyError("x"),
])
def test_other_errors_keep_their_traceback(ended, error):
    with pytest.raises(type(error)):
        launcher.launch("train.py", None, TrainConfig, failing(error))
    assert not ended


@pytest.mark.parametrize("save_every,status", [(0, 1), (8, EXIT_REQUEUE)])
def test_a_lost_rank_is_worth_another_start_only_after_a_new_checkpoint(tmp_path, monkeypatch, save_every, status):
    from srcnn.training.step import train_step

    def lost(trainer, batch):
        if trainer.state.step == 2:
            raise dist.DistBackendError("NCCL error: unhandled cuda error")
        train_step(trainer, batch)

    monkeypatch.setattr("srcnn.training.trainer.train_step", lost)
    with pytest.raises(PeerLostError) as caught:
        train(small_config(tmp_path / "run", small_shards(tmp_path), save_every_samples=save_every))
    assert caught.value.status == status and isinstance(caught.value.__cause__, dist.DistBackendError)


def test_the_traceback_of_an_unexpected_error_reaches_the_other_ranks():
    try:
        [][0]
    except IndexError as error:
        with pytest.raises(DistributedError, match="test_launcher.py"):
            raise_if_any_rank_failed(error, None)
    with pytest.raises(DistributedError, match="^no such key$"):
        raise_if_any_rank_failed(UserError("no such key"), None)


def test_messages_are_plain_json():
    assert all_gather_json({"sums": [0.1, 2]}, None) == [{"sums": [0.1, 2]}]
    with pytest.raises(TypeError):
        all_gather_json(object(), None)


@pytest.mark.parametrize("words,expected", [
    (["/usr/bin/python3", "-m", "accelerate.commands.launch", "--num_processes=1", "launch/train.py"], True),
    (["/venv/bin/python3.11", "/venv/bin/accelerate", "launch", "launch/train.py"], True),
    (["python", "-u", "/venv/bin/torchrun", "launch/train.py"], True),
    (["python", "-m", "torch.distributed.run", "launch/train.py"], True),
    (["bash", "-c", "nohup python launch/train.py --run runs/pytorch-torchrun &"], False),
    (["python", "launch/pod.py", "--run", "runs/accelerate"], False),
    ([""], False),
])
def test_only_python_with_a_launcher_is_one(words, expected):
    """Not a shell that names one somewhere, as in the name of a run: a training with nohup outlives it."""
    assert is_launcher("\0".join(words).encode()) == expected


@pytest.mark.parametrize("words,expected", [
    (["python", "-W", "ignore", "-m", "torch.distributed.run", "launch/train.py"], True),
    (["python3", "-X", "faulthandler", "/venv/bin/accelerate", "launch", "launch/train.py"], True),
    (["python", "-mtorch.distributed.run", "launch/train.py"], True),
    (["python", "-c", "import accelerate", "accelerate"], False),
    (["python", "-m", "pytest", "torchrun"], False),
    (["python"], False),
])
def test_options_of_python_before_a_launcher_are_passed_over(words, expected):
    assert is_launcher("\0".join(words).encode()) == expected


@pytest.mark.parametrize("error,expected", [
    (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms"), True),
    (dist.DistNetworkError("broken pipe"), True), (dist.DistBackendError("NCCL error"), True),
    (RuntimeError("shape mismatch in runs/gloo/transport: connection timed out"), False),
    (torch.OutOfMemoryError("[x/gloo/transport/tcp/pair.cc:1] CUDA out of memory"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (RuntimeError("CUDA error: device-side assert triggered"), False),
], ids=str)
def test_other_ranks_are_lost_where_a_collective_failed_and_nowhere_else(error, expected):
    assert is_connection_error(error) == expected


def test_a_checkpoint_that_was_begun_and_not_written_is_no_progress(tmp_path, monkeypatch):
    """Else a full disk would let a scheduler start it again for ever."""
    from srcnn.training.step import train_step

    def lost(trainer, batch):
        if trainer.state.step == 2:
            raise dist.DistBackendError("NCCL error: unhandled cuda error")
        train_step(trainer, batch)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srcnn.training.trainer.train_step", lost)
    monkeypatch.setattr("srcnn.training.checkpoint.save", full)
    with pytest.raises(PeerLostError) as caught:
        train(small_config(tmp_path / "run", small_shards(tmp_path), save_every_samples=8))
    assert caught.value.status == 1


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("could not create a primitive"), RuntimeError("could not create a memory object"),
    RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("CUDA out of memory"), OSError(12, "Cannot allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
], ids=repr)
def test_memory_that_runs_out_is_known_by_whatever_name(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))


@pytest.mark.parametrize("words", [["--run_dir", "x"], ["--run_dir=x"], ["--run", "x"]])
def test_run_has_a_name_that_torchrun_does_not_take_for_its_own(words):
    assert parse(TrainConfig, "train.py", "", [*words, "--fresh"]).run == "x"
