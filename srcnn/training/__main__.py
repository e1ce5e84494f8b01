"""srcnn train --config FILE --shards DIR --run DIR [--SETTING VALUE ...]

Trains a network on shards; the same command resumes an interrupted run. A stop signal (SIGTERM, SIGUSR1, Ctrl-C) leaves
a checkpoint and exit status 75 (130 after Ctrl-C). Several machines: `accelerate launch ... -m srcnn.training`; under
torchrun, which takes --run for an option of its own, write --run_dir.

examples:
  srcnn train --config srcnn-915-q20-stage1.yaml --shards data/shards --run runs/mine
  srcnn train --config train.yaml --shards data/shards --run runs/mine --processes 2 --optimizer.lr 5e-4
  srcnn train --config debug.yaml --shards data/shards --run runs/debug   does the loop learn? A minute
"""

import sys
from collections.abc import Mapping
from types import MappingProxyType

from srcnn.runtime import signals
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.parallel import let_waiting_threads_sleep


def main(
    program: str, docstring: str | None = __doc__, arguments: list[str] | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Trains as this rank. Ends the process as `launch` does, and with status 1 where the extra `train` is missing."""
    signals.install_signal_handlers()  # before imports that take seconds
    let_waiting_threads_sleep()
    try:
        with extra("train"):
            from srcnn.training.config import TrainConfig
            from srcnn.training.launcher import launch
            from srcnn.training.trainer import train
    except UserError as error:
        sys.exit(f"{program}: {error}")
    launch(program, docstring, TrainConfig, train, arguments, options)


if __name__ == "__main__":
    main("srcnn.training")
