"""A training of several ranks as processes, to be disturbed: started, watched, ended, and compared with another."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors import safe_open

from srcnn.runtime import files
from srcnn.tracking.history import METRICS, STEP_KEY
from srcnn.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE = 16
LOG_EVERY = 5 * BATCH_SIZE
SAVE_EVERY = 25 * BATCH_SIZE
VALIDATE_EVERY = 50 * BATCH_SIZE
SETTINGS: dict[str, Any] = {
    "model": {"filters": [8, 4], "residual": True},
    "optimizer": {"lr": 4e-3, "average_halflife_samples": 16},
    "batch_size": BATCH_SIZE,
    "log_every_samples": LOG_EVERY,
    "save_every_samples": SAVE_EVERY,
    "validate_every_samples": VALIDATE_EVERY,
    "timeout_minutes": 0.4,
    "mixed_precision": "no",
    "trackers": [],
}
KILL_AFTER_SECONDS = 10  # by the launcher, after its SIGTERM
TIMINGS = {"tiles_per_second", "data_wait", "memory_gib"}  # what differs between two runs of the same training
PROGRESS_SECONDS = 180.0  # for a start on a busy machine
SCRIPT = "launch/train.py"


class NotSurvived(Exception):
    """What had to hold and does not."""


class Job:
    """A run folder, the command that fills it, and the processes of its latest start.

    Attributes:
        destroyed: lines of metrics.jsonl that a fault took away, and what it made of them: nobody can restore them.
        log: all that the processes of the latest start have said.
    """

    def __init__(self, folder: Path, run: Path, shards: Path, total_samples: int, num_ranks: int = 2) -> None:
        folder.mkdir(parents=True)
        self.run, self.shards, self.total_samples, self.num_ranks = run, shards, total_samples, num_ranks
        self.settings = folder / "training.yaml"
        about = {"run": str(run), "shards": str(shards), "total_samples": total_samples}
        self.settings.write_text(yaml.safe_dump(SETTINGS | about))
        self.process: subprocess.Popen[str] | None = None
        self.environment: Mapping[str, str] = {}
        self.destroyed: set[bytes] = set()
        self.log = ""
        self.started_at = 0.0
        self.limit_bytes = -1

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """The same command each time."""
        accelerate = ROOT / "configs/accelerate/cpu2.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate)]
        command += [f"--num_processes={self.num_ranks}", "--main_process_port=0"]
        command += [SCRIPT, "--config", str(self.settings)]
        self.environment, self.log, self.started_at = environment or {}, "", time.monotonic()

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in the background of a script
            if self.limit_bytes >= 0:
                _limit_files(os.getpid(), self.limit_bytes)

        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=prepare, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(KILL_AFTER_SECONDS),
                 **self.environment},
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:  # until the last of its processes is gone
            if process is self.process:
                self.log += line

    def processes(self) -> list[psutil.Process]:
        """Launcher and ranks, whoever is their parent by now."""
        mine = str(self.settings)
        return [one for one in psutil.process_iter(["cmdline"]) if mine in (one.info["cmdline"] or ())]

    def ranks(self) -> dict[int, psutil.Process]:
        """By rank; those that are there."""
        found = {}
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                if SCRIPT in one.cmdline()[1:3]:
                    found[int(one.environ()["RANK"])] = one
        return found

    def rank(self, number: int) -> psutil.Process | None:
        """None where the training has come to its end."""
        self.wait_for(lambda: number in self.ranks(), f"rank {number}")
        return self.ranks().get(number)

    def signal(self, number: int) -> None:
        """To the launcher."""
        assert self.process
        self.process.send_signal(number)

    def signal_tree(self, number: int) -> None:
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    def limit_files(self, limit_bytes: int) -> None:
        """What its processes can write to a file, now and after a start; -1 for no limit."""
        self.limit_bytes = limit_bytes
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                _limit_files(one.pid, limit_bytes)

    def kill(self) -> None:
        """kill -9 until nothing is left; a launcher may be about to start a rank."""
        while self.process and not self.has_ended():
            self.signal_tree(signal.SIGKILL)
            time.sleep(0.02)

    def has_ended(self) -> bool:
        assert self.process
        return self.process.poll() is not None and not self.processes()

    def status(self) -> int | None:
        return self.process.poll() if self.process else None

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def resumed_at(self) -> int | None:
        """Tiles that this start found done; None before it says so."""
        found = re.search(r"starting at (\d+) of \d+", self.log)
        return int(found[1]) if found else None

    def tiles(self) -> int:
        """Tiles done, as far as is known outside: by log or checkpoint."""
        said = [int(number) for number in re.findall(r" (\d+) of \d+ tiles: ", self.log)]
        return max([self.resumed_at() or 0, *said])

    def rate(self) -> float:
        """Tiles a second, as said last."""
        found = re.findall(r"([\d,.]+) tiles/s", self.log)
        return float(found[-1].replace(",", "")) if found else 500.0

    def is_complete(self) -> bool:
        return self.tiles() >= self.total_samples

    def saved(self) -> int:
        """Tiles of the newest whole checkpoint, -1 without any."""
        folders = checkpoint.step_folders(self.run)
        steps = [int(folder.name[5:]) for folder in folders if not checkpoint.find_corruption(folder)]
        return max(steps, default=-1) * BATCH_SIZE

    def newest(self) -> Path:
        return checkpoint.step_folders(self.run)[-1]

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = PROGRESS_SECONDS) -> bool:
        """False where the training came to its end instead. Raises NotSurvived where it ended otherwise, or in vain."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.is_running() and not condition():
                if self.status() == 0 and self.wait_for_end(10) and self.is_complete():
                    return False
                raise NotSurvived(f"ended with status {self.status()} while waiting for {what}: {last(self.log)}")
            if time.monotonic() > deadline:
                raise NotSurvived(f"{seconds:.0f} s without {what}: {last(self.log)}")
            time.sleep(0.005)
        return True

    def wait_for_end(self, seconds: float) -> bool:
        """Whether all its processes are gone in time."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def last(log: str) -> str:
    """What the ranks said at the end, without what launchers add; else the last lines of all."""
    lines = log.splitlines()
    return " / ".join([line for line in lines if line.startswith((f"{SCRIPT}: ", "srcnn: "))][-2:] or lines[-3:])[-400:]


def _limit_files(process: int, limit_bytes: int) -> None:
    """The soft limit only, which can be raised again."""
    _, hard = psutil.Process(process).rlimit(psutil.RLIMIT_FSIZE)
    psutil.Process(process).rlimit(psutil.RLIMIT_FSIZE, (limit_bytes, hard))


def differences(job: Job, other: Job) -> list[str]:
    """What a finished run lacks, has too much, or has otherwise than another of the same training."""
    left = [f"{name} is left" for name in _names(job.run) if files.TEMPORARY_PREFIX in name or "replaced-" in name]
    if alone := _kept(other.run) ^ _kept(job.run):
        return left + [f"{name} is in one of the two run folders only" for name in sorted(alone)]
    found = left + _unequal(_state(job), _state(other), "training")
    for folder in ("best", "checkpoints/" + _newest(other).name):
        place = f"{folder}/{checkpoint.MODEL}"
        found += _unequal(_model(job.run / place), _model(other.run / place), place)
    one, another = (torch.load(which.run / "checkpoint.pth", weights_only=True) for which in (job, other))
    return found + _unequal(one, another, "checkpoint.pth") + _other_lines(job, other)


def weights_equal(job: Job, other: Job) -> bool:
    """Of the last checkpoints: weights, averaged weights and the optimizer's state, to the last bit."""
    one, another = _state(job), _state(other)
    return not any(_unequal(one[key], another[key], key) for key in ("network", "average", "optimizer"))


