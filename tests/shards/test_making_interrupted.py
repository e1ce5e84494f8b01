"""`python -m shards` killed, interrupted and started twice. It is held at a gate, so that it cannot end too early."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import (
    REPOSITORY,
    PhotosFolder,
    contents,
    heed_ctrl_c,
    quiet_env,
    run_shards,
    shards_command,
    traces,
)

from shards.__main__ import main
from shards.workers import WorkerPool

LARGE = ("--resize", "long:1536", "--samples_per_shard", 1, "--num_sheet_pairs", 2)
# Python runs a file of this name at its start, also in the workers: shards get no final name while the gate is there
# and so many have one.
GATE = """
import os, pathlib, time

def replace_when_open(temporary, final, replace=os.replace):
    while os.path.exists("{gate}") and final.suffix == ".tar" and num_finished() >= {num_shards}:
        time.sleep(0.01)
    replace(temporary, final)

def num_finished():
    return len(list(pathlib.Path("{out}").glob("*/0*.tar")))

os.replace = replace_when_open
"""


class Held:
    """A shard maker in a process group of its own that has finished some shards, and goes on when `open` is called."""

    def __init__(self, folder: Path, *arguments: object, num_shards: int) -> None:
        out = Path(str(arguments[arguments.index("--out") + 1]))
        self._gate = folder / "gate"
        self._gate.touch()
        program = GATE.format(gate=self._gate, out=out, num_shards=num_shards)
        (folder / "hooks").mkdir()
        (folder / "hooks/sitecustomize.py").write_text(program)
        self.process = subprocess.Popen(
            shards_command(*arguments),
            cwd=REPOSITORY,
            env=quiet_env() | {"PYTHONPATH": f"{folder / 'hooks'}:{REPOSITORY}"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )
        deadline = time.monotonic() + 60
        while len(list(out.glob("*/0*.tar"))) < num_shards:
            assert self.process.poll() is None and time.monotonic() < deadline, "ended before it was held"
            time.sleep(0.002)

    def open(self) -> None:
        self._gate.unlink()


def children_of(process_id: int) -> list[int]:
    listed = Path(f"/proc/{process_id}/task/{process_id}/children")
    if not listed.is_file():
        pytest.skip("no list of child processes here")
    return [int(child) for child in listed.read_text().split()]


def is_alive(process_id: int) -> bool:
    """A process that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_halfway_it_keeps_finished_shards_and_completes_the_rest(
    tmp_path: Path, photos_folder: PhotosFolder, num_workers: int
) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--num_workers", num_workers)
    held = Held(tmp_path, *options, "--out", out, num_shards=3)
    children = children_of(held.process.pid)
    os.kill(held.process.pid, signal.SIGKILL)
    held.process.communicate()
    deadline = time.monotonic() + 10
    while any(is_alive(child) for child in children):  # no orphans that write on
        assert time.monotonic() < deadline, "workers outlive the killed shard maker"
        time.sleep(0.01)
    assert not (out / "train/manifest.json").exists()
    kept = {
        name: trace for name, trace in traces(out).items() if Path(name).suffix == ".tar" and "/0" in name
    }
    assert 3 <= len(kept) < 16
    (out / "train/.writing-left.tar").write_bytes(b"half a shard")
    assert run_shards(*options, "--out", out).returncode == 0
    assert kept.items() <= traces(out).items()
    assert main([*map(str, options), "--num_workers", "1", "--out", str(tmp_path / "undisturbed")]) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [1, 14])  # held: two workers; the one that writes what the workers make
def test_ctrl_c_ends_with_one_line_and_status_130(
    tmp_path: Path, photos_folder: PhotosFolder, num_shards: int
) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--out", out, "--num_workers", 2)
    held = Held(tmp_path, *options, num_shards=num_shards)
    os.killpg(held.process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    held.open()
    _, errors = held.process.communicate(timeout=120)
    assert held.process.returncode == 130
    assert len(errors.splitlines()) == 1
    assert not list(out.rglob(".writing-*"))
    assert run_shards(*options).returncode == 0


@pytest.mark.slow
def test_a_second_shard_maker_in_the_same_folder_is_refused(
    tmp_path: Path, photos_folder: PhotosFolder
) -> None:
    photos, out = photos_folder(16, width=307, height=203), tmp_path / "out"
    options = (*LARGE, "--photos", photos, "--out", out, "--num_workers", 1)
    held = Held(tmp_path, *options, num_shards=1)
    second = run_shards(*options)
    held.open()
    assert second.returncode == 1 and str(out) in second.stderr
    held.process.communicate(timeout=60)
    assert held.process.returncode == 0


def blocks_ctrl_c(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_never_reaches_a_worker_not_even_while_it_starts() -> None:
    """A terminal sends it to every process of the group; Python answers with a traceback until it is told otherwise."""
    with WorkerPool(2) as pool:
        assert list(pool.map(blocks_ctrl_c, [0, 1])) == [True, True]
        assert not blocks_ctrl_c(0), "the main process hears it"
