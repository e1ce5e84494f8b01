"""`srcnn train --processes N`: the ranks of one machine, started once settings and shards have been checked."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from srcnn.models.perceptual import perceptual_distances
from srcnn.runtime.errors import UserError
from srcnn.runtime.parallel import num_cores
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.signals import EXIT_INTERRUPTED, EXIT_REQUEUE
from srcnn.runtime.torch_internals import ranks_ended
from srcnn.training.components import starting_network
from srcnn.training.config import TrainConfig
from srcnn.training.setup import open_shards, training_device, unsupported_settings


def check_training(config: TrainConfig, num_processes: int) -> None:
    """Checks what the ranks would find at their start. `srcnn doctor` looks at more.

    Raises:
        UserError, FileNotFoundError: the settings, the shards, the weights or this machine do not fit the training.
    """
    if "RANK" in os.environ:
        raise UserError("--processes: this process is a rank of a launcher already; leave the option out")
    if problems := unsupported_settings():
        raise UserError("; ".join(problems))
    num_gpus = 0 if training_device().type == "cpu" else torch.accelerator.device_count()
    if 0 < num_gpus < num_processes:
        raise UserError(f"--processes {num_processes}: this machine has {num_gpus} GPUs; ACCELERATE_USE_CPU=true "
                        "trains on the CPU")
    config.global_batch_size(num_processes)
    check_run_folder(Path(config.run))
    starting_network(config, torch.device("cpu"))
    perceptual_distances(config.metrics, torch.device("cpu"))  # their weights are downloaded here, not by every rank
    uncached = replace(config.stream, access=replace(config.stream.access, cache=""))
    open_shards(replace(config, stream=uncached))


def train_in_processes(arguments: list[str], num_processes: int, program: str) -> int:
    """Trains with the arguments of `srcnn train` in so many processes of this machine, under torchrun's launcher.

    Returns:
        The exit status: that of the ranks where they end with the same; else 1; after a stop signal that of
        `StopRequested`.
    """
    logging.disable(logging.ERROR)  # the launcher's own: the ranks say what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=num_processes, run_id=uuid.uuid4().hex,
                          rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
                          signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    launch = elastic_launch(config, sys.executable)
    stop, statuses = ranks_ended(lambda: launch("-m", "srcnn", "train", *arguments))
    if stop:
        return EXIT_INTERRUPTED if stop == signal.SIGINT else EXIT_REQUEUE
    for status in sorted(statuses):
        if status < 0:
            print(f"{program}: a process was ended by {signal.Signals(-status).name}", file=sys.stderr)
    (status,) = statuses if len(statuses) == 1 else {1} if statuses else {0}
    return status if status >= 0 else 1
