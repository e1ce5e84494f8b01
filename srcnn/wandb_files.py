"""What the .wandb files of a run hold: wandb-core's log of all that was logged, which `wandb sync` sends.

Seven bytes, then LevelDB's log format with the CRC-32 of zlib: records in parts that fill blocks of 32 KiB. wandb-core
(core/internal/transactionlog of https://github.com/wandb/wandb) writes whole blocks only, so a kill leaves a file
that ends within a record.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
HEADER = struct.Struct("<IHB")  # checksum, length and kind of a part
BLOCK = 32_768


def wandb_files(run: Path, run_id: str) -> list[Path]:
    """The files of a wandb run in a run folder, oldest first."""
    return sorted(run.glob(f"wandb/*run-*/run-{run_id}.wandb"))


def last_step(paths: Iterable[Path]) -> int:
    """The last step of their rows, -1 if none; a file that cannot be understood is named."""
    last = -1
    for path in paths:
        try:
            last = max([last, *steps(path)])
        except Exception as error:  # a format to come may fail in any way
            logger.warning("%s cannot be read, its points may be sent again: %s", path, error)
    return last


def steps(path: Path) -> list[int]:
    """The steps of the rows of a file, in order. Raises ValueError where it is no .wandb file."""
    return [record.history.step.num for record, _ in records(path) if record.HasField("history")]


def mend(paths: Sequence[Path]) -> None:
    """Cuts off what a kill left of a last record, and removes the folders of files without a record.

    `wandb sync` of all files of a run stops at one that is torn or empty, and leaves out those after it.
    """
    for path in paths:
        with contextlib.suppress(Exception):  # they are for `wandb sync` alone
            ends = [end for _, end in records(path)]
            if not ends:
                shutil.rmtree(path.parent)
            elif ends[-1] < path.stat().st_size:
                os.truncate(path, ends[-1])


def records(path: Path) -> Iterator[tuple[Any, int]]:
    """The records of a file and the position in it after each; ends where it is torn."""
    from wandb.proto import wandb_internal_pb2

    content, position, record = path.read_bytes(), 7, b""
    if content and content[:4] != b":W&B":
        raise ValueError("not a .wandb file")
    while position + HEADER.size <= len(content):
        if BLOCK - position % BLOCK < HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = HEADER.unpack_from(content, position)
        part = content[position + HEADER.size:position + HEADER.size + length]
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += HEADER.size + length
        record = record + part if kind in (3, 4) else part  # 1 whole, 2 the first, 3 one between, 4 the last
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record), position  # type: ignore[attr-defined]
