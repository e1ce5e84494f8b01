"""The first process of a pod: which status the launcher's end gives; and that the launcher can be called as it is."""

import signal

import pytest
from accelerate.commands import launch as accelerate_launch
from torch.distributed import DistStoreError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch import pod
from srcnn.runtime.signals import EXIT_REQUEUE


def failed(*statuses):
    return ChildFailedError("train.py", {rank: ProcessFailure(rank, 1000 + rank, status, "no error file")
                                         for rank, status in enumerate(statuses)})


@pytest.mark.parametrize("error,status", [
    (None, 0),
    (SignalException("stopped", signal.SIGTERM), EXIT_REQUEUE),
    (DistStoreError("timed out"), EXIT_REQUEUE),
    (failed(75, 75), EXIT_REQUEUE),
    (failed(2), 2),
    (failed(75, 1), 1),
    (failed(-9), 1),
], ids=lambda value: getattr(type(value), "__name__", None))
def test_the_status_is_that_of_the_ranks(monkeypatch, error, status):
    called = []

    def launch_command(options):
        called.append((options.num_processes, options.training_script, options.training_script_args))
        if error:
            raise error

    monkeypatch.setattr(accelerate_launch, "launch_command", launch_command)
    assert pod.launch(["--num_processes", "2", "launch/train.py", "--config", "c.yaml"]) == status
    assert called == [(2, "launch/train.py", ["--config", "c.yaml"])]
