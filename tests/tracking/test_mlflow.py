"""MLflow with a server of its own as a process, read back by MLflow's own client."""

import os
import subprocess
import sys
import time

import pytest
from jobs import LONG, ROOT, kill, start, succeed, wait_until
from messages import lines_with, says
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server
from small import bare_checkpoint, small_shards
from wandb_server import closed_port

from srcnn.tracking.history import read_metrics
from srcnn.tracking.run_log import Tracking

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def server(shared_server, monkeypatch):
    """With an experiment of the test's own."""
    for key, value in {**shared_server.environment, "MLFLOW_EXPERIMENT_NAME": f"test {time.monotonic_ns()}"}.items():
        monkeypatch.setenv(key, value)
    return shared_server


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


def runs(server):
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    return client.search_runs([experiment.experiment_id]) if experiment else []


def history(server, run_id, key):
    return [(point.step, point.value) for point in MlflowClient(server.url).get_metric_history(run_id, key)]


def progresses(run):
    return [point["samples"] for point in read_metrics(run)] if (run / "metrics.jsonl").is_file() else []


def tracking(run, logged=-1, lr=0.5, **options):
    config = {"shards": "https://ann:hunter2@host/x", "optimizer": {"lr": lr}}
    return Tracking(run, ["mlflow"], config, 100, 0, logged, "theid", **options)


def log(record, *samples):
    for progress in samples:
        record.log(progress, {"train/loss": 1 / progress, "val/psnr": progress / 7})


def test_a_run_that_goes_on_has_every_point_once_and_keeps_its_settings(tmp_path, server):
    first = tracking(tmp_path / "run")
    log(first, 10, 20, 30)
    while first.threads[0].pending.qsize():
        time.sleep(0.05)
    # no finish, as if it were killed after a checkpoint at 10
    second = tracking(tmp_path / "run", 10, lr=0.25)
    log(second, 20, 30, 40)
    second.finish()
    (run,) = runs(server)
    for key, value in (("train/loss", lambda samples: 1 / samples), ("val/psnr", lambda samples: samples / 7)):
        assert history(server, run.info.run_id, key) == [(samples, value(samples)) for samples in (10, 20, 30, 40)]
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params == {"shards": "https://***@host/x", "optimizer.lr": "0.5"}
    assert run.data.tags["changed.optimizer.lr"] == "0.25" and {"jobs.001", "jobs.002"} <= run.data.tags.keys()
    assert says(run.data.tags["alert.info"], "run", "PSNR", "5.71 dB")


def test_preempted_and_failed_runs_are_told_apart_and_go_on(tmp_path, server):
    stopped = tracking(tmp_path / "run")
    log(stopped, 10)
    stopped.preempted("SIGTERM")
    stopped.finish()
    assert [run.info.status for run in runs(server)] == ["KILLED"]
    failed = tracking(tmp_path / "run", 10)
    with pytest.raises(FloatingPointError):
        try:
            log(failed, 20)
            raise FloatingPointError("the loss")
        finally:
            failed.finish()
    (run,) = runs(server)
    assert run.info.status == "FAILED" and "the loss" in run.data.tags["alert.error"]
    assert [step for step, _ in history(server, run.info.run_id, "train/loss")] == [10, 20]


def test_a_real_training_killed_and_started_again_is_one_run_equal_to_its_numbers(tmp_path, shards, server):
    settings = {**LONG, "trackers": ["mlflow"]}
    where = ("--run", str(tmp_path / "run"), "--shards", str(shards), "--upload_best", "true")
    first = start(2, tmp_path, *where, **settings)
    wait_until(first, lambda: runs(server) and int(runs(server)[0].data.metrics.get("samples", 0)) >= 960)
    kill(first)
    total = progresses(tmp_path / "run")[-1] // 960 * 960 + 1920
    succeed(start(2, tmp_path, *where, **settings | {"total_samples": total}))
    (run,) = runs(server)
    points = read_metrics(tmp_path / "run")
    for key in ("samples", "train/loss", "val/psnr", "gradient_norm"):
        expected = [(point["samples"], point[key]) for point in points if key in point]
        found = history(server, run.info.run_id, key)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-3)
    assert run.data.params["total_samples"] == str(LONG["total_samples"])
    assert run.data.tags["changed.total_samples"] == str(total)
    client = MlflowClient(server.url)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"pictures", "run-best"}
    shown = client.list_artifacts(run.info.run_id, "pictures/degraded, restored, clean")
    assert {file.path.rpartition("/")[2] for file in shown} >= {f"{total:010d}.png"}


# Trains, says how long the calls took, and lives until what waits for the server is given up.
DEAD = """
import sys, time
from pathlib import Path
from srcnn.tracking import run_log
from srcnn.tracking.run_log import Tracking
run_log.FINISH_SECONDS = 5.0
began = time.monotonic()
record = Tracking(Path(sys.argv[1]), ["mlflow"], {}, 100, 0, -1, "theid")
for samples in range(10, 60, 10):
    record.log(samples, {"train/loss": 1 / samples})
print("training", time.monotonic() - began)
record.finish()
print("finish", time.monotonic() - began)
"""


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_dead_server_holds_up_neither_training_nor_its_end(tmp_path, fault):
    with mlflow_server(tmp_path) as server:
        address = server.url if fault == "silent" else f"http://127.0.0.1:{closed_port()}"
        if fault == "silent":
            server.stop_answering()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address}
        done = subprocess.run([sys.executable, "-c", DEAD, str(tmp_path / "run")], text=True, capture_output=True,
                              timeout=100, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines())
    assert float(said["training"]) < 4 < float(said["finish"]) < 15
    assert done.stderr.count(f"srcnn sync {tmp_path / 'run'} --tracker mlflow") == 1
    assert progresses(tmp_path / "run") == [10, 20, 30, 40, 50]


def test_a_server_that_is_away_for_a_while_gets_every_point_once(tmp_path, monkeypatch):
    with mlflow_server(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        record = tracking(tmp_path / "run")
        log(record, 10)
        client = MlflowClient(server.url)
        while record.threads[0].pending.qsize() or not client.get_experiment_by_name("srcnn"):
            time.sleep(0.05)
        server.kill()
        log(record, 20, 30)
        server.start()
        record.finish()
        (run,) = client.search_runs([client.get_experiment_by_name("srcnn").experiment_id])
        assert [step for step, _ in history(server, run.info.run_id, "train/loss")] == [10, 20, 30]


def test_no_server_named_is_said_with_the_cure(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = tracking(tmp_path / "run")
    log(record, 10)
    record.finish()
    assert len(lines_with(caplog.text, "mlflow", "MLFLOW_TRACKING_URI")) == 1
    assert not list(tmp_path.glob("**/*.db")) and progresses(tmp_path / "run") == [10]


def test_sync_sends_what_mlflow_lacks(tmp_path, server):
    run = tmp_path / "run"
    record = Tracking(run, [], {}, 100, 0, -1, "theid")
    log(record, 10, 20)
    record.finish()
    bare_checkpoint(run, "theid")
    for number in (2, 0):
        done = subprocess.run([sys.executable, "-m", "srcnn", "sync", str(run), "--tracker", "mlflow"], text=True,
                              capture_output=True, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        assert says(done.stdout, number, server.url)
    (kept,) = runs(server)
    assert [step for step, _ in history(server, kept.info.run_id, "train/loss")] == [10, 20]