def _newest(job: Job) -> Path:
    folder = checkpoint.latest(job.run)
    assert folder, f"{job.run}: no checkpoint"
    return folder


def _state(job: Job) -> dict[str, Any]:
    """What continuing needs, without what is of one run only."""
    state = checkpoint.load_training(_newest(job))
    del state["tracker_id"], state["config"]["run"]
    return state


def _model(path: Path) -> dict[str, Any]:
    """Tensors and strings, which lie in the file in no particular order."""
    with safe_open(path, "pt") as file:
        return {"about": file.metadata()} | {name: file.get_tensor(name) for name in file.keys()}


def _names(run: Path) -> list[str]:
    return [path.relative_to(run).as_posix() for path in run.rglob("*")]


def _kept(run: Path) -> set[str]:
    """Names below a run folder; not those of checkpoints, which lie elsewhere after a stop."""
    return {name for name in _names(run) if "step-" not in name}


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    """Places in two nests of dicts and lists that do not hold the same bits."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        return [place for key in one for place in _unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for number, pair in pairs for place in _unequal(*pair, f"{where}.{number}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [f"{where} differs"]


def _other_lines(job: Job, other: Job) -> list[str]:
    """What differs in metrics.jsonl, apart from timings and what a fault destroyed."""
    lost = {_progress(line) for line in job.destroyed}
    ours = [line for line in _lines(job.run) if line not in job.destroyed]
    points = {_progress(line): _numbers(line) for line in ours}
    expected = {_progress(line): _numbers(line) for line in _lines(other.run)}
    found = [f"{METRICS}: {len(ours) - len(points)} lines twice"] if len(ours) > len(points) else []
    for progress in sorted((set(points) ^ set(expected)) - lost):
        found.append(f"{METRICS}: line of {progress} is {'missing' if progress in expected else 'too much'}")
    for progress in sorted(set(points) & set(expected)):
        if points[progress] != expected[progress]:
            found.append(f"{METRICS}: line of {progress} differs")
    return found


def _lines(run: Path) -> list[bytes]:
    return (run / METRICS).read_bytes().splitlines(keepends=True)


def _numbers(line: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return {key: value for key, value in json.loads(line).items() if key not in TIMINGS}
    return line


def _progress(line: bytes) -> float:
    """-1 for what is no line of numbers."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return float(json.loads(line)[STEP_KEY])
    return -1.0
