"""The `srcnn` command: restores photos, measures and exports weights, checks and reports trainings."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from srcnn.commands.photos import add_photo_commands
from srcnn.commands.training import add_training_commands
from srcnn.commands.weights import add_weight_commands
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError, is_out_of_memory
from srcnn.runtime.streams import open_standard_streams


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is printed escaped
            stream.reconfigure(errors="backslashreplace")
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
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


class CommandParser(argparse.ArgumentParser):
    """The parser of one command: reports unknown options with the usage of that command and the nearest option.

    `~` in a path is the home folder, which shells do not expand in `--out=~/photos`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def error(self, message: str) -> NoReturn:
        super().error(without_credentials(message))

    def parse_known_args(  # type: ignore[override]  # typeshed overloads it by the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            self.error(f"unknown: {' '.join(unknown)}{f'; did you mean {near[0]}?' if near else ''}")
        return options, unknown


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srcnn", description=__doc__, allow_abbrev=False,
                                     epilog="srcnn COMMAND --help explains a command.")
    parser.add_argument("--version", action="version", version=f"srcnn {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser)
    add_photo_commands(commands)
    add_weight_commands(commands)
    add_training_commands(commands)
    return parser


def version() -> str:
    try:
        return importlib.metadata.version("srcnn")
    except importlib.metadata.PackageNotFoundError:  # run from its source without an installation
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
