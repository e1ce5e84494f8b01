"""The workspace of `srcnn dashboard`: its own specification, the keys of a real run, and a server that takes it."""

import json
import os
import re
import subprocess
import sys

import pytest
from jobs import ROOT
from small import small_config, small_shards
from wandb_files import records, wandb_files
from wandb_server import closed_port, wandb_server

from srcnn.tracking.dashboard import LOADS, PICTURES, workspace
from srcnn.training.trainer import train

pytest.importorskip("wandb_workspaces")


def panels_of(specification):
    bank = specification["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


@pytest.fixture(scope="module")
def specification():
    return json.loads(workspace("nobody", "srcnn", "x")._to_model().spec.model_dump_json(by_alias=True))


def test_it_has_a_section_for_quality_learning_speed_and_machines(specification):
    found = panels_of(specification)
    assert {name: [panel["viewType"] for panel in panels] for name, panels in found.items()} == {
        "Quality": ["Run History Line Plot"] * 4 + ["Media Browser"], "Learning": ["Run History Line Plot"] * 4,
        "Speed": ["Run History Line Plot"] * 3, "Machines": ["Run History Line Plot"] * 6}
    for name in ("Quality", "Learning", "Speed"):
        assert {panel["config"]["xAxis"] for panel in found[name] if "xAxis" in panel["config"]} == {"samples"}
    assert specification["section"]["settings"]["xAxis"] == "samples"


@pytest.mark.slow
def test_what_it_draws_is_what_a_training_logs(specification, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    train(small_config(tmp_path / "run", small_shards(tmp_path), trackers=["wandb"]))
    found = records(*wandb_files(tmp_path / "run"))
    logged = {key for row in found["history"] for key in row["item"]}
    drawn = {key for panels in panels_of(specification).values() for panel in panels
             for key in panel["config"].get("metrics") or ()}
    assert drawn and drawn <= logged
    (browser,) = [panel for panel in panels_of(specification)["Quality"] if panel["viewType"] == "Media Browser"]
    assert browser["config"]["mediaKeys"] == [PICTURES] and f"{PICTURES}._type" in logged
    loads = {f"system.{key}" for stats in found["stats"] for key in stats["item"]}
    for title, pattern in LOADS.items():
        assert "GPU" in title or any(re.fullmatch(pattern, key) for key in loads), (title, loads)


def dashboard(folder, environment, *words):
    variables = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-m", "srcnn", "dashboard", *words], env=variables, text=True,
                          capture_output=True, timeout=120)


@pytest.mark.slow
def test_the_server_takes_it_and_the_address_is_told(tmp_path, specification):
    with wandb_server() as server:
        done = dashboard(tmp_path, server.environment, "--name", "mine")
        assert done.returncode == 0 and done.stdout.startswith(f"{server.environment['WANDB_BASE_URL']}/nobody/srcnn")
        assert set(server.views) == {"mine"}
        sent = panels_of(server.views["mine"])
    expected = panels_of(specification)
    assert {name: [panel["config"] for panel in panels] for name, panels in sent.items()} == {
        name: [{key: value for key, value in panel["config"].items() if value is not None} for panel in panels]
        for name, panels in expected.items()}


@pytest.mark.slow
def test_no_account_and_no_server_are_one_line(tmp_path):
    none = dashboard(tmp_path, {"WANDB_API_KEY": ""})
    assert none.returncode == 1 and "WANDB_API_KEY" in none.stderr and "Traceback" not in none.stderr
    address = f"http://127.0.0.1:{closed_port()}"
    gone = dashboard(tmp_path, {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_HTTP_TIMEOUT": "5"})
    assert gone.returncode == 1 and address in gone.stderr and "Traceback" not in gone.stderr
