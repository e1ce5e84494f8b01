"""wandb with real processes and a stand-in for its server: every point once and in order, whatever happens."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from messages import lines_with
from wandb_files import rows, wandb_files
from wandb_server import closed_port, wandb_server

from srcnn.tracking import wandb_tracker
from srcnn.tracking.history import read_metrics
from srcnn.tracking.tracker import DatasetRecord
from srcnn.tracking.wandb_tracker import LAST_STEP, first_missing_step

slow = pytest.mark.slow
BIN = Path(sys.executable).parent
# A training: logs `first` to `last` by tens after a checkpoint at `logged`, and ends as `how` says.
TRAINING = """
import logging, os, sys, time
from pathlib import Path
import numpy as np
import psutil
logging.basicConfig(level=logging.INFO, format="%(message)s")
from srcnn.tracking import run_log
from srcnn.tracking.run_log import Tracking
run_log.FINISH_SECONDS = float(os.environ.get("FINISH", run_log.FINISH_SECONDS))
run, logged, first, last, how = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
dataset = None
if how in ("dataset", "model"):
    from srcnn.tracking.tracker import DatasetRecord
    splits = {split: {"sha256": letter * 64, "tiles": 7} for split, letter in (("train", "a"), ("val", "b"))}
    dataset = DatasetRecord("https://ann:hunter2@host/my shards?sig=hunter2", splits)
record = Tracking(run, ["wandb"], {"shards": "https://ann:hunter2@host/x", "lr": 0.5}, 1000, 0, logged, "theid",
                  dataset=dataset)
for samples in range(first, last + 1, 10):
    picture = {"tiles": np.full((8, 8, 3), samples % 256, np.uint8)} if samples % 50 == 0 else {}
    record.log(samples, {"train/loss": 1 / samples, "val/psnr": samples / 7}, picture)
if how == "stopped core":
    while record.threads[0].pending.qsize():
        time.sleep(0.1)
    core = next(child for child in psutil.Process().children() if child.name().startswith("wandb-core"))
    core.suspend()
    how = "finish"
if how == "preempted":
    while record.threads[0].pending.qsize():  # what is left then has ten seconds
        time.sleep(0.1)
    record.preempted()
if how == "raise":
    try:
        raise FloatingPointError("the loss")
    finally:
        record.finish()
if how == "model":
    (run / "best").mkdir()
    (run / "best" / "model.safetensors").write_bytes(b"the weights")
    record.log_artifact("run-best", run / "best", ("best", "step-00000040"))
if how == "wait":
    time.sleep(600)
if how == "leave":
    while record.threads[0].pending.qsize():
        time.sleep(0.1)
    sys.exit(3)  # no finish
