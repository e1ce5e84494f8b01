"""The commands for shards and for the runs of training: verify-shards, doctor, report, sync, dashboard.

What is slow to import, PyTorch for one, is imported where a command is carried out: `--help` does without.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add_training_commands(commands: Any) -> None:
    verify = commands.add_parser("verify-shards", help="check every byte of shards against their manifest")
    verify.add_argument("location", help="folder or URL of a split, or of what has train and val below it")
    verify.set_defaults(action=verify_command)

    # To argparse the settings of a training, which jsonargparse reads, are words like any other.
    check = commands.add_parser("doctor", add_help=False, prefix_chars="\0",
                                help="check all that a training needs before it is started; --help lists the settings")
    check.add_argument("settings", nargs="*")
    check.set_defaults(action=doctor_command)

    report = commands.add_parser("report", help="write the report of a training run again")
    report.add_argument("run", type=Path, help="folder of the run")
    report.set_defaults(action=report_command)

    send = commands.add_parser(
        "sync", help="send what wandb or MLflow lacks of a training run's numbers",
        description="Sends the points of metrics.jsonl that the wandb server lacks, with the run's settings, as the one"
        " run they belong to; for a run that is not training now. WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY and the"
        " like hold. Where there was no account, `wandb sync RUN/wandb/offline-run-*` sends pictures too; do one of"
        " the two.")
    send.add_argument("run", type=Path, help="folder of the run")
    send.add_argument("--tracker", choices=("wandb", "mlflow"), default="wandb")
    send.add_argument("--project", default="", help="wandb project, MLflow experiment (default: WANDB_PROJECT, or "
                      "MLFLOW_EXPERIMENT_NAME, or srcnn)")
    send.set_defaults(action=sync_command)

    board = commands.add_parser(
        "dashboard", help="make a workspace in wandb with the panels of a training that matter",
        description="Adds a view to a wandb project: quality, learning, speed and the load of the machines, over the "
        "tiles seen. Needs an account, and pip install 'srcnn[dashboard]'.")
    board.add_argument("--entity", default="", help="default: WANDB_ENTITY, or the account's own")
    board.add_argument("--project", default="", help="default: WANDB_PROJECT, or srcnn")
    board.add_argument("--name", default="SRCNN training", help="of the view")
    board.set_defaults(action=dashboard_command)


def verify_command(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from srcnn.data.verify import verify_shards
    from srcnn.runtime.settings import without_credentials

    num_files = num_problems = 0
    for checked in tqdm(verify_shards(options.location), "files checked", disable=None, unit=""):
        num_files += 1
        if checked.problem:
            num_problems += 1
            tqdm.write(f"{checked.name}: {checked.problem}", file=sys.stderr)
    print(f"{without_credentials(options.location)}: {num_files} files checked, {num_problems} with problems")
    return int(num_problems > 0)


def doctor_command(options: argparse.Namespace) -> int:
    from srcnn.commands.doctor import main as doctor

    return doctor(options.settings)


def report_command(options: argparse.Namespace) -> int:
    from srcnn.data.dataset import ShardDataset
    from srcnn.runtime.settings import read_yaml
    from srcnn.runtime.storage import join
    from srcnn.training.report import write_report

    settings = options.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: no training run here")
    config = read_yaml(settings)
    if not {"shards", "overfit_tiles"} <= config.keys():
        raise ValueError(f"{settings}: not the settings of a training run")
    split = "train" if config["overfit_tiles"] else "val"
    print(write_report(options.run, ShardDataset(join(config["shards"], split), config["overfit_tiles"])))
    return 0


def sync_command(options: argparse.Namespace) -> int:
    """Raises what `sync_run` raises."""
    num_sent, address = sync_run(options.run, options.project, options.tracker)
    print(f"{options.run}: {num_sent} points sent, {options.tracker} has all: {address}")
    return 0


def sync_run(run: Path, project: str, name: str) -> tuple[int, str]:
    """Sends the points of metrics.jsonl that the server of tracker `name` lacks as the run they belong to there.

    `project` is wandb's project, or MLflow's experiment; "": as the environment says.

    Returns how many were sent, and the address of the run there.

    Raises:
        FileNotFoundError: no training run, or no checkpoint, which has the id of the run there.
        ValueError: no account, or no server named.
        OSError: the server did not take them; what arrived is not sent again next time.
    """
    from srcnn.runtime.settings import read_yaml
    from srcnn.tracking.cluster_job import read_starts
    from srcnn.tracking.history import read_metrics
    from srcnn.tracking.mlflow_tracker import Mlflow
    from srcnn.tracking.wandb_tracker import Wandb, end_wandb
    from srcnn.training.checkpoint import latest, load_training, tracker_id_of

    points, folder, settings = read_metrics(run), latest(run), run / "config.yaml"
    if folder is None:
        raise FileNotFoundError(f"{run}: no checkpoint, and so no id of a {name} run, here")
    about = (run, read_yaml(settings) if settings.is_file() else {}, tracker_id_of(load_training(folder)), points,
             read_starts(run))
    if project:
        os.environ["WANDB_PROJECT" if name == "wandb" else "MLFLOW_EXPERIMENT_NAME"] = project
    try:
        tracker = Mlflow(*about) if name == "mlflow" else Wandb(*about, online=True)
        tracker.finish(0)
    except ValueError:
        raise
    except Exception as error:  # both have many, of no common class
        raise OSError(f"{run}: not all could be sent, try again later: {' '.join(str(error).split())}") from error
    finally:
        end_wandb()
    return tracker.num_sent, tracker.url


def dashboard_command(options: argparse.Namespace) -> int:
    from srcnn.tracking.dashboard import save

    print(save(options.entity, options.project or os.environ.get("WANDB_PROJECT", "srcnn"), options.name))
    return 0
