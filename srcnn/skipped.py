"""Steps that were skipped as loss or gradient was not finite: counted, and the culprits written down."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from srcnn.dataset import ShardDataset
from srcnn.distributed import all_gather_objects
from srcnn.queued import Queued
from srcnn.state import Run
from srcnn.train_config import TrainConfig

SKIPPED = "skipped.jsonl"
NAME_BYTES = 100  # of a tar header: where the name of a member stands
logger = logging.getLogger(__name__)


def report_skipped(config: TrainConfig, run: Run, skipped: Queued, reader: ShardDataset) -> bool:
    """Writes down which tiles a skipped step was to see; returns whether it did: fp16 skips some while it looks for its
    scale.

    Raises:
        FloatingPointError: too many steps in a row were skipped; on all ranks.
    """
    last_straw = run.skipped_in_a_row > config.max_skipped_steps
    if run.accelerator.scaler and not last_straw:
        return False
    keys = all_gather_objects(keys_of(reader, skipped.tiles.tolist()), run.group)
    where = Path(config.run, SKIPPED)
    if run.accelerator.is_main_process:
        logger.warning("loss or gradient is not finite: step %d skipped, its tiles are in %s", skipped.step, where)
        try:
            with where.open("a", encoding="utf-8") as file:
                entry = {"step": skipped.step, "samples": skipped.samples, "keys_of_ranks": keys}
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            logger.warning("which could not be written: %s", error)
    if last_straw:
        raise FloatingPointError(f"loss or gradient was not finite in {run.skipped_in_a_row} steps in a row: lower "
                                 f"optimizer.lr and start a new run; the tiles of these steps are in {where}")
    return True


def keys_of(reader: ShardDataset, samples: list[int]) -> list[str]:
    """Where to look at samples: the names of their first members in the shards; numbers, where these cannot be read."""
    try:
        headers = [bytes(reader.fetch(sample, sample + 1)[0][:NAME_BYTES]) for sample in samples]
    except (OSError, ValueError) as error:
        return [f"samples {samples} of {reader.location} ({error})"]
    return [header.rstrip(b"\0").decode(errors="backslashreplace") for header in headers]
