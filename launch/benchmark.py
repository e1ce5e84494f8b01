"""accelerate launch launch/benchmark.py --config configs/train.yaml --shards DIR [--key value ...]

Says how many tiles a second a training run of these settings does here, with its stream and without it, where the time
of a step goes, and what share of the device's peak that is. Takes all keys of launch/train.py and leaves no run behind.
"""

from __future__ import annotations

import logging
import sys

from accelerate import PartialState

from srcnn.benchmark import BenchmarkConfig, benchmark
from srcnn.config import parse
from srcnn.feed import StreamFailed


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = parse(BenchmarkConfig, "launch/benchmark.py", __doc__ or "")
    try:
        benchmark(config)
        PartialState().destroy_process_group()
    except (OSError, ValueError, FloatingPointError, StreamFailed) as error:
        print(f"launch/benchmark.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
