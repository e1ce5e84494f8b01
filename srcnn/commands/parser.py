"""The parser of the `srcnn` command: a help page of one form for each command, and the name that was meant for a
mistyped one.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import did_you_mean

WIDTH = 78  # characters of a description


class CommandParser(argparse.ArgumentParser):
    """The parser of one command: reports unknown options and commands with its own usage and the nearest name.

    `~` in a path is the home folder, which shells do not expand in `--out=~/photos`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._names: list[str] = []
        self._commands: list[argparse.Action] = []
        kwargs |= {"description": textwrap.fill(kwargs.get("description") or "", WIDTH), "allow_abbrev": False,
                   "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self._names += action.option_strings
        return action

    def add_subparsers(self, **kwargs: Any) -> Any:
        action = super().add_subparsers(metavar="COMMAND", title="commands", **kwargs)
        self._commands.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        super().error(without_credentials(message))

    def parse_known_args(  # type: ignore[override]  # typeshed overloads it by the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        args = sys.argv[1:] if args is None else args
        word = next((word for word in args if not word.startswith("-")), "")  # such parsers' options have no values
        for action in self._commands:
            if word and word not in (known := list(action.choices or ())):
                self.error(f"unknown command: {word}{did_you_mean(word, known)}")
        if not self._commands and "-" in self.prefix_chars:  # before argparse asks for the required one that was meant
            named = (word for word in takewhile("--".__ne__, args) if word.startswith("--"))
            self._refuse([word for word in named if word.partition("=")[0] not in self._names])
        options, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return options, unknown

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            self.error(f"unknown: {' '.join(unknown)}{did_you_mean(unknown[0].partition('=')[0], self._names)}")


def add_command(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int] | None, help: str, *examples: str,
    more: str = "", after: str = "",
) -> CommandParser:
    """Adds a command to those of a parser.

    Args:
        help: what it does, a clause without a full stop; the list of commands shows it, and the command's own page.
        examples: command lines, with a note after two spaces.
        more: further sentences for its own page.
        after: text at the end of that page.
    """
    description = f"{help[0].upper()}{help[1:]}. {more}"
    shown = "".join(f"\n  {example}" for example in examples)
    parser: CommandParser = commands.add_parser(
        name, help=help, description=description, epilog=f"examples:{shown}\n{after and chr(10) + after}")
    if action:
        parser.set_defaults(action=action)
    return parser
