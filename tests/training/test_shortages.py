"""Trainings that are starved of disk or of finite numbers, begun twice, or begun otherwise: named, and nothing lost."""

import contextlib
import errno
import json
import math
import os
import subprocess
import time
from pathlib import Path

import pytest
from jobs import LONG, assert_same_run, consumed, finish, start, state, succeed, wait_for, wait_until
from messages import lines_with, says
from servers import FaultyServer
from small import small_shards

from srcnn.runtime.signals import EXIT_REQUEUE
from srcnn.tracking.history import read_metrics
from srcnn.training import checkpoint

slow = pytest.mark.slow
FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(small_shards(tmp_path_factory.mktemp("shards")))


SPOILED = """
import sys
from contextlib import nullcontext
from steps import spoiled
from srcnn.training import trainer as training
from srcnn.training.config import TrainConfig
what, when = sys.argv.pop().split(":")
first, last, rank = map(int, sys.argv.pop().split(":"))
if when == "late":
    training.ASYNC_DEVICES = ("cpu",)
step = training.train_step
def disturbed(trainer, batch):
    here = first <= trainer.state.step < last and trainer.accelerator.process_index == rank
    if here and what == "error":
        trainer.error = trainer.error or OSError("a cable")
    with spoiled(trainer) if here and what != "error" else nullcontext():
        return step(trainer, batch)
training.train_step = disturbed
from srcnn.training.launcher import launch
launch("spoiled", None, TrainConfig, training.train)
"""


def train_spoiled(folder, where, what, **settings):
    """A training of two ranks with `where` (first step:last:rank) spoiled by `what` (kind:when it is heard of)."""
    script = folder / "spoiled.py"
    script.write_text(SPOILED)
    return finish(start(2, folder, where, what, script=script, **settings))


@pytest.mark.parametrize("last,max_skipped,when", [
    (7, 3, "at once"), pytest.param(99, 3, "at once", marks=slow),
    pytest.param(7, 3, "late", marks=slow), pytest.param(99, 3, "late", marks=slow),
])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all_up_to_a_limit(
    tmp_path, shards, last, max_skipped, when
):
    run = tmp_path / "run"
    settings = {"total_samples": 144, "log_every_samples": 24, "validate_every_samples": 72}
    status, output = train_spoiled(tmp_path, f"4:{last}:1", f"infinite:{when}", run=str(run), shards=shards,
                                   max_skipped_steps=max_skipped, **settings)
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    if last == 7:
        assert status == 0, output
        assert state(run)["skipped_steps"] == 3 and state(run)["samples"] == 144
        assert [entry["step"] for entry in skipped] == [5, 6, 7]
        assert all(math.isfinite(value) for point in read_metrics(run) for value in point.values())
    else:
        assert status == 1 and lines_with(output, 4, "optimizer.lr", run / "skipped.jsonl")
        assert [entry["step"] for entry in skipped] == [5, 6, 7, 8]
    keys = [key for part in skipped[0]["keys_of_ranks"] for key in part]
    assert len(skipped[0]["keys_of_ranks"]) == 2 and len(keys) == 12 and all(key.endswith(".npy") for key in keys)
    latest = state(run)
    assert all(tensor.isfinite().all() for tensor in latest["network"].values())