record.finish()
print("finished", flush=True)
"""
OFFLINE = {"WANDB_API_KEY": ""}


@pytest.fixture
def server():
    with wandb_server() as running:
        yield running


def start(run, logged, first, last, how, environment):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(run.parent), **environment}
    command = [sys.executable, "-c", TRAINING, *map(str, (run, logged, first, last, how))]
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)


def train(run, logged, first, last, how, environment, status=0):
    """Runs it to its end; returns what it said."""
    training = start(run, logged, first, last, how, environment)
    out, errors = training.communicate(timeout=150)
    assert training.returncode == status, errors
    assert ("finished" in out) == (how not in ("raise", "leave")), errors
    return errors


def kill_all(training):
    """kill -9 of the training and of wandb-core, which has a session of its own."""
    processes = [psutil.Process(training.pid), *psutil.Process(training.pid).children()]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    training.communicate()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def steps_in_files(run):
    return [row["samples"] for row in rows(*wandb_files(run))]


def progresses(run):
    return [point["samples"] for point in read_metrics(run)]


TENS = list(range(10, 160, 10))


@slow
def test_online_every_point_is_there_once_after_kills_at_any_time(tmp_path, server):
    run = tmp_path / "run"
    train(run, -1, 10, 50, "finish", server.environment)
    assert server.steps("theid") == TENS[:5]
    training = start(run, 30, 40, 100, "wait", server.environment)
    wait_for(lambda: server.steps("theid")[-1:] == [100])
    kill_all(training)
    training = start(run, 90, 100, 120, "wait", server.environment)  # killed before wandb-core sends these
    wait_for(lambda: len(wandb_files(run)) == 3)
    kill_all(training)
    train(run, 120, 130, 150, "finish", server.environment)
    assert server.steps("theid") == progresses(run) == TENS
    rows = server.runs["theid"].history
    assert [(row["samples"], row["train/loss"], row["val/psnr"]) for row in rows] == [
        (samples, 1 / samples, samples / 7) for samples in TENS]
    assert server.runs["theid"].config["shards"] == "https://***@host/x"
    assert server.seen and not any("hunter2" in text for text in server.seen)
    assert server.runs["theid"].notices[-1]["exitcode"] == 0


@slow
def test_offline_every_point_is_there_once_after_kills_and_wandb_sync_sends_all(tmp_path, server):
    run = tmp_path / "run"
    training = start(run, -1, 10, 9000, "wait", OFFLINE)
    wait_for(lambda: wandb_files(run) and wandb_files(run)[0].stat().st_size > 100_000)
    wait_for(lambda: progresses(run)[-1] == 9000)
    kill_all(training)
    assert steps_in_files(run)  # others, in most runs, were lost with wandb-core
    training = start(run, 9000, 9010, 9020, "wait", OFFLINE)
    wait_for(lambda: len(list(run.glob("wandb/*-theid/*.wandb"))) == 2)
    kill_all(training)
    train(run, 9010, 9020, 9100, "finish", OFFLINE)
    tens = list(range(10, 9101, 10))
    assert steps_in_files(run) == progresses(run) == tens
    folders = [str(path.parent) for path in wandb_files(run)]
    sent = subprocess.run([str(BIN / "wandb"), "sync", *folders], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "HOME": str(tmp_path), **server.environment})
    assert sent.returncode == 0 and "ERROR" not in sent.stderr, sent.stderr
    assert server.steps("theid") == tens


@slow
def test_the_folder_of_a_killed_offline_process_is_set_aside_and_its_points_are_logged_again(tmp_path):
    run = tmp_path / "run"
    train(run, -1, 10, 50, "finish", OFFLINE)
    folder = run / "wandb" / "offline-run-20990101_000000-theid"
    folder.mkdir(parents=True)
    (folder / "run-theid.wandb").write_bytes(b":W&B123")
    train(run, 50, 60, 70, "finish", OFFLINE)
    assert [path.name for path in run.glob("wandb/incomplete-*")] == [f"incomplete-{folder.name}"]
    assert steps_in_files(run) == progresses(run) == TENS[:7]


@slow
@pytest.mark.parametrize("fault", ["refused", "silence", 401, 500])
@pytest.mark.parametrize("how", ["finish", "raise"])
def test_a_server_that_fails_is_named_once_and_holds_nothing_up(tmp_path, server, fault, how):
    environment = {**server.environment, "WANDB_INIT_TIMEOUT": "5"}
    if fault == "refused":
        environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{closed_port()}"
    else:
        server.broken = fault
    said = train(tmp_path / "run", -1, 10, 50, how, environment, status=int(how == "raise"))
    assert said.count(f"srcnn sync {tmp_path / 'run'}") == 1
    assert said.count("Traceback") == int(how == "raise")
    assert progresses(tmp_path / "run") == TENS[:5]


@slow
def test_a_key_that_is_none_and_no_key_at_all_are_named(tmp_path, server):
    for key in ("no-such-key", ""):
        said = train(tmp_path / "run", -1, 10, 20, "finish", {**server.environment, "WANDB_API_KEY": key})
        assert said.count(f"srcnn sync {tmp_path / 'run'}") == 1


@slow
def test_rows_that_the_server_refuses_later_are_missed_at_the_end_and_sent_the_next_time(tmp_path, server):
    run = tmp_path / "run"
    server.broken_stream = 404  # wandb-core gives up at once, and says nothing that is shown
    said = train(run, -1, 10, 50, "finish", server.environment)
    assert lines_with(said, f"srcnn sync {run}", 0, 50)
    server.broken_stream = 0
    train(run, 50, 60, 70, "finish", server.environment)
    assert server.steps("theid") == TENS[:7]


@slow
def test_a_wandb_core_that_hangs_does_not_hang_the_end(tmp_path, server):
    said = train(tmp_path / "run", -1, 10, 50, "stopped core", {**server.environment, "FINISH": "5"})
    assert said.count("srcnn sync") == len(lines_with(said, f"srcnn sync {tmp_path / 'run'}", 5)) == 1
    assert "Traceback" not in said


@slow
def test_a_start_that_takes_longer_than_the_end_waits_does_not_hang_the_end(tmp_path, server):
    server.broken = "silence"
    environment = {**server.environment, "FINISH": "5", "WANDB_INIT_TIMEOUT": "100000"}
    said = train(tmp_path / "run", -1, 10, 50, "finish", environment)
    assert said.count("srcnn sync") == len(lines_with(said, f"srcnn sync {tmp_path / 'run'}", 5)) == 1
    assert "Traceback" not in said


def test_a_training_that_ends_without_finish_has_sent_its_points(tmp_path, server):
    train(tmp_path / "run", -1, 10, 50, "leave", server.environment, status=3)
    assert server.steps("theid") == TENS[:5]
    assert server.runs["theid"].notices[-1]["exitcode"] == 1


@slow
def test_a_preempted_run_is_marked_and_goes_on(tmp_path, server):
    train(tmp_path / "run", -1, 10, 50, "preempted", server.environment)
    notices = server.runs["theid"].notices
    assert any(notice.get("preempting") for notice in notices) and notices[-1]["exitcode"] == 1
    train(tmp_path / "run", 50, 60, 70, "finish", server.environment)
    assert server.steps("theid") == TENS[:7]


@slow
def test_a_wandb_folder_that_cannot_be_is_named(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb").write_text("in the way")
    said = train(run, -1, 10, 50, "finish", OFFLINE)
    assert said.count(f"srcnn sync {run}") == 1 and progresses(run) == TENS[:5]


@slow
def test_a_disk_that_fills_up_loses_nothing_for_the_next_time(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "none", str(run)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        said = train(run, -1, 10, 9000, "finish", OFFLINE)
        assert said.count(f"srcnn sync {run}") == 1
        assert len([line for line in lines_with(said, run / "metrics.jsonl") if "srcnn sync" not in line]) <= 1
        subprocess.run(["mount", "-o", "remount,size=40m", str(run)], check=True)
        kept = len((run / "metrics.jsonl").read_bytes().splitlines()[:-1])  # the last may be torn
        train(run, 10 * kept, 10 * kept + 10, 9100, "finish", OFFLINE)
        assert steps_in_files(run) == progresses(run) == list(range(10, 9101, 10))
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)


@slow
def test_values_and_pictures_are_those_logged(tmp_path):
    train(tmp_path / "run", -1, 10, 3000, "finish", OFFLINE)
    logged = rows(*wandb_files(tmp_path / "run"))
    assert [(row["samples"], row["train/loss"]) for row in logged] == [(s, 1 / s) for s in range(10, 3001, 10)]
    assert [row["samples"] for row in logged if "tiles._type" in row] == list(range(50, 3001, 50))


@pytest.mark.parametrize("setting", [{"WANDB_DISABLED": "true"}, {"WANDB_MODE": "disabled"}])
def test_wandb_that_is_disabled_is_named_and_not_called(tmp_path, server, setting):
    errors = train(tmp_path / "run", -1, 10, 30, "finish", server.environment | setting)
    assert "wandb is disabled" in errors and not server.seen and not server.runs
    assert progresses(tmp_path / "run") == [10, 20, 30] and not wandb_files(tmp_path / "run")


@pytest.mark.parametrize("content", [b"1\n" * 99, b"x", b"\xff", b"", None])
def test_the_last_step_of_an_offline_run_that_is_no_number_counts_as_none(tmp_path, content):
    folder = tmp_path / "offline-run-1-theid"
    folder.mkdir()
    (folder / LAST_STEP).write_bytes(content) if content is not None else os.mkfifo(folder / LAST_STEP)
    assert first_missing_step([folder]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"incomplete-{folder.name}"]


@slow
def test_the_shards_are_an_input_by_hash_and_the_best_weights_a_model_with_its_scores(tmp_path, server):
    said = train(tmp_path / "run", -1, 10, 50, "model", server.environment)
    dataset, model = server.artifacts
    assert "did not take" not in said and server.steps("theid") == TENS[:5]
    assert (dataset["artifactTypeName"], dataset["artifactCollectionName"]) == ("dataset", "my-shards")
    assert [(use["artifactID"], use["runName"]) for use in server.used] == [("artifact-1", "theid")]
    assert json.loads(dataset["metadata"])["train"] == {"sha256": "a" * 64, "tiles": 7}
    assert (model["artifactTypeName"], model["artifactCollectionName"]) == ("model", "run-best")
    assert {alias["alias"] for alias in model["aliases"]} == {"latest", "best", "step-00000040"}
    assert json.loads(model["metadata"])["val/psnr"] == 50 / 7
    assert server.runs["theid"].config["data.val.sha256"] == "b" * 64
    uploads = [text for text in server.seen if "urn:sha256:" in text]
    assert uploads and not any("hunter2" in text for text in server.seen)


@slow
def test_an_artifact_that_the_server_refuses_stops_nothing(tmp_path, server):
    server.answer_artifacts = lambda *_: {}
    said = train(tmp_path / "run", -1, 10, 50, "model", server.environment)
    assert said.count("did not take") == 2 and "srcnn sync" not in said
    assert server.steps("theid") == TENS[:5] and server.runs["theid"].notices[-1]["exitcode"] == 0


def test_offline_the_hashes_of_the_shards_are_settings_and_where_the_files_lie_is_said(tmp_path):
    run = tmp_path / "run"
    said = train(run, -1, 10, 20, "dataset", OFFLINE)
    (folder,) = run.glob("wandb/offline-run-*-theid")
    assert lines_with(said, "wandb sync", folder) and steps_in_files(run) == [10, 20]
    assert b"a" * 64 in wandb_files(run)[0].read_bytes()


@pytest.mark.parametrize(("location", "name"), [
    ("data/shards", "shards"), ("https://a:b@h/my shards/?sig=x", "my-shards"), ("..", "shards"), ("/", "shards"),
    ("s3://bucket/é", "shards")])
def test_shards_have_a_name_that_wandb_takes(location, name):
    assert DatasetRecord(location, {}).name == name


def test_an_artifact_that_hangs_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(wandb_tracker, "ARTIFACT_SECONDS", 0.05)
    release = threading.Event()
    wandb_tracker.send_artifact("the shards", release.wait)
    release.set()
    assert lines_with(caplog.text, "the shards", "no answer")
