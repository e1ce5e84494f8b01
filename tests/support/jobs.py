"""Trainings as processes of their own, to be disturbed: ranks forked from a server, or all that a launcher starts."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
import yaml
from conftest import heed_ctrl_c

from srcnn.tracking.history import read_metrics
from srcnn.training import checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/train.py"
SETTINGS = {"model": {"filters": [8, 4], "residual": True}, "optimizer": {"lr": 2e-3}, "batch_size": 12,
            "trackers": [], "mixed_precision": "no", "timeout_minutes": 0.5}
LONG = {"total_samples": 10**7, "log_every_samples": 240, "validate_every_samples": 960, "save_every_samples": 240}
TIMINGS = ("tiles_per_second", "data_wait", "memory_gib")
PRELOADED = ["torch", "torch._dynamo", "accelerate", "srcnn.training.launcher", "srcnn.training.trainer", "jobs"]
STARTED = []  # ranks of the test that runs


class Ranks:
    """The ranks of one training without a launcher, forked from a server that has imported torch; as a Popen is used.

    A rank takes a second from fork to first step, where a new Python takes eight to import what it needs.
    """

    def __init__(self, num_ranks, command, environment):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        with contextlib.closing(receiver):
            self.stdout = os.fdopen(os.dup(receiver.fileno()), encoding="utf-8")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        variables |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1",
                      "MASTER_PORT": str(free_port())} if num_ranks > 1 else {}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.processes = []
        for rank in range(num_ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
            self.processes.append(context.Process(target=_work, args=(sender, command, variables | own | environment)))
        with contextlib.closing(sender):
            for process in self.processes:
                process.start()
        self.pid = self.processes[0].pid
        STARTED.append(self)

    @property
    def returncode(self):
        """0 if all ranks have ended with it, the first other status of one, None while any runs."""
        statuses = [process.exitcode for process in self.processes]
        return None if None in statuses else next(filter(None, statuses), 0)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        """To all of them, as a scheduler does."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=3600.0):
        """What they said, once they have ended or, after the timeout, were killed."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        output = self.stdout.read()
        for process in self.processes:
            process.join()
        timer.cancel()
        return output, None


def _work(output, command, environment):
    """A rank, in its process: `command` as Python's command line has it."""
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # the server may have read another
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def start(num_ranks, folder, *arguments, environment=None, script=SCRIPT, **settings):
    """A training of so many ranks, without a launcher, as running processes."""
    command = [str(script), "--config", written(folder, settings), *arguments]
    return Ranks(num_ranks, command, environment or {})


def launched(num_ranks, folder, *arguments, launcher=(), environment=None, host="", **settings):
    """A training under `accelerate launch`, or of 0 ranks as `python launch/train.py`, as a running process.

    `host`: the name of this machine to it, which needs root.
    """
    command = [sys.executable]
    if num_ranks:
        config = ROOT / "configs/accelerate" / ("cpu.yaml" if num_ranks == 1 else "cpu2.yaml")
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config), f"--num_processes={num_ranks}"]
        command += [*(["--main_process_port=0"] if num_ranks > 1 else []), *launcher]
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host] if host else []
    return subprocess.Popen(
        [*named, *command, str(SCRIPT), "--config", written(folder, settings), *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed_ctrl_c,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def end_all():
    """Kills what a test has left running."""
    while STARTED:
        STARTED.pop().kill()


def written(folder, settings):
    """The path of a config file with the small training's settings and these."""
    path = folder / f"{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | settings))
    return str(path)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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
    if isinstance(process, Ranks):
        return [psutil.Process(one.pid) for one in process.processes if one.is_alive()]
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
    if isinstance(process, Ranks):
        process.kill()
    elif process.poll() is None:
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
