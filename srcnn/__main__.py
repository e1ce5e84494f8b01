"""Restores photos that JPEG compression has damaged, and trains the networks that do it."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import sys
from pathlib import Path

from srcnn.commands.datasets import add_dataset_commands
from srcnn.commands.parser import CommandParser
from srcnn.commands.photos import add_photo_commands
from srcnn.commands.training import add_training_commands
from srcnn.commands.weights import add_weight_commands
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError, is_out_of_memory
from srcnn.runtime.parallel import let_waiting_threads_sleep
from srcnn.runtime.plugins import load_plugins
from srcnn.runtime.streams import open_standard_streams

EXAMPLES = """\
examples:
  srcnn restore old.jpg                                 writes old_restored.jpg beside it
  srcnn shards --photos photos --out data/shards        tiles of your own photos
  srcnn train --config srcnn-915-q20-stage1.yaml --shards data/shards --run runs/mine

srcnn COMMAND --help explains a command."""
WITH_PLUGINS = ("restore", "upscale", "compare", "score", "export", "report")  # `train` and `doctor`: see settings.py


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."""
    open_standard_streams()
    let_waiting_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is printed escaped
            stream.reconfigure(errors="backslashreplace")
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        load_plugins(getattr(options, "plugins", ()))
        return int(options.action(options))
    except (UserError, OSError) as error:
        message, status = str(error), 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message, status = "out of memory", 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    print(f"srcnn {options.command}: {without_credentials(message)}", file=sys.stderr)
    return status


def command_line() -> argparse.ArgumentParser:
    parser = CommandParser(prog="srcnn", usage="srcnn COMMAND ...", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"srcnn {version()}", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", prog="srcnn")
    add_photo_commands(commands)
    add_weight_commands(commands)
    add_dataset_commands(commands)
    add_training_commands(commands)
    for name in WITH_PLUGINS:
        commands.choices[name].add_argument(
            "--plugins", action="append", default=[], type=Path, metavar="FILE",
            help="a Python file with the network of the weights (docs/extending.md); again for others")
    return parser


def version() -> str:
    try:
        return importlib.metadata.version("srcnn")
    except importlib.metadata.PackageNotFoundError:  # run from its source without an installation
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
