"""accelerate launch launch/train.py --config configs/train.yaml [--key value ...]

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run. After a stop
signal (SIGTERM, SIGUSR1, Ctrl-C) it leaves a checkpoint and ends with status 75 (130 after Ctrl-C). torchrun takes
`--run` for its own option `--run-path`: there the same key is `--run_dir`.
"""

from srcnn.training.__main__ import main

if __name__ == "__main__":
    main("launch/train.py", __doc__)
