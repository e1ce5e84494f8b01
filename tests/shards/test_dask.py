"""Shards made by a real Dask scheduler with workers in processes of their own, which are killed and frozen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, PhotosFolder, contents, make, quiet_env, run_shards, shards_command
from messages import facts, says

from shards.plan import ShardsConfig
from shards.workers import ShardsFailed
from shards.write import make_shards

pytest.importorskip("distributed")
# Python runs a file of this name at its start: a worker gives no shard its final name while its gate is there.
GATE = """
import os, time

def replace_when_open(temporary, final, replace=os.replace):
    while str(final).endswith(".tar") and os.path.exists(os.environ.get("GATE", "")):
        time.sleep(0.01)
    replace(temporary, final)

os.replace = replace_when_open
"""


class Cluster:
    """A scheduler and, by name, its workers; each worker holds at its gate, a file, while that is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hooks").mkdir(parents=True)
        (folder / "hooks/sitecustomize.py").write_text(GATE)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("scheduler", "--host", "127.0.0.1", "--port", str(port))

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        kind = "scheduler" if name == "scheduler" else "worker"
        command = [sys.executable, "-m", "dask", kind, *arguments, "--no-dashboard"]
        own = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
        paths = {"PYTHONPATH": f"{self.folder / 'hooks'}:{REPOSITORY}"}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log,
                                                    env=quiet_env() | own | paths | environment)

    def add_worker(self, name: str) -> None:
        self.start(name, self.address, "--nthreads", "1", "--no-nanny", "--name", name, GATE=str(self.gate(name)))

    def gate(self, name: str) -> Path:
        return self.folder / f"gate of {name}"

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path / "cluster")
    try:
        yield started
    finally:
        started.stop()


def wait_until(condition: Callable[[], bool], told: Callable[[], str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_killed_within_a_shard_and_a_frozen_one_change_no_byte(
    cluster: Cluster, tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    options = (*SMALL, "--photos", photos_folder(13))
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "local") == 0
    for name in ("killed", "frozen", "third"):
        cluster.gate(name).touch()
        cluster.add_worker(name)
    out = tmp_path / "out"
    job = subprocess.Popen(shards_command(*options, "--out", out, "--executor", cluster.address), cwd=REPOSITORY,
                           env=quiet_env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: len(list(out.glob("*/.writing-*.tar"))) == 3, cluster.log)  # each within a shard of its own
    os.kill(cluster.processes["killed"].pid, signal.SIGKILL)
    os.kill(cluster.processes["frozen"].pid, signal.SIGSTOP)
    cluster.gate("third").unlink()
    output, _ = job.communicate(timeout=180)
    assert job.returncode == 0, output + cluster.log()
    assert contents(out) == contents(tmp_path / "local")
    cluster.gate("frozen").unlink()
    os.kill(cluster.processes["frozen"].pid, signal.SIGCONT)  # what it still does does no harm
    cluster.add_worker("new")
    again = run_shards(*options, "--out", out, "--executor", cluster.address)
    assert again.returncode == 0 and str(out) in again.stdout, again
    assert {name: content for name, content in contents(out).items() if name.endswith(".tar")} == {
        name: content for name, content in contents(tmp_path / "local").items() if name.endswith(".tar")}


@pytest.mark.slow
def test_without_its_scheduler_it_ends_and_the_same_command_goes_on(
    cluster: Cluster, tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    options = (*SMALL, "--photos", photos_folder(9), "--out", tmp_path / "out")
    cluster.gate("only").touch()
    cluster.add_worker("only")
    job = subprocess.Popen(shards_command(*options, "--executor", cluster.address), cwd=REPOSITORY,
                           env=quiet_env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: any((tmp_path / "out").glob("*/.writing-*.tar")), cluster.log)
    cluster.stop()
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and cluster.address in output, output
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "out") == 0
    assert make("--photos", tmp_path / "photos", "--out", tmp_path / "local") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
def test_workers_that_cannot_import_the_shard_maker_are_named_and_those_that_all_die_are_missed(
    cluster: Cluster, tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    without = tmp_path / "without" / "shards.py"  # found before the one that is installed
    without.parent.mkdir()
    without.write_text("raise ModuleNotFoundError(\"No module named 'shards'\", name='shards')")
    cluster.start("stranger", cluster.address, "--nthreads", "1", "--no-nanny", PYTHONPATH=str(without.parent))
    command = (*SMALL, "--photos", photos_folder(3), "--out", tmp_path / "out", "--executor", cluster.address)
    done = run_shards(*command)
    assert done.returncode == 1 and says(done.stderr, cluster.address, "'shards'"), done
    assert len(done.stderr.strip().splitlines()) == 1
    cluster.processes.pop("stranger").kill()
    cluster.gate("mortal").touch()
    cluster.add_worker("mortal")
    job = subprocess.Popen(shards_command(*command), cwd=REPOSITORY, env=quiet_env(), text=True, stderr=subprocess.PIPE)
    wait_until(lambda: any((tmp_path / "out").glob("*/.writing-*.tar")), cluster.log)
    cluster.processes["mortal"].kill()
    assert job.stderr and cluster.address in job.stderr.readline()
    cluster.add_worker("late")
    assert job.communicate(timeout=120) and job.returncode == 0


def test_any_executor_makes_the_same_bytes(tmp_path: Path, photos_folder: PhotosFolder) -> None:
    values = {"photos": str(photos_folder(7)), "resize": "none", "tile_pixels": 64, "samples_per_shard": 6}
    make_shards(ShardsConfig(out=str(tmp_path / "local"), num_workers=1, **values), show_progress=False)
    with ThreadPoolExecutor(3) as executor:
        make_shards(ShardsConfig(out=str(tmp_path / "out"), **values), show_progress=False, executor=executor)
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "local").keys() - {"train.png", "val.png"}
    assert contents(tmp_path / "out").items() <= contents(tmp_path / "local").items()


def test_a_worker_with_another_jpeg_library_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"photos": str(photos_folder(3)), "resize": "none", "tile_pixels": 64, "out": str(tmp_path / "out")}
    told = iter([{"pillow": "1"}])
    versions = {"pillow": "2"}
    monkeypatch.setattr("shards.workers.library_versions", lambda: next(told, versions))
    with ThreadPoolExecutor(1) as executor, pytest.raises(ShardsFailed, match=facts("pillow", 1, 2)):
        make_shards(ShardsConfig(**values), show_progress=False, executor=executor)
