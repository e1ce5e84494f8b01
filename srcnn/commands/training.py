"""The commands for shards and training runs: shards, train, doctor, report and the like.

PyTorch and other slow imports are made by the command that runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from srcnn.commands.parser import add_command
from srcnn.runtime.config_files import copy_config, shipped_configs
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra

TRAIN_OPTIONS = {"--processes N": "ranks on this machine, each on its own GPU or its share of the cores (default: 1)"}
CONFIG_CLASSES = {"train": "srcnn.training.config.TrainConfig", "shards": "shards.plan.ShardsConfig"}


def add_training_commands(commands: Any) -> None:
    # Settings are parsed by jsonargparse. With a prefix that nobody types, argparse passes them on.
    for name, action, text in (
        ("shards", shards_command, "make shards of photos, for training"),
        ("train", train_command, "train a network on shards, in one process or several"),
        ("doctor", doctor_command, "check what a training needs before it is started"),
    ):
        passed_on = commands.add_parser(name, add_help=False, prefix_chars="\0", help=text)
        passed_on.add_argument("settings", nargs="*")
        passed_on.set_defaults(action=action)

    _add_configs(commands)

    verify = add_command(
        commands, "verify-shards", verify_command, "check every byte of shards against their manifest",
        "srcnn verify-shards data/shards", "srcnn verify-shards s3://bucket/shards/train")
    verify.add_argument("location", metavar="SHARDS", help="folder or URL of a split, or of the folder of both splits")

    push = add_command(
        commands, "push-shards", push_command, "upload shards to the Hugging Face hub as a dataset",
        "srcnn push-shards data/shards my-name/city-tiles",
        more="Uploads shards, their manifests and the dataset card, README.md, whose `license` must be filled in."
        " Called again it goes on where it was. Needs `hf auth login` or HF_TOKEN, and pip install 'srcnn[hub]'.")
    push.add_argument("folder", type=Path, metavar="SHARDS", help="folder of the splits, train/ and val/")
    push.add_argument("repository", metavar="REPOSITORY", help="owner/name of the dataset; made where it is missing")
    push.add_argument("--private", action="store_true", help="make the dataset private, if it is made")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")

    report = add_command(commands, "report", report_command, "write the report of a training run again",
                         "srcnn report runs/mine")
    report.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    report.add_argument("--shards", metavar="SHARDS", help="folder or URL with val/, for the pictures (default: the "
                        "folder that config.yaml of the run names; a URL in it is not followed)")

    send = add_command(
        commands, "sync", sync_command, "send the metrics of a training run that wandb or MLflow lacks",
        "srcnn sync runs/mine", "srcnn sync runs/mine --tracker mlflow",
        more="Sends the points of metrics.jsonl that the server lacks, and the settings, to the tracker's run of the"
        " same id. The training must not be running. WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY and other variables of"
        " the tracker apply. An offline run can be sent by `wandb sync RUN/wandb/offline-run-*` instead, with its"
        " pictures; use only one of the two.")
    send.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    send.add_argument("--tracker", choices=("wandb", "mlflow"), default="wandb", help="(default: wandb)")
    send.add_argument("--project", default="", metavar="NAME", help="wandb project or MLflow experiment (default: "
                      "WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME, else srcnn)")

    board = add_command(
        commands, "dashboard", dashboard_command, "create a wandb workspace with the panels for a training",
        "srcnn dashboard --entity my-team",
        more="It is a view of a wandb project: quality, learning, speed and machine load over the number of tiles."
        " Needs an account, and pip install 'srcnn[dashboard]'.")
    board.add_argument("--entity", default="", metavar="NAME", help="default: WANDB_ENTITY, else the account's default")
    board.add_argument("--project", default="", metavar="NAME", help="default: WANDB_PROJECT, else srcnn")
    board.add_argument("--name", default="SRCNN training", metavar="TEXT", help="of the view (default: %(default)s)")


def _add_configs(commands: Any) -> None:
    configs = add_command(
        commands, "configs", configs_command, "list or copy the shipped configs of shards and trainings",
        "srcnn configs                          list them",
        "srcnn configs train.yaml -o configs    copy one, to change it",
        "srcnn configs --schema train           the JSON schema of their keys, for editors",
        more="`srcnn train --config NAME` and `srcnn shards --config NAME` find them by name.")
    configs.add_argument("names", nargs="*", metavar="NAME", help="a config to copy, such as train.yaml")
    configs.add_argument("-o", "--out", type=Path, default=Path(), metavar="DIR", help="folder to copy to (default: .)")
    configs.add_argument("--schema", choices=tuple(CONFIG_CLASSES), help="print the JSON schema of such configs")


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


def split_processes(arguments: list[str], program: str) -> tuple[int, list[str]]:
    """The value of `--processes`, 1 without, and the other arguments."""
    parser = argparse.ArgumentParser(prog=program, usage=f"{program} --help", add_help=False, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=1)
    options, settings = parser.parse_known_args(arguments)
    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: expected at least 1")
    return options.processes, settings


@extra("train")
def train_command(options: argparse.Namespace) -> int:
    program = "srcnn train"
    num_processes, settings = split_processes(options.settings, program)
    if num_processes > 1:
        return _train_in_processes(settings, num_processes, program)
    from srcnn.training.__main__ import main as train

    train(program, arguments=settings, options=TRAIN_OPTIONS)
    return 0


def _train_in_processes(settings: list[str], num_processes: int, program: str) -> int:
    """Checks the training, then starts its ranks; returns their exit status."""
    from srcnn.runtime.settings import parse
    from srcnn.training.__main__ import __doc__ as about
    from srcnn.training.config import TrainConfig
    from srcnn.training.processes import check_training, train_in_processes

    check_training(parse(TrainConfig, program, about or "", settings, TRAIN_OPTIONS), num_processes)
    return train_in_processes(settings, num_processes, program)


def configs_command(options: argparse.Namespace) -> int:
    """Lists the configs, copies those named, or prints a JSON schema."""
    if options.schema:
        print(json.dumps(schema_of(options.schema), indent=1))
    elif not options.names:
        texts = shipped_configs()
        width = max(map(len, texts))
        print("\n".join(f"{name:{width}}  {text}" for name, text in texts.items()))
    for name in options.names:
        print(copy_config(name, options.out))
    return 0


@extra("train")
def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of the configs of a kind of CONFIG_CLASSES."""
    from srcnn.runtime.config_schema import json_schema

    return json_schema(config_class(kind))


def config_class(kind: str) -> Any:
    """The dataclass of a kind of CONFIG_CLASSES."""
    module, _, name = CONFIG_CLASSES[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)


@extra("train")
def doctor_command(options: argparse.Namespace) -> int:
    from srcnn.commands.doctor import main as doctor

    num_processes, settings = split_processes(options.settings, "srcnn doctor")
    return doctor([*settings, "--ranks", str(num_processes)] if num_processes > 1 else settings)


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
