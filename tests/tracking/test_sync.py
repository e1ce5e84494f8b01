"""`srcnn sync`: what the server lacks of a run's points is sent, as one run."""

import os
import subprocess
import sys

import pytest
import yaml
from messages import says
from small import bare_checkpoint
from wandb_server import closed_port, wandb_server

from srcnn.tracking.run_log import Tracking

pytestmark = pytest.mark.slow
POINTS = list(range(10, 101, 10))


@pytest.fixture
def server():
    with wandb_server() as running:
        yield running


@pytest.fixture
def run(tmp_path):
    """A run that was trained without any tracker."""
    run = tmp_path / "run"
    record = Tracking(run, [], {}, 100, 0, -1, "theid")
    for samples in POINTS:
        record.log(samples, {"train/loss": 1 / samples})
    record.finish()
    (run / "config.yaml").write_text(yaml.safe_dump({"shards": "https://ann:hunter2@host/x", "model": {"size": 3}}))
    bare_checkpoint(run, "theid")
    return run


def sync(run, environment, *arguments):
    variables = {**os.environ, "HOME": str(run.parent), "WANDB_INIT_TIMEOUT": "5", **environment}
    command = [sys.executable, "-m", "srcnn", "sync", str(run), *arguments]
    return subprocess.run(command, env=variables, text=True, capture_output=True, timeout=100)


def test_all_points_are_sent_once_with_the_settings_and_no_credentials(run, server):
    first = sync(run, server.environment)
    assert first.returncode == 0 and says(first.stdout, 10), first.stderr
    assert server.steps("theid") == POINTS
    assert [row["train/loss"] for row in server.runs["theid"].history] == [1 / samples for samples in POINTS]
    config = server.runs["theid"].config
    assert (config["model.size"], config["shards"]) == (3, "https://***@host/x")
    assert not any("hunter2" in text for text in server.seen)
    again = sync(run, server.environment)
    assert again.returncode == 0 and says(again.stdout, 0)
    assert server.steps("theid") == POINTS


def test_only_what_lacks_is_sent(run, server):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:4]))
    assert sync(run, server.environment).returncode == 0
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    assert says(sync(run, server.environment).stdout, 6)
    assert server.steps("theid") == POINTS


def test_the_project_is_the_one_asked_for(run, server):
    assert sync(run, server.environment, "--project", "elsewhere").returncode == 0
    assert any('"project":"elsewhere"' in text.replace(": ", ":") for text in server.seen)


def test_an_offline_environment_is_no_obstacle(run, server):
    assert sync(run, {**server.environment, "WANDB_MODE": "offline"}).returncode == 0
    assert server.steps("theid") == POINTS


@pytest.mark.parametrize("fault", ["refused", "silence", 401, 500, "stream"])
def test_a_server_that_does_not_take_them_is_one_line_and_status_1(run, server, fault):
    environment = dict(server.environment)
    if fault == "refused":
        environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{closed_port()}"
    elif fault == "stream":
        server.broken_stream = 404
    else:
        server.broken = fault
    done = sync(run, environment)
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1 and str(run) in done.stderr and "Traceback" not in done.stderr
    server.broken = server.broken_stream = 0
    assert sync(run, server.environment).returncode == 0
    assert server.steps("theid") == POINTS


def test_without_a_key_or_a_run_or_a_checkpoint_it_refuses(run, tmp_path, server):
    keyless = sync(run, {**server.environment, "WANDB_API_KEY": ""})
    assert keyless.returncode == 1 and "WANDB_API_KEY" in keyless.stderr
    nowhere = sync(tmp_path / "none", server.environment)
    assert nowhere.returncode == 1 and "metrics.jsonl" in nowhere.stderr
    (run / "checkpoints").rename(run / "elsewhere")
    without = sync(run, server.environment)
    assert without.returncode == 1 and "checkpoint" in without.stderr
    assert not server.runs


def test_help_names_the_other_way():
    done = subprocess.run([sys.executable, "-m", "srcnn", "sync", "--help"], text=True, capture_output=True)
    assert done.returncode == 0 and "wandb sync" in done.stdout
