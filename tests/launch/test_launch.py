"""Real processes under `accelerate launch`: one rank and several give the same samples and the same validation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from jobs import start, succeed
from messages import lines_with
from PIL import Image
from small import draw_photo, small_shards, write_photos
from wandb_files import records

from srcnn.photos.metrics import psnr
from srcnn.tracking.history import read_metrics

ROOT = Path(__file__).parents[2]
SETTINGS = {"model": {"filters": [8, 4], "residual": True}, "optimizer": {"lr": 2e-3}, "total_samples": 96,
            "log_every_samples": 48, "validate_every_samples": 48, "trackers": [], "mixed_precision": "no"}


def launch(num_processes, *arguments, environment=None, script="train.py"):
    """Runs a script of launch/ under Accelerate on the CPU; returns the finished process."""
    number = "--num_processes=1" if num_processes == 1 else f"--num_processes={num_processes}"
    config = ROOT / "configs/accelerate" / ("cpu.yaml" if num_processes == 1 else "cpu2.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), number]
    command += ["--main_process_port=0"] if num_processes > 1 else []
    command += [str(ROOT / "launch" / script), *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, env=variables)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


RANKS = [(2, 0), pytest.param(3, 0, marks=pytest.mark.slow), pytest.param(2, 6, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num_ranks,at_once", RANKS)  # 6: the whole part, where DDP's graph is static
def test_several_ranks_train_as_one(tmp_path, shards, num_ranks, at_once):
    settings = SETTINGS | {"shards": str(shards), "batch_size": 12}
    output = succeed(start(num_ranks, tmp_path, **settings, micro_batch_size=at_once, run=str(tmp_path / "ranks")))
    assert "Warning" not in output
    succeed(start(1, tmp_path, **settings, run=str(tmp_path / "one")))
    points, expected = read_metrics(tmp_path / "ranks"), read_metrics(tmp_path / "one")
    assert [point["samples"] for point in points] == [48, 96]
    for key, tolerance in (("val/psnr", 1e-4), ("val/psnr_in", 1e-9), ("val/ssim", 1e-5), ("train/loss", 1e-7)):
        assert [point[key] for point in points] == pytest.approx([point[key] for point in expected], abs=tolerance)


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_ranks(tmp_path, shards):
    settings = SETTINGS | {"shards": str(shards), "run": str(tmp_path / "run"), "batch_size": 12}
    for num_ranks, total in ((2, 48), (3, 96), (1, 144)):
        succeed(start(num_ranks, tmp_path, **settings | {"total_samples": total}))
    succeed(start(1, tmp_path, **settings | {"total_samples": 144, "run": str(tmp_path / "whole")}))
    parts, undisturbed = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "whole")
    assert [point["samples"] for point in parts] == [48, 96, 144]
    expected = [point["val/psnr"] for point in undisturbed]
    assert [point["val/psnr"] for point in parts] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_benchmark_tells_where_a_step_goes_and_leaves_no_run(tmp_path, shards, config, num_processes):
    out, trace = tmp_path / "speed.json", tmp_path / "trace.json"
    done = launch(num_processes, "--config", config, "--shards", shards, "--run", tmp_path / "run", "--json", out,
                  "--num_steps", 2, "--num_rounds", 1, "--trace", trace, script="benchmark.py")
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    phases = {"waiting for data", "bytes to floats", "forward", "backward", "optimizer", "meter", "the rest"}
    phases |= {"all-reduce"} if num_processes == 2 else set()
    assert set(told["seconds_per_step"]) == phases and min(told["seconds_per_step"].values()) > 0
    assert told["ranks"] == num_processes and told["batch_size"] == 32 * num_processes
    assert 0 < told["share_of_peak"] < 1 and told["tiles_per_second"] > 0 and told["gradient_bytes"] == 4 * 793
    assert lines_with(done.stdout, told["batch_size"]) and "| forward |" in done.stdout
    assert json.loads(trace.read_text())["traceEvents"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wrong_keys_and_missing_shards_end_with_a_line_that_says_so(tmp_path, config):
    wrong = launch(1, "--config", config, "--batch_size_per_proces", 3)
    assert wrong.returncode != 0 and "batch_size_per_process" in wrong.stderr
    missing = launch(1, "--config", config, "--shards", tmp_path / "none", "--run", tmp_path / "run")
    assert missing.returncode != 0 and "srcnn shards" in missing.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    from shards.plan import ShardsConfig
    from srcnn.runtime.settings import parse
    from srcnn.training.config import TrainConfig

    assert path.read_text().startswith("# ")
    if path.stem == "sweep":
        return  # test_sweep
    if path.stem.startswith("shards"):
        assert parse(ShardsConfig, "test", "", ["--config", str(path), "--photos", "x"]).tile_pixels % 8 == 0
    else:
        assert parse(TrainConfig, "test", "", ["--config", str(path)]).total_samples > 0


def test_every_accelerate_config_is_one():
    expected = {"cpu": 1, "cpu2": 2, "gpu": 1, "gpu8": 8, "nodes2": 16, "cpunodes2": 2}
    found = {path.stem: load_config_from_file(str(path)) for path in (ROOT / "configs/accelerate").glob("*.yaml")}
    assert {name: settings.num_processes for name, settings in found.items()} == expected
    assert found["nodes2"].num_machines == found["cpunodes2"].num_machines == 2


@pytest.mark.slow
def test_wandb_offline_keeps_one_run_with_every_point_over_a_restart(tmp_path, shards, config):
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)}
    arguments = ("--config", config, "--shards", shards, "--run", tmp_path / "run", "--batch_size_per_process", 6,
                 "--trackers", '["wandb", "tensorboard"]', "--upload_best", "true")
    for total in (48, 96):
        done = launch(2, *arguments, "--total_samples", total, environment=environment)
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    found, points = records(*files), read_metrics(tmp_path / "run")
    sent = [{key: row["item"][key] for key in point} for row, point in zip(found["history"], points, strict=True)]
    assert sent == points
    assert len({run["run_id"] for run in found["run"]}) == 1
    assert {artifact["name"] for artifact in found["artifact"]} >= {"run-best"}
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, shards, config):
    done = launch(1, "--config", config, "--shards", shards, "--run", tmp_path / "run", "--trackers", '["wandb"]',
                  "--batch_size_per_process", 12,
                  environment={"WANDB_API_KEY": "no-such-key", "WANDB_MODE": "online",
                               "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "5"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"srcnn sync {tmp_path / 'run'}") == 1
    assert [point["samples"] for point in read_metrics(tmp_path / "run")] == [48, 96]


def test_from_photos_to_a_restored_photo(tmp_path):
    """The whole way, each step as its command."""
    photos = write_photos(tmp_path / "photos", 6)
    make = [sys.executable, "-m", "shards", "--photos", photos, "--out", tmp_path / "shards", "--resize", "none",
            "--tile_pixels", "32", "--val_fraction", "0.4"]
    made = subprocess.run(list(map(str, make)), cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(SETTINGS | {"total_samples": 480, "log_every_samples": 240}))
    done = launch(2, "--config", config, "--shards", tmp_path / "shards", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (damaged := tmp_path / "damaged").mkdir()
    clean = draw_photo(1000, 103, 161)
    Image.fromarray(clean).save(damaged / "old.jpg", quality=20)
    command = [sys.executable, "-m", "srcnn", "restore", damaged, "-o", tmp_path / "out", "--model", tmp_path / "run",
               "--format", "png"]
    restored = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert restored.returncode == 0, restored.stderr
    before, after = (np.asarray(Image.open(path)) for path in (damaged / "old.jpg", tmp_path / "out" / "old.png"))
    assert psnr(clean, after) > psnr(clean, before)
    assert (tmp_path / "run" / "report" / "index.html").is_file() and (tmp_path / "run" / "checkpoint.pth").is_file()


@pytest.mark.slow
def test_torchrun_takes_run_for_its_own_option_and_run_dir_works(tmp_path, shards, config):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
               str(ROOT / "launch/train.py"), "--config", config, "--shards", shards, "--run_dir", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, text=True, capture_output=True, timeout=300,
                          env=environment)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run")[-1]["samples"] == 96


def test_make_train_shows_one_line_for_a_users_mistake(tmp_path):
    """Without the traceback of a launcher around it."""
    environment = Path(sys.executable).parents[1]
    command = ["make", "-s", "-o", f"{environment}/.ready", "train", f"VENV={environment}",
               f"OUT={tmp_path / 'none'}", f"RUN={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode != 0 and "srcnn shards" in done.stderr and "Traceback" not in done.stderr
