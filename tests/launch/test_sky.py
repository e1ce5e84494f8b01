"""launch/sky: what SkyPilot runs on a node, with a stand-in for Python. SkyPilot itself reads the files in no test."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from srcnn.runtime.settings import parse
from srcnn.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
TASK = yaml.safe_load((ROOT / "launch/sky/train.yaml").read_text())
# Notes its arguments and where the ranks meet; the doctor ends with DOCTOR.
PYTHON = """#!/bin/sh
echo "$@" >>calls
echo $NUM_PODS $RANKS_PER_POD $JOB_COMPLETION_INDEX $FIRST_POD $MASTER_PORT >>places
case "$*" in *doctor*) exit $DOCTOR ;; *) exit 75 ;; esac
"""


@pytest.mark.parametrize(("doctor", "programs"), [(0, ["-m", "launch/pod.py"]), (1, ["-m"])])
def test_a_node_runs_the_doctor_then_its_ranks_and_ends_with_their_status(tmp_path, doctor, programs):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    node = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    environment = {**os.environ, **TASK["envs"], **node, "ARGS": "--batch_size 4096", "DOCTOR": str(doctor)}
    done = subprocess.run(["bash", "-c", TASK["run"]], cwd=tmp_path, env=environment, timeout=20)
    assert done.returncode == (doctor or 75)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == programs
    assert set((tmp_path / "places").read_text().splitlines()) == {"2 8 1 10.0.0.7 29500"}
    if not doctor:
        config = parse(TrainConfig, "test", "", ["--config", str(ROOT / calls[1][2]), *calls[1][3:]])
        assert (config.shards, config.run, config.batch_size) == (TASK["envs"]["SHARDS"], "/runs/mine", 4096)
        assert (ROOT / calls[1][0]).is_file()


def test_the_run_folder_is_on_the_volume_and_a_stop_is_recovered():
    volume = yaml.safe_load((ROOT / "launch/sky/volume.yaml").read_text())
    assert TASK["volumes"] == {"/runs": volume["name"]} and TASK["envs"]["RUN"].startswith("/runs/")
    assert TASK["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert volume["config"]["access_mode"] == "ReadWriteMany"
