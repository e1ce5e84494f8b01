"""configs/sweep.yaml through `wandb sweep` and `wandb agent`, against the stand-in of their server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small import small_shards
from wandb_server import wandb_server

from srcnn.runtime.settings import flat, parse
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.history import read_metrics
from srcnn.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TRIALS = {"first": {"optimizer.lr": 0.003, "optimizer.last_layer_lr_factor": 0.1, "batch_size": 8},
          "second": {"optimizer.lr": 0.0007, "optimizer.last_layer_lr_factor": 1.0, "batch_size": 16}}
# Beside what the sweep chooses, to make it short; the server fills in what has one value only.
SHORT = {"total_samples": 64, "validate_every_samples": 32, "log_every_samples": 32, "model.filters": "[8, 4]",
         "optimizer.schedule": "cosine", "model.residual": True, "optimizer.warmup_samples": 0}


def settings():
    return yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())


def test_every_parameter_is_a_key_of_the_training_at_both_ends_of_its_range():
    for end in (0, -1):
        given = []
        for key, choice in settings()["parameters"].items():
            ends = choice.get("values") or [choice["value"]] if "min" not in choice else [choice["min"], choice["max"]]
            given.append(f"--{key}={ends[end]}")
        config = parse(TrainConfig, "trial", "", ["--config", str(ROOT / "configs/train.yaml"), *given])
        assert config.total_samples == 24000 and config.model.residual
        assert (config.optimizer.lr, config.batch_size) == ((0.0003, 8), (0.01, 64))[end]


def wandb(server, folder, *words):
    """A command of wandb in the repository's root, as a person types it there."""
    environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                   "PATH": f"{BIN}:{os.environ['PATH']}", "SHARDS": str(folder / "shards"), "WANDB_DIR": str(folder),
                   **server.environment}
    return subprocess.run([str(BIN / "wandb"), *words], cwd=folder / "there", env=environment, text=True,
                          capture_output=True, timeout=300)


@pytest.mark.slow
def test_wandbs_agent_trains_each_trial_in_a_folder_of_its_own(tmp_path):
    small_shards(tmp_path)
    there = tmp_path / "there"  # its runs go here
    there.mkdir()
    for name in ("launch", "configs"):
        (there / name).symlink_to(ROOT / name)
    with wandb_server() as server:
        made = wandb(server, tmp_path, "sweep", "--entity", "nobody", "configs/sweep.yaml")
        assert made.returncode == 0 and "wandb agent nobody/srcnn/thesweep" in made.stderr, made.stderr
        assert "violation" not in made.stderr and yaml.safe_load(server.sweeps["thesweep"])["method"] == "bayes"
        server.trials = [
            {"type": "run", "run_id": name, "program": "launch/train.py",
             "args": {key: {"value": value} for key, value in (chosen | SHORT).items()}}
            for name, chosen in TRIALS.items()]
        agent = wandb(server, tmp_path, "agent", "--count", "2", "nobody/srcnn/thesweep")
    assert agent.returncode == 0, agent.stderr
    assert set(server.runs) == set(TRIALS)
    for name, chosen in TRIALS.items():
        run = there / "runs/sweep" / name
        kept = flat(read_yaml(run / "config.yaml"))
        assert {key: kept[key] for key in chosen} == chosen, agent.stderr
        served = server.runs[name]
        assert {key: served.config[key] for key in chosen} == chosen
        assert served.facts["sweep"] == "thesweep" and served.notices[-1]["exitcode"] == 0
        assert server.steps(name) == [32, 64] == [point["samples"] for point in read_metrics(run)]
        assert all("val/psnr" in row for row in served.history)
