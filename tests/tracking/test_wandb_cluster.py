"""Real trainings in wandb as a cluster runs them: one run over kills, requeues and nodes, in a group, with alerts."""

import os
import signal
import subprocess

import pytest
from jobs import LONG, ROOT, finish, kill, start, succeed, wait_until
from messages import lines_with, says
from small import small_shards
from wandb_files import WANDB, records, wandb_files
from wandb_server import wandb_server

from srcnn.tracking.history import read_metrics

pytestmark = pytest.mark.slow
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "city", "SLURM_JOB_NODELIST": "n03"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def server():
    with wandb_server() as running:
        yield running


def train(num_ranks, folder, shards, *arguments, environment=None, **settings):
    variables = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "WANDB_API_KEY": "", **(environment or {})}
    return start(num_ranks, folder, "--run", str(folder / "run"), "--shards", str(shards), *arguments,
                 environment=variables, **{"trackers": ["wandb"], **settings})


def progresses(run):
    return [point["samples"] for point in read_metrics(run)] if (run / "metrics.jsonl").is_file() else []


def test_killed_requeued_and_done_it_is_one_run_with_every_point_once(tmp_path, shards, server):
    run = tmp_path / "run"
    first = train(2, tmp_path, shards, environment=SLURM, **LONG)
    wait_until(first, lambda: len(progresses(run)) >= 3)
    kill(first)
    told_to_stop = train(2, tmp_path, shards, environment=SLURM | {"SLURM_RESTART_COUNT": "1"}, **LONG)
    reached = progresses(run)[-1]
    wait_until(told_to_stop, lambda: progresses(run)[-1] >= reached + 240)
    told_to_stop.send_signal(signal.SIGTERM)
    finish(told_to_stop)
    total = progresses(run)[-1] + 480
    moved = SLURM | {"SLURM_RESTART_COUNT": "2", "SLURM_JOB_NODELIST": "n07"}
    succeed(train(2, tmp_path, shards, environment=moved, **LONG | {"total_samples": total}))

    found, points = records(*wandb_files(run)), read_metrics(run)
    rows = [row["item"] for row in found["history"]]
    assert [{key: row[key] for key in point} for row, point in zip(rows, points, strict=True)] == points
    starts = found["run"]
    assert len({told["run_id"] for told in starts}) == 1
    assert {told["run_group"] for told in starts} == {"city-4711"}
    assert {tuple(told["tags"]) for told in starts} == {("slurm", "city")}
    jobs = [text for key, text in sorted(starts[-1]["config"]["update"].items()) if key.startswith("jobs.")]
    assert [text.partition(": ")[2] for text in jobs] == [
        "nodes n03, job slurm 4711", "nodes n03, job slurm 4711, restart 1", "nodes n07, job slurm 4711, restart 2"]
    assert [alert["level"] for alert in found["alert"]] == ["WARN", "INFO"], "preempted, done"

    folders = sorted(str(path.parent) for path in run.glob("wandb/*run-*/*.wandb"))
    sent = subprocess.run([str(WANDB), "sync", *folders], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "HOME": str(tmp_path), **server.environment})
    assert sent.returncode == 0 and "ERROR" not in sent.stderr, sent.stderr
    (run_id, served), = server.runs.items()
    assert server.steps(run_id) == progresses(run)
    assert served.facts["group"] == "city-4711" and served.config["batch_size"] == 12
    assert set(served.config) >= {"jobs.001", "jobs.002", "jobs.003", "optimizer.lr"}


def test_a_loss_that_is_not_finite_is_told_once_and_the_end_of_it_too(tmp_path, shards, server):
    wild = {"optimizer": {"lr": 1e30}, "max_skipped_steps": 5, "total_samples": 9600}
    process = train(2, tmp_path, shards, environment=server.environment, **wild)
    status, output = finish(process)
    assert status and lines_with(output, 6, "optimizer.lr"), output
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 6
    (served,) = server.runs.values()
    assert [severity for severity, _, _ in served.alerts] == ["WARN", "ERROR"]
    assert "skipped.jsonl" in served.alerts[0][2] and says(served.alerts[1][2], 6, "optimizer.lr")


def test_the_end_is_told_with_psnr_and_gain_and_nothing_where_nobody_wants_to_know(tmp_path, shards, server):
    short = {"total_samples": 96, "log_every_samples": 48, "validate_every_samples": 48}
    succeed(train(1, tmp_path, shards, environment=server.environment, **short))
    (served,) = server.runs.values()
    values = read_metrics(tmp_path / "run")[-1]
    ((severity, title, text),) = served.alerts
    assert severity == "INFO" and "run" in title
    assert says(text, f"{values['val/psnr']:.2f} dB", f"{values['val/gain']:+.2f} dB")
    succeed(train(1, tmp_path, shards, "--alerts", "false", environment=server.environment,
                  **short | {"total_samples": 192}))
    assert len(served.alerts) == 1 and len(server.runs) == 1