@slow
def test_a_rank_that_fails_is_heard_of_late_and_all_stop_after_the_same_step(tmp_path, shards):
    """As on GPUs: the others have computed the next gradient by then."""
    settings = {"shards": shards, "total_samples": 96, "log_every_samples": 48, "validate_every_samples": 96,
                "optimizer": {"lr": 2e-3, "average_halflife_samples": 500}}
    run = tmp_path / "run"
    status, output = train_spoiled(tmp_path, "4:5:1", "error:late", run=str(run), **settings)
    assert status == 1 and output.count("spoiled: a cable") == 2, output
    assert (state(run)["step"], state(run)["samples"]) == (5, 60)
    for folder in (run, tmp_path / "whole"):
        status, output = train_spoiled(tmp_path, "99:99:1", "error:late", run=str(folder), **settings)
        assert status == 0, output
    assert_same_run(run, tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("wish", ["stop", pytest.param("continue", marks=slow)])
def test_a_full_disk_is_told_the_last_checkpoint_kept_and_the_wish_followed(tmp_path, shards, small_disk, wish):
    run = small_disk / "run"
    settings = LONG | {"shards": shards, "total_samples": 1920, "on_save_failure": wish}
    process = start(1, tmp_path, run=str(run), **settings)
    wait_for(process, run, 480)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
    kept = None
    if wish == "continue":
        before, said = consumed(run), []
        for line in process.stdout:
            said.append(line)
            if says(line, "checkpoint", FULL):
                break
        kept = consumed(run)
        assert kept <= before + 960, "nothing new fits"
        filler.unlink()
        output = "".join(said) + succeed(process)
        assert lines_with(output, "checkpoint", FULL)
        assert [point["samples"] for point in read_metrics(run)] == list(range(240, 1921, 240))
        assert consumed(run) == 1920
    else:
        status, output = finish(process)
        assert status == 1 and FULL in output
        assert checkpoint.latest(run) is not None
        filler.unlink()
        succeed(start(1, tmp_path, run=str(run), **settings))
    succeed(start(1, tmp_path, run=str(tmp_path / "whole"), **settings))
    assert_same_run(run, tmp_path / "whole")


@slow
def test_a_disk_that_is_full_at_the_very_end_is_waited_for(tmp_path, shards, small_disk):
    run = small_disk / "run"
    process = start(2, tmp_path, run=str(run), **LONG | {"shards": shards, "total_samples": 1920})
    wait_for(process, run, 480)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    wait_until(process, lambda: says(process.stdout.readline(), "1920 of 1920"))
    wait_until(process, lambda: says(process.stdout.readline(), "checkpoint", FULL))
    filler.unlink()
    succeed(process)
    assert consumed(run) == 1920
    assert read_metrics(run)[-1]["samples"] == 1920


@slow
def test_a_run_folder_that_vanishes_is_made_anew(tmp_path, shards):
    run = tmp_path / "run"
    process = start(1, tmp_path, run=str(run), shards=shards, **LONG | {"total_samples": 1920})
    wait_for(process, run, 480)
    run.rename(tmp_path / "elsewhere")
    output = succeed(process)
    assert str(run) in output
    assert consumed(run) == 1920 and (run / "best" / "model.safetensors").is_file()


@slow
def test_two_trainings_do_not_write_into_one_folder(tmp_path, shards):
    run = tmp_path / "run"
    first = start(1, tmp_path, run=str(run), shards=shards, **LONG)
    wait_for(first, run, 240)
    begun = time.monotonic()
    second = start(1, tmp_path, run=str(run), shards=shards, **LONG)
    wait_until(first, lambda: time.monotonic() > begun + 4)
    assert second.poll() is None, "it waits for the first to end"
    first.terminate()
    assert finish(first)[0] == EXIT_REQUEUE
    stopped = consumed(run)
    wait_for(second, run, stopped + 240)
    second.terminate()
    assert finish(second)[0] == EXIT_REQUEUE


@slow
def test_fresh_begins_anew_and_deletes_nothing(tmp_path, shards):
    run, settings = tmp_path / "run", {"shards": shards, "total_samples": 48, "validate_every_samples": 24}
    succeed(start(1, tmp_path, run=str(run), **settings))
    succeed(start(1, tmp_path, "--fresh", run=str(run), seed=1, **settings))
    assert consumed(run) == consumed(tmp_path / "run.before-1") == 48
    assert state(run)["config"]["seed"] == 1 and state(tmp_path / "run.before-1")["config"]["seed"] == 0
    succeed(start(1, tmp_path, "--fresh", run=str(run), seed=1, **settings,
                  environment={"TORCHELASTIC_RESTART_COUNT": "1"}))
    assert len(list(tmp_path.glob("run.before-*"))) == 1, "a launcher's restart continues"
    for num_kept, environment in enumerate(({"TORCHELASTIC_RUN_ID": "job-7"}, {"SLURM_JOB_ID": "8"}), 2):
        for requeues in ("1", "2"):
            environment |= {"SLURM_RESTART_COUNT": requeues}
            succeed(start(1, tmp_path, "--fresh", run=str(run), seed=1, **settings, environment=environment))
            kept = sorted(path.name for path in tmp_path.glob("run.before-*"))
            assert len(kept) == num_kept, "a job starts over once, whoever joins or requeues"


@slow
def test_what_does_not_matter_may_change_and_is_noted(tmp_path, shards):
    run, settings = tmp_path / "run", {"shards": shards, "total_samples": 48, "validate_every_samples": 24}
    succeed(start(1, tmp_path, run=str(run), **settings))
    output = succeed(start(1, tmp_path, run=str(run), **settings | {"total_samples": 96, "batch_size": 6}))
    assert lines_with(output, "batch_size", 6, 12) and lines_with(output, "total_samples", 96, 48)


@slow
def test_warned_while_it_waits_for_a_server_that_does_not_answer_it_stops_with_a_checkpoint(tmp_path, shards):
    run = tmp_path / "run"
    with FaultyServer(Path(shards)) as server:
        stream = {"order": "runs", "run_samples": 1, "window_samples": 8, "lead_samples": 4, "num_lanes": 2}
        process = start(1, tmp_path, run=str(run), **LONG | {"shards": server.url, "stream": stream})
        wait_for(process, run, 240)
        server.fault = lambda path, start, stop, number: "503"  # tried again for two minutes
        time.sleep(3)
        process.terminate()
        begun = time.monotonic()
        status, output = finish(process)
        assert status == EXIT_REQUEUE and lines_with(output, "launch/train.py:", "SIGTERM")
        assert time.monotonic() - begun < 60, "long before the reads are given up"
    assert consumed(run) >= read_metrics(run)[-1]["samples"]


HUNG = """
import os, threading
from srcnn.runtime import signals, watchdog
signals.install_signal_handlers()
watchdog.FIRST_WARNING_SECONDS = 1
from srcnn.training import checkpoint, trainer as training
from srcnn.training.config import TrainConfig
fill = checkpoint._fill
def hang(folder, snapshot):
    if snapshot.step >= 20:
        threading.Event().wait()
    fill(folder, snapshot)
checkpoint._fill = hang
from srcnn.training.launcher import launch
launch("hung", None, TrainConfig, training.train)
"""


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=slow)])
def test_a_disk_that_answers_no_more_is_named_and_a_stop_ends_all_the_same(tmp_path, shards, num_ranks):
    """As a hard NFS mount whose server is away: fsync never returns."""
    run, script = tmp_path / "run", tmp_path / "hung.py"
    script.write_text(HUNG)
    process = start(num_ranks, tmp_path, run=str(run), shards=shards, script=script, **LONG | {"timeout_minutes": 0.05})
    wait_until(process, lambda: says(process.stdout.readline(), run, "checkpoint", " s;"))
    process.terminate()
    status, output = finish(process)
    assert status == EXIT_REQUEUE, output
    assert checkpoint.latest(run).name == "step-00000000"


FAILING_THREAD = """
from srcnn.runtime import signals
signals.install_signal_handlers()
from srcnn.training import checkpoint, trainer as training
from srcnn.training.config import TrainConfig
fill = checkpoint._fill
def fail(folder, snapshot):
    if snapshot.step == 20:
        raise MemoryError("of the thread")
    fill(folder, snapshot)
checkpoint._fill = fail
from srcnn.training.launcher import launch
launch("failing", None, TrainConfig, training.train)
"""


@slow
def test_what_fails_in_the_thread_that_writes_checkpoints_reaches_all_ranks(tmp_path, shards):
    run, script = tmp_path / "run", tmp_path / "failing.py"
    script.write_text(FAILING_THREAD)
    status, output = finish(start(2, tmp_path, run=str(run), shards=shards, script=script, **LONG))
    assert status == 1 and output.count("failing: MemoryError: of the thread") == 2, output
    assert consumed(run) > 240, "a checkpoint of the very step"
