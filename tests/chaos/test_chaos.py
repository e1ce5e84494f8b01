"""`make chaos` in small: random faults against real trainings, which all come out as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_FAULTS = 2


@pytest.mark.slow
def test_trainings_survive_some_random_faults_bit_for_bit(tmp_path):
    path = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "chaos", "--faults", str(NUM_FAULTS), "--seed", "7", "--json"]
    folders = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([*command, str(path)], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert result["faults_tried"] == result["faults_survived"] == NUM_FAULTS
    assert result["weights_equal"] and result["trainings_finished"] > 0
