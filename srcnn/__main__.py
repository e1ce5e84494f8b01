"""The `srcnn` command, for people who have photos, weights, or a training to look after."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srcnn.config import read_yaml, without_credentials
from srcnn.photos_commands import add_photo_commands
from srcnn.reader import ShardReader
from srcnn.storage import join
from srcnn.verify import verify_shards
from srcnn.weights_commands import add_weight_commands


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 something was refused or missing, 2 wrong usage, 130 interrupted."""
    options = command_line().parse_args(arguments)
    try:
        return int(options.action(options))
    except (FileNotFoundError, ValueError, OSError) as error:
        print(f"srcnn {options.command}: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"srcnn {options.command}: memory runs out", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"srcnn {options.command}: interrupted", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srcnn", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add_photo_commands(commands)
    add_weight_commands(commands)
    add_training_commands(commands)
    return parser


def add_training_commands(commands: Any) -> None:
    """Those that look at shards and at the runs of training."""
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
    num_files = num_problems = 0
    for checked in tqdm(verify_shards(options.location), "files checked", disable=None, unit=""):
        num_files += 1
        if checked.problem:
            num_problems += 1
            tqdm.write(f"{checked.name}: {checked.problem}", file=sys.stderr)
    print(f"{without_credentials(options.location)}: {num_files} files checked, {num_problems} with problems")
    return int(num_problems > 0)


def doctor_command(options: argparse.Namespace) -> int:
    from srcnn.doctor import main as examine  # slow to import, and wanted only here

    return examine(options.settings)


def report_command(options: argparse.Namespace) -> int:
    from srcnn.report import write_report

    settings = options.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: no training run here")
    config = read_yaml(settings)
    if not {"shards", "overfit_tiles"} <= config.keys():
        raise ValueError(f"{settings}: not the settings of a training run")
    split = "train" if config["overfit_tiles"] else "val"
    print(write_report(options.run, ShardReader(join(config["shards"], split), config["overfit_tiles"])))
    return 0


def dashboard_command(options: argparse.Namespace) -> int:
    from srcnn.dashboard import save  # slow to import, and wanted only here

    print(save(options.entity, options.project or os.environ.get("WANDB_PROJECT", "srcnn"), options.name))
    return 0


def sync_command(options: argparse.Namespace) -> int:
    from srcnn.sync import sync  # slow to import, and wanted only here

    num_sent, address = sync(options.run, options.project, options.tracker)
    print(f"{options.run}: {num_sent} points sent, {options.tracker} has all: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
