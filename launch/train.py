"""accelerate launch launch/train.py --config configs/train.yaml [--key value ...]

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run. After a stop
signal (SIGTERM, SIGUSR1, Ctrl-C) it leaves a checkpoint and ends with status 75 (130 after Ctrl-C). torchrun takes
`--run` for its own option `--run-path`: there the same key is `--run_dir`.
"""

from srcnn.runtime import signals

if __name__ == "__main__":
    signals.install_signal_handlers()  # before imports that take seconds

    from srcnn.training.config import TrainConfig
    from srcnn.training.launcher import launch
    from srcnn.training.trainer import train

    launch("launch/train.py", __doc__, TrainConfig, train)
