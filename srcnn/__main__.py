"""The `srcnn` command: restores photos, measures and exports weights, checks and reports trainings."""

from __future__ import annotations

import argparse
import sys

from srcnn.commands.photos import add_photo_commands
from srcnn.commands.training import add_training_commands
from srcnn.commands.weights import add_weight_commands
from srcnn.runtime.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."""
    options = command_line().parse_args(arguments)
    try:
        return int(options.action(options))
    except (UserError, OSError) as error:
        message, status = str(error), 1
    except MemoryError:
        message, status = "out of memory", 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    print(f"srcnn {options.command}: {message}", file=sys.stderr)
    return status


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srcnn", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_photo_commands(commands)
    add_weight_commands(commands)
    add_training_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
