"""Real trainings in wandb as a cluster runs them: one run over kills, requeues and nodes, in a group, with alerts."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from jobs import LONG, ROOT, consumed, finish, kill, launched, start, succeed, wait_until
from messages import lines_with, says
from small import small_shards
from wandb_server import wandb_server

from srcnn.history import read_metrics

pytestmark = pytest.mark.slow
WANDB = Path(sys.executable).parent / "wandb"
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "city", "SLURM_JOB_NODELIST": "n03"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def server():
    with wandb_server() as running:
        yield running


def train(num_ranks, folder, shards, *arguments, environment=None, **settings):
    told = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "WANDB_API_KEY": "", **(environment or {})}
    begin = launched if "launcher" in settings else start
    return begin(num_ranks, folder, "--run", str(folder / "run"), "--shards", str(shards), *arguments,
                 environment=told, **{"trackers": ["wandb"], **settings})


def progresses(run):
    return [point["samples"] for point in read_metrics(run)] if (run / "metrics.jsonl").is_file() else []


def records(run):
    """All records of a run's .wandb files, oldest first, as wandb's own reader prints them."""
    found = []
    for path in sorted(run.glob("wandb/*run-*/*.wandb")):
        told = subprocess.run([str(WANDB), "leet", "inspect", "--json", str(path)], text=True, capture_output=True)
        assert told.returncode == 0, told.stderr
        found += map(json.loads, told.stdout.splitlines())
    return found


def of_kind(kind, found):
    return [record[kind] for record in found if record["type"] == kind]


def alerts(found):
    return [(alert["level"], alert["title"]) for alert in of_kind("alert", found)]


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

    found, points = records(run), read_metrics(run)
    rows = [row["item"] for row in of_kind("history", found)]
    assert [{key: row[key] for key in point} for row, point in zip(rows, points, strict=True)] == points
    starts = of_kind("run", found)
    assert len({told["run_id"] for told in starts}) == 1
    assert {told["run_group"] for told in starts} == {"city-4711"}
    assert {tuple(told["tags"]) for told in starts} == {("slurm", "city")}
    jobs = [text for key, text in sorted(starts[-1]["config"]["update"].items()) if key.startswith("jobs.")]
    assert [text.partition(": ")[2] for text in jobs] == [
        "nodes n03, job slurm 4711", "nodes n03, job slurm 4711, restart 1", "nodes n07, job slurm 4711, restart 2"]
    assert [level for level, _ in alerts(found)] == ["WARN", "INFO"], "told to stop, done"

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


NAMES = pytest.mark.skipif(subprocess.run(["unshare", "--uts", "hostname", "x"], capture_output=True).returncode != 0,
                           reason="host names of one's own are not allowed here")


@pytest.fixture
def kept():
    """Where wandb keeps what a machine sends; its sockets' names must not be longer than 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def nodes(folder, kept, shards, environment, *arguments, **settings):
    """A training of two machines: two host names on this one. Returns both, running."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = []
    for rank in range(2):
        launcher = ["--num_machines=2", f"--machine_rank={rank}", "--main_process_ip=127.0.0.1",
                    f"--main_process_port={port}"]
        told = {"GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(kept), **environment}
        machines.append(train(2, folder, shards, *arguments, environment=told, launcher=launcher,
                              host=f"node{rank + 1}", **settings))
    return machines


QUICK_LOADS = {"WANDB_X_STATS_SAMPLING_INTERVAL": "0.2"}
SHORT = {"total_samples": 480, "log_every_samples": 48, "validate_every_samples": 480}


@NAMES
def test_every_nodes_load_is_shown_in_one_run_and_restarts_lose_and_double_no_point(
    tmp_path, kept, shards, server
):
    environment = server.environment | QUICK_LOADS
    run = tmp_path / "run"

    def labels():
        loads = [load for served in server.runs.values() for load in served.loads]
        return {key.partition("/l:")[2] for load in loads for key in load if key.startswith("system.")}

    first = nodes(tmp_path, kept, shards, environment, "--node_metrics", "true", **LONG | {"log_every_samples": 48})
    wait_until(first[0], lambda: labels() == {"node1", "node2"})
    first[0].terminate()
    for machine in first:
        finish(machine)
    (served,) = server.runs.values()
    total = (consumed(run) // 48 + 10) * 48
    again = nodes(tmp_path, kept, shards, environment, "--node_metrics", "true", **SHORT | {"total_samples": total})
    assert "srcnn sync" not in "".join(map(succeed, again))
    assert [row["samples"] for row in served.history] == progresses(run) == list(range(48, total + 1, 48))
    succeed(train(2, tmp_path, shards, environment=server.environment, **SHORT | {"total_samples": total + 480}))
    assert [row["samples"] for row in served.history] == progresses(run) == list(range(48, total + 481, 48))
    assert len(server.runs) == 1 and served.notices[-1]["exitcode"] == 0
    assert "node1 node2" in served.config["jobs.001"]
    assert not list(kept.glob("wandb-*"))  # what the other node kept meanwhile


@NAMES
def test_without_an_account_no_node_sends_its_load_and_it_is_said_once(tmp_path, kept, shards):
    said = "".join(map(succeed, nodes(tmp_path, kept, shards, {}, "--node_metrics", "true", **SHORT)))
    assert len(lines_with(said, "node_metrics", "wandb")) == 1 and "srcnn sync" not in said
    run = tmp_path / "run"
    rows = [row["item"]["samples"] for row in of_kind("history", records(run))]
    assert rows == progresses(run) == list(range(48, 481, 48))
