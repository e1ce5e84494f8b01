"""accelerate launch launch/benchmark.py --config FILE --shards DIR [--SETTING VALUE ...]

Says how many tiles a second a training run of these settings does here, with its stream and without it, where the time
of a step goes, and what share of the device's peak that is. Takes all keys of launch/train.py and leaves no run behind.
"""

from __future__ import annotations

import sys

from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.parallel import let_waiting_threads_sleep

if __name__ == "__main__":
    let_waiting_threads_sleep()
    try:
        with extra("train"):
            from srcnn.training.benchmark import BenchmarkConfig, benchmark
            from srcnn.training.launcher import launch
    except UserError as error:
        sys.exit(f"launch/benchmark.py: {error}")
    launch("launch/benchmark.py", __doc__, BenchmarkConfig, benchmark)
