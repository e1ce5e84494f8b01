"""accelerate launch launch/train.py --config configs/train.yaml [--key value ...]

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run.
"""

from __future__ import annotations

import sys

from srcnn.launch import launch
from srcnn.run import TrainConfig
from srcnn.train import train

if __name__ == "__main__":
    sys.exit(launch("launch/train.py", __doc__, TrainConfig, train))
