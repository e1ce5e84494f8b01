"""What every script of launch/ does: settings from the command line, the work, one line for a user's mistake."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState

from srcnn.config import parse
from srcnn.feed import StreamFailed

ConfigT = TypeVar("ConfigT")


def launch(program: str, description: str | None, config_class: type[ConfigT], work: Callable[[ConfigT], Any]) -> int:
    """Does `work(config)` as this rank; returns the exit status: 1, with a line that says why, where it cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = parse(config_class, program, description or "")
    try:
        work(config)
        PartialState().destroy_process_group()
    except (OSError, ValueError, FloatingPointError, StreamFailed) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
