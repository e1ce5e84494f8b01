"""What every script of launch/ does: settings from the command line, the work, one line for a user's mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from torch.distributed import DistError

from srcnn.config import parse
from srcnn.distributed import DistributedError
from srcnn.signals import EXIT_REQUEUE, StopRequested, exit_now, graceful_stop_enabled

ConfigT = TypeVar("ConfigT")
LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "timed out", "NCCL", "gloo")


def launch(program: str, description: str | None, config_class: type[ConfigT], work: Callable[[ConfigT], Any]) -> None:
    """Does `work(config)` as this rank. Returns when it is done; else ends the process: with status 1 and a line that
    says why it cannot be, or with that of `Stopped`, or with STOPPED where it trained and another rank is gone.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = parse(config_class, program, description or "")
    try:
        work(config)
        PartialState().destroy_process_group()
    except StopRequested as stop:
        exit_now(f"{program}: stopped after a checkpoint ({stop}); the same command goes on from there", stop.status)
    except (OSError, ValueError, FloatingPointError, DistributedError) as error:
        exit_now(f"{program}: {error}", 1)
    except RuntimeError as error:
        if not isinstance(error, DistError) and not any(sign in str(error) for sign in LOST):
            raise
        told = "another rank is gone or hangs, or the network to it is cut"
        status = EXIT_REQUEUE if graceful_stop_enabled() else 1  # they may never have met
        exit_now(f"{program}: {told}; the same command goes on from the last checkpoint: {error}", status)
