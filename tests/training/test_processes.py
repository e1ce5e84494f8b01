"""srcnn train --processes N: settings and shards are checked before ranks start, whose status is the command's."""

import re
import signal
import subprocess
import sys
import time

import pytest
from jobs import LONG, ROOT, consumed, numbers, start, succeed, wait_for, written
from messages import says
from small import small_shards
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from srcnn.__main__ import main
from srcnn.training import processes


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def started(monkeypatch):
    """The arguments of the trainings that were started; none is."""
    calls = []
    monkeypatch.setattr(processes, "train_in_processes", lambda *arguments: calls.append(arguments) or 0)
    return calls


def failed(*statuses):
    return ChildFailedError("train", {rank: ProcessFailure(rank, 1000 + rank, status, "no error file")
                                      for rank, status in enumerate(statuses)})


@pytest.mark.parametrize("error,status", [
    (None, 0), (failed(1, 1), 1), (failed(2), 2), (failed(75, 75), 75), (failed(75, 1), 1), (failed(-9), 1),
    (SignalException("stopped", signal.SIGTERM), 75), (SignalException("stopped", signal.SIGINT), 130),
], ids=lambda it: type(it).__name__ if isinstance(it, Exception) else str(it))
def test_the_status_is_that_of_the_ranks(monkeypatch, capsys, error, status):
    called = []

    def launch(*words):
        called.append(words)
        if error:
            raise error

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes.logging, "disable", called.append)
    monkeypatch.setattr(processes, "elastic_launch", lambda config, _: called.append(config.nproc_per_node) or launch)
    assert processes.train_in_processes(["--run", "x"], 2, "srcnn train") == status
    assert called[1:] == [2, ("-m", "srcnn", "train", "--run", "x")]
    assert ("SIGKILL" in capsys.readouterr().err) == ("-9" in str(error))


def test_a_good_training_is_started_with_its_own_settings(tmp_path, shards, started):
    config = written(tmp_path, {"shards": str(shards), "run": str(tmp_path / "run")})
    assert main(["train", "--config", config, "--processes", "2", "--optimizer.lr", "1e-4"]) == 0
    assert started == [(["--config", config, "--optimizer.lr", "1e-4"], 2, "srcnn train")]


@pytest.mark.parametrize("settings,told", [
    ({"shards": "nowhere"}, ["nowhere", "srcnn shards"]), ({"batch_size": 1}, ["batch_size", 2]),
    ({"model": {"channels": 3}}, ["model.channels", 3]), ({"weights": "none.pth"}, ["none.pth"]),
    ({"run": "s3://bucket/run"}, ["s3://bucket/run"]),
])
def test_a_mistake_is_told_once_before_anything_starts(tmp_path, monkeypatch, capsys, shards, started, settings, told):
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path, {"shards": str(shards)} | settings)
    try:
        status = main(["train", "--config", config, "--processes", "2"])
    except SystemExit as ended:  # the settings' own mistakes
        status = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert status in (1, 2) and not started
    assert says(lines[0], "srcnn train", *told) and len(lines) <= 2


def test_weights_of_metrics_are_downloaded_before_ranks_start(tmp_path, monkeypatch, capsys, shards, started):
    def perceptual_distances(names, device):
        raise ConnectionError(f"{', '.join(names)} cannot be downloaded")

    monkeypatch.setattr(processes, "perceptual_distances", perceptual_distances)
    config = written(tmp_path, {"shards": str(shards), "metrics": ["lpips", "dists"]})
    assert main(["train", "--config", config, "--processes", "2"]) == 1
    assert says(capsys.readouterr().err, "lpips, dists cannot be downloaded") and not started


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_number_of_processes_that_is_none_is_refused(capsys, started, number):
    assert main(["train", "--processes", number]) == 1
    assert says(capsys.readouterr().err, "--processes", number.strip()) and not started


def test_a_rank_of_a_launcher_starts_no_ranks(tmp_path, monkeypatch, capsys, shards, started):
    monkeypatch.setenv("RANK", "0")
    config = written(tmp_path, {"shards": str(shards)})
    assert main(["train", "--config", config, "--processes", "2"]) == 1
    assert says(capsys.readouterr().err, "--processes", "launcher") and not started


def more_than_one(folder, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "srcnn", "train", "--processes", "2", "--config", written(folder, settings)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, shards):
    settings = {"shards": str(shards), "total_samples": 96, "log_every_samples": 48, "validate_every_samples": 48}
    output = succeed(more_than_one(tmp_path, **settings, run=str(tmp_path / "two")))
    assert re.search(r"machine +2 x ", output)
    succeed(start(1, tmp_path, **settings, run=str(tmp_path / "one")))
    for point, expected in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert point["val/psnr"] == pytest.approx(expected["val/psnr"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number,status", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGKILL, -9)])
def test_the_ranks_leave_a_checkpoint_when_the_command_is_stopped_or_killed(tmp_path, shards, number, status):
    run = tmp_path / "run"
    process = more_than_one(tmp_path, shards=str(shards), run=str(run), **LONG)
    wait_for(process, run, 240)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]  # ends when the ranks have ended, too
    assert process.returncode == status and "Traceback" not in output and "ChildFailedError" not in output
    assert "checkpoint saved" in output
    left = consumed(run)
    time.sleep(1)
    assert consumed(run) == left >= 240
