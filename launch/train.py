"""accelerate launch launch/train.py --config configs/train.yaml [--key value ...]

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run.
"""

from __future__ import annotations

import logging
import sys

from accelerate import PartialState

from srcnn.config import parse
from srcnn.feed import StreamFailed
from srcnn.run import TrainConfig
from srcnn.train import train


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = parse(TrainConfig, "launch/train.py", __doc__ or "")
    try:
        train(config)
        PartialState().destroy_process_group()
    except (OSError, ValueError, FloatingPointError, StreamFailed) as error:
        print(f"launch/train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
