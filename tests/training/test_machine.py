"""What a training runs on."""

import os
import subprocess
import sys

import pytest
import torch

from srcnn.training.machine import busy_cores


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
