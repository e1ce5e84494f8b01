"""Trainings as processes of their own, with and without a launcher, to be disturbed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import yaml
from conftest import heed_ctrl_c

from srcnn import checkpoint
from srcnn.tracking import read_metrics

ROOT = Path(__file__).parents[1]
SETTINGS = {"model": {"filters": [8, 4], "residual": True}, "optimizer": {"lr": 2e-3}, "batch_size": 12,
            "trackers": [], "mixed_precision": "no", "timeout_minutes": 0.5}
LONG = {"total_samples": 10**7, "log_every_samples": 240, "validate_every_samples": 960, "save_every_samples": 240}
TIMINGS = ("tiles_per_second", "data_wait", "memory_gib")


def start(num_ranks, folder, *arguments, launcher=(), environment=None, host="", **settings):
    """A training under `accelerate launch` (0 ranks: one without a launcher), as a running process.

    `host`: the name of this machine to it, which needs root.
    """
    path = folder / f"{num_ranks}-{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | settings))
    command = [sys.executable]
    if num_ranks:
        config = ROOT / "configs/accelerate" / ("cpu.yaml" if num_ranks == 1 else "cpu2.yaml")
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config), f"--num_processes={num_ranks}"]
        command += [*(["--main_process_port=0"] if num_ranks > 1 else []), *launcher]
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host] if host else []
    return subprocess.Popen(
        [*named, *command, str(ROOT / "launch/train.py"), "--config", str(path), *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed_ctrl_c,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def finish(process):
    """Its exit status and all it said."""
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def succeed(process):
    status, output = finish(process)
    assert status == 0, output
    return output


def ranks_of(process):
    """The processes that train, below a launcher or without one."""
    below = psutil.Process(process.pid).children(recursive=True)
    mine = [one for one in (psutil.Process(process.pid), *below) if str(ROOT / "launch/train.py") in words_of(one)[1:3]]
    return sorted(mine, key=lambda one: one.pid)


def words_of(process):
    """The command line of a process; none where it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill(process):
    """kill -9 for all its processes; ranks have sessions of their own. What it had said is returned."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for one in (launcher, *launcher.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    return process.communicate()[0]


def wait_for(process, run, num_samples):
    """Waits for a checkpoint after so many samples."""
    wait_until(process, lambda: consumed(run) >= num_samples)


def wait_until(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline or process.poll() is not None:
            raise AssertionError(f"waited in vain; it said: {kill(process)}")
        time.sleep(0.02)


def consumed(run):
    """Samples that the latest checkpoint has used."""
    folder = checkpoint.latest(run) if (run / "checkpoints").is_dir() else None
    return checkpoint.load_training(folder)["samples"] if folder else 0


def state(run):
    return checkpoint.load_training(checkpoint.latest(run))


def numbers(run):
    """Everything logged that is not a time or a size of memory."""
    return [{key: value for key, value in point.items() if key not in TIMINGS} for point in read_metrics(run)]


def assert_same_bits(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_bits(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same_bits(a, b)
    else:
        assert first == second


def assert_same_run(run, undisturbed):
    assert numbers(run) == numbers(undisturbed)
    ours, theirs = state(run), state(undisturbed)
    for kept in (ours, theirs):
        kept.pop("config"), kept.pop("tracker_id")
    assert_same_bits(ours, theirs)
    assert (run / "best").resolve().name == (undisturbed / "best").resolve().name
