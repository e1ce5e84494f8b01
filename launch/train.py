"""accelerate launch launch/train.py --config configs/train.yaml [--key value ...]

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run. After a stop
signal (SIGTERM, SIGUSR1, Ctrl-C) it leaves a checkpoint and ends with status 75 (130 after Ctrl-C).
"""

from srcnn import signals

if __name__ == "__main__":
    signals.install_signal_handlers()  # before imports that take seconds

    from srcnn.launcher import launch
    from srcnn.train_config import TrainConfig
    from srcnn.trainer import train

    launch("launch/train.py", __doc__, TrainConfig, train)
