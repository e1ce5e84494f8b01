"""What the programs that train share: settings from the command line, logging, exit statuses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from accelerate import PartialState

from srcnn.runtime.distributed import DistributedError, PeerLostError
from srcnn.runtime.errors import EXPECTED
from srcnn.runtime.settings import parse
from srcnn.runtime.signals import StopRequested, exit_now
from srcnn.runtime.streams import open_standard_streams

ConfigT = TypeVar("ConfigT")
logger = logging.getLogger(__name__)


def launch(
    program: str, docstring: str | None, config_class: type[ConfigT], work: Callable[[ConfigT], Any],
    arguments: list[str] | None = None, options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Does `work(config)` as this rank, with the config of the `arguments` (default: sys.argv).

    Returns when it is done; else ends the process: with status 1 and a line for an expected error, with the status of
    `StopRequested` or `PeerLostError`, or with a traceback.
    """
    open_standard_streams()
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank}: %(message)s",
                        datefmt="%H:%M:%S")
    config = parse(config_class, program, docstring or "", arguments, options)
    try:
        work(config)
        PartialState().destroy_process_group()
    except StopRequested as stop:
        exit_now(f"{program}: {stop}: checkpoint saved; run the same command to resume", stop.status)
    except (*EXPECTED, DistributedError) as error:
        exit_now(f"{program}: {error}", 1)
    except PeerLostError as error:
        logger.exception("a collective failed")
        exit_now(f"{program}: {error}; run the same command to resume from the last checkpoint", error.status)
