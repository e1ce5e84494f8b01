"""What a training runs on."""

import os
import subprocess
import sys

import pytest
import torch

from srcnn.training.machine import busy_cores, leave_busy_cores


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what runs")
def test_busy_cores_are_told_where_pytorch_has_several_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: max(2, os.cpu_count()))
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        assert "OMP_NUM_THREADS=1" in busy_cores(torch.device("cpu"))
        assert not busy_cores(torch.device("cuda"))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert not busy_cores(torch.device("cpu"))
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def test_idle_cores_are_not(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("srcnn.training.machine._num_runnable", lambda: 1)
    assert not busy_cores(torch.device("cpu"))


@pytest.mark.parametrize(("cores", "others", "left"), [(2, 8, 1), (16, 8, 8), (16, 40, 1), (8, 0, 8)])
def test_threads_leave_the_cores_that_others_use(monkeypatch, cores, others, left):
    threads = [cores]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("srcnn.training.machine._num_runnable", lambda: others + 1)
    assert bool(leave_busy_cores()) == (left < cores)
    assert threads[-1] == left


def test_a_number_of_threads_that_was_asked_for_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("srcnn.training.machine._num_runnable", lambda: 99)
    assert not leave_busy_cores()
