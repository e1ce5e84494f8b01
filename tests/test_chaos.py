"""`make chaos` in small: random faults against real trainings, which all come out as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUM_FAULTS = 2


@pytest.mark.slow
def test_trainings_survive_some_random_faults_bit_for_bit(tmp_path):
    path = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "benchmarks.chaos", "--faults", str(NUM_FAULTS), "--seed", "7", "--json"]
    done = subprocess.run([*command, str(path)], cwd=ROOT, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert result["faults_tried"] == result["faults_survived"] == NUM_FAULTS
    assert result["weights_equal"] and result["trainings_finished"] > 0
