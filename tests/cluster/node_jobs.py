"""Trainings on several nodes (`nodes.cluster`), a rank on each, under `accelerate launch` as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from srcnn.training import checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "accelerate" / "cpunodes2.yaml"
DEADLINE = 240.0  # seconds, for what takes ten on a quiet machine


class NodesJob:
    """Launchers of one training, on nodes that share its run folder; what each says is in a file."""

    def __init__(
        self, nodes: Sequence[Any], folder: Path, settings: dict[str, Any], launcher: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic_ns()
        self._nodes, self._folder, self.run = nodes, folder, Path(settings["run"])
        self._config = folder / f"{self._started}.yaml"
        self._config.write_text(yaml.safe_dump(settings))
        self._launcher = launcher
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
        self.launchers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *ranks: int) -> NodesJob:
        """Starts the launchers of these nodes, of all where none is given."""
        for rank in ranks or range(len(self._nodes)):
            words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG, "--num_machines",
                     len(self._nodes), "--num_processes", len(self._nodes), "--machine_rank", rank,
                     "--main_process_ip", self._nodes[0].address, *self._launcher]
            words += [ROOT / "launch" / "train.py", "--config", self._config]
            with self._log(rank).open("wb") as log:
                self.launchers[rank] = subprocess.Popen(self._nodes[rank].command(*words), cwd=ROOT, stdout=log,
                                                        stderr=subprocess.STDOUT, env=self._environment)
        return self

    def _log(self, rank: int) -> Path:
        return self._folder / f"{self._started}-{rank}.log"

    def said(self, rank: int) -> str:
        return self._log(rank).read_text()

    def processes(self, rank: int) -> list[psutil.Process]:
        """The launcher on a node, and what it started."""
        launcher = psutil.Process(self.launchers[rank].pid)
        return [launcher, *launcher.children(recursive=True)]

    def kill(self, rank: int) -> None:
        """kill -9 for all its processes on a node."""
        for process in self.processes(rank):
            process.kill()
        self.launchers[rank].wait()

    def samples(self) -> int:
        """What the latest checkpoint has seen."""
        folder = checkpoint.latest(self.run) if (self.run / "checkpoints").is_dir() else None
        return int(checkpoint.load_training(folder)["samples"]) if folder else 0

    def wait_for(self, num_samples: int) -> None:
        """Waits for a checkpoint after so many samples."""
        deadline = time.monotonic() + DEADLINE
        while self.samples() < num_samples:
            ended = [rank for rank, one in self.launchers.items() if one.poll() is not None]
            assert not ended and time.monotonic() < deadline, "\n".join(map(self.said, self.launchers))
            time.sleep(0.02)

    def end_within(self, seconds: float, processes: Sequence[psutil.Process] = ()) -> list[int]:
        """The launchers' exit statuses; none of them, nor of these processes, may live longer."""
        deadline = time.monotonic() + seconds
        others = [one for one in processes if one.pid not in {launcher.pid for launcher in self.launchers.values()}]
        for rank, launcher in self.launchers.items():
            try:
                launcher.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the launcher of rank {rank} lives: {self.said(rank)}") from None
        assert not (alive := psutil.wait_procs(others, timeout=max(0.0, deadline - time.monotonic()))[1]), alive
        return [launcher.returncode for launcher in self.launchers.values()]

    def succeed(self) -> None:
        assert not any(self.end_within(DEADLINE)), "\n".join(map(self.said, self.launchers))
