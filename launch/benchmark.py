"""accelerate launch launch/benchmark.py --config FILE --shards DIR [--SETTING VALUE ...]

Says how many tiles a second a training run of these settings does here, with its stream and without it, where the time
of a step goes, and what share of the device's peak that is. Takes all keys of launch/train.py and leaves no run behind.
"""

from __future__ import annotations

from srcnn.training.benchmark import BenchmarkConfig, benchmark
from srcnn.training.launcher import launch

if __name__ == "__main__":
    launch("launch/benchmark.py", __doc__, BenchmarkConfig, benchmark)
