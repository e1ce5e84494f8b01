"""srcnn train --config train.yaml [--key value ...], and `accelerate launch -m srcnn.training` for several processes

Trains on the shards of `--shards` into the folder `--run`; the same command continues an interrupted run. After a stop
signal (SIGTERM, SIGUSR1, Ctrl-C) it leaves a checkpoint and ends with status 75 (130 after Ctrl-C). torchrun takes
`--run` for its own option `--run-path`: there the same key is `--run_dir`.
"""

import sys

from srcnn.runtime import signals
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra


def main(program: str, description: str | None = __doc__, arguments: list[str] | None = None) -> None:
    """Trains as this rank. Ends the process as `launch` does, and with status 1 where the extra `train` is missing."""
    signals.install_signal_handlers()  # before imports that take seconds
    try:
        with extra("train"):
            from srcnn.training.config import TrainConfig
            from srcnn.training.launcher import launch
            from srcnn.training.trainer import train
    except UserError as error:
        sys.exit(f"{program}: {error}")
    launch(program, description, TrainConfig, train, arguments)


if __name__ == "__main__":
    main("srcnn.training")
