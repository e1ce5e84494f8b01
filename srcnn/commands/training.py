"""The commands for shards and training runs: shards, train, doctor, report and the like.

PyTorch and other slow imports are made by the command that runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from srcnn.runtime.config_files import copy_config, shipped_configs
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra


def add_training_commands(commands: Any) -> None:
    # Settings are parsed by jsonargparse. With a prefix that nobody types, argparse passes them on.
    for name, action, text in (
        ("shards", shards_command, "make shards of photos, for training; --help lists the settings"),
        ("train", train_command, "train a network on shards, in one process; --help lists the settings"),
        ("doctor", doctor_command, "check what a training needs before it is started; --help lists the settings"),
    ):
        passed_on = commands.add_parser(name, add_help=False, prefix_chars="\0", help=text)
        passed_on.add_argument("settings", nargs="*")
        passed_on.set_defaults(action=action)

    configs = commands.add_parser("configs", help="list or copy the shipped configs of shards and trainings",
                                  description="Lists the configs that `srcnn train --config NAME` and `srcnn shards"
                                  " --config NAME` find by name, or copies those named.")
    configs.add_argument("names", nargs="*", metavar="NAME", help="a config to copy, such as train.yaml")
    configs.add_argument("-o", "--out", type=Path, default=Path(), metavar="DIR", help="folder to copy to (default: .)")
    configs.set_defaults(action=configs_command)

    verify = commands.add_parser("verify-shards", help="check every byte of shards against their manifest")
    verify.add_argument("location", help="folder or URL of a split, or of the folder of both splits")
    verify.set_defaults(action=verify_command)

    push = commands.add_parser(
        "push-shards", help="upload shards to the Hugging Face hub as a dataset",
        description="Uploads shards, their manifests and the dataset card, README.md, whose `license` must be filled "
        "in. Called again it goes on where it was. Needs `hf auth login` or HF_TOKEN, and pip install 'srcnn[hub]'.")
    push.add_argument("folder", type=Path, help="folder of the splits, train/ and val/")
    push.add_argument("repository", help="owner/name of the dataset; made where it is missing")
    push.add_argument("--private", action="store_true", help="make the dataset private, if it is made")
    push.add_argument("--revision", help="branch to upload to (default: main)")
    push.set_defaults(action=push_command)

    report = commands.add_parser("report", help="write the report of a training run again")
    report.add_argument("run", type=Path, help="folder of the run")
    report.add_argument("--shards", help="folder or URL with val/, for the pictures (default: the folder that "
                        "config.yaml of the run names; a URL in it is not followed)")
    report.set_defaults(action=report_command)

    send = commands.add_parser(
        "sync", help="send the metrics of a training run that wandb or MLflow lacks",
        description="Sends the points of metrics.jsonl that the server lacks, and the settings, to the tracker's run of"
        " the same id. The training must not be running. WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY and other"
        " variables of the tracker apply. An offline run can be sent by `wandb sync RUN/wandb/offline-run-*`"
        " instead, with its pictures; use only one of the two.")
    send.add_argument("run", type=Path, help="folder of the run")
    send.add_argument("--tracker", choices=("wandb", "mlflow"), default="wandb")
    send.add_argument("--project", default="", help="wandb project or MLflow experiment (default: WANDB_PROJECT or "
                      "MLFLOW_EXPERIMENT_NAME, else srcnn)")
    send.set_defaults(action=sync_command)

    board = commands.add_parser(
        "dashboard", help="create a wandb workspace with the panels for a training",
        description="Adds a view to a wandb project: quality, learning, speed and machine load over the number of "
        "tiles. Needs an account, and pip install 'srcnn[dashboard]'.")
    board.add_argument("--entity", default="", help="default: WANDB_ENTITY, else the account's default")
    board.add_argument("--project", default="", help="default: WANDB_PROJECT, else srcnn")
    board.add_argument("--name", default="SRCNN training", help="name of the view (default: %(default)s)")
    board.set_defaults(action=dashboard_command)


@extra("train")
def verify_command(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from srcnn.data.verify import verify_shards
    from srcnn.runtime.credentials import without_credentials

    num_files = num_problems = 0
    for checked in tqdm(verify_shards(options.location), "files checked", disable=None, unit=""):
        num_files += 1
        if checked.problem:
            num_problems += 1
            tqdm.write(f"{checked.name}: {checked.problem}", file=sys.stderr)
    print(f"{without_credentials(options.location)}: {num_files} files checked, {num_problems} with problems")
    return int(num_problems > 0)


@extra("hub")
def push_command(options: argparse.Namespace) -> int:
    from srcnn.data.upload import push_shards

    print(push_shards(options.folder, options.repository, private=options.private, revision=options.revision))
    return 0


@extra("train")
def shards_command(options: argparse.Namespace) -> int:
    # By its name, as srcnn does not depend on the package that is installed beside it.
    return int(importlib.import_module("shards.__main__").main(options.settings, "srcnn shards"))


def train_command(options: argparse.Namespace) -> int:
    from srcnn.training.__main__ import main as train

    train("srcnn train", arguments=options.settings)
    return 0


def configs_command(options: argparse.Namespace) -> int:
    """Lists the configs, or copies those named."""
    if not options.names:
        texts = shipped_configs()
        width = max(map(len, texts))
        print("\n".join(f"{name:{width}}  {text}" for name, text in texts.items()))
    for name in options.names:
        print(copy_config(name, options.out))
    return 0


@extra("train")
def doctor_command(options: argparse.Namespace) -> int:
    from srcnn.commands.doctor import main as doctor

    return doctor(options.settings)


@extra("train")
def report_command(options: argparse.Namespace) -> int:
    from srcnn.data.dataset import ShardDataset
    from srcnn.runtime.run_folder import check_run_folder
    from srcnn.runtime.storage import is_url, join
    from srcnn.runtime.strict_yaml import read_yaml
    from srcnn.training.report import write_report

    check_run_folder(options.run)
    settings = options.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: no such file; expected the folder of a training run")
    config = read_yaml(settings)
    shards, num_tiles = config.get("shards"), config.get("overfit_tiles")
    if not isinstance(shards, str) or type(num_tiles) is not int or num_tiles < 0:
        raise UserError(f"{settings}: not the settings of a training run")
    if options.shards is None and is_url(shards):
        raise UserError(f"{settings} names shards at {shards}: no address is followed because a file names it; if it "
                        f"is right, give it: --shards {shards}")
    try:
        shards = options.shards or shards
        dataset = ShardDataset(join(shards, "train" if num_tiles else "val"), num_tiles)
    except (OSError, ValueError) as error:
        raise UserError(f"{error} (shards {shards}; --shards names others)") from error
    print(write_report(options.run, dataset))
    return 0


@extra("train")
def sync_command(options: argparse.Namespace) -> int:
    """Sends the points of metrics.jsonl that the tracker's run lacks.

    Raises:
        FileNotFoundError: there is no training run, or it has no checkpoint, which holds the id of the tracker's run.
        ValueError: no account, or no server is set.
        OSError: the server did not accept all points. Those that arrived are not sent again.
    """
    from srcnn.runtime.run_folder import check_run_folder
    from srcnn.runtime.strict_yaml import read_yaml
    from srcnn.tracking.cluster_job import read_starts
    from srcnn.tracking.history import read_metrics
    from srcnn.tracking.mlflow_tracker import Mlflow
    from srcnn.tracking.wandb_tracker import Wandb, end_wandb
    from srcnn.training.checkpoint import latest, load_training, tracker_id_of

    run, name = options.run, options.tracker
    check_run_folder(run)
    points, folder, settings = read_metrics(run), latest(run), run / "config.yaml"
    if folder is None:
        raise FileNotFoundError(f"{run}: no checkpoint, which would hold the id of the {name} run")
    config = read_yaml(settings) if settings.is_file() else {}
    tracker_id = tracker_id_of(load_training(folder))
    if options.project:
        os.environ["WANDB_PROJECT" if name == "wandb" else "MLFLOW_EXPERIMENT_NAME"] = options.project
    try:
        tracker: Wandb | Mlflow
        if name == "wandb":
            tracker = Wandb(run, config, tracker_id, points, read_starts(run), online=True)
        else:
            tracker = Mlflow(run, config, tracker_id, points, read_starts(run))
        tracker.finish(0)
    except ValueError:
        raise
    except Exception as error:  # the errors of wandb and MLflow have no common base class
        raise OSError(f"{run}: not all points were sent, try again later: {' '.join(str(error).split())}") from error
    finally:
        end_wandb()
    print(f"{run}: {tracker.num_sent} points sent, {name} has all: {tracker.url}")
    return 0


@extra("train")
def dashboard_command(options: argparse.Namespace) -> int:
    from srcnn.tracking.dashboard import save_workspace

    project = options.project or os.environ.get("WANDB_PROJECT", "srcnn")
    print(save_workspace(options.entity, project, options.name))
    return 0
