"""What a training consists of, made once from its config; `Trainer` (trainer.py) is these and the loop."""

from __future__ import annotations

import copy
import os
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from srcnn.data.dataset import ShardDataset
from srcnn.data.transforms import to_float_batch
from srcnn.models.base import NETWORKS, Network, make_network
from srcnn.models.device import to_device
from srcnn.models.perceptual import perceptual_distances
from srcnn.models.weights import initialize, load_model
from srcnn.models.wrapped import check_network
from srcnn.runtime.distributed import new_cpu_group, rendezvous
from srcnn.runtime.errors import UserError
from srcnn.tracking.run_log import Tracking
from srcnn.training.checkpoint import AsyncCheckpointWriter
from srcnn.training.config import TrainConfig
from srcnn.training.loss import LossAndScores, compile_static_shape
from srcnn.training.meter import Meter
from srcnn.training.optimizer import build_optimizer, copy_own_average, group_settings, has_own_average
from srcnn.training.setup import open_shards, start_accelerator
from srcnn.training.state import TrainState

ASYNC_DEVICES = ("cuda",)  # devices on which the outcome of a step is read while the next gradient is computed


@dataclass(frozen=True)
class PendingStep:
    """A submitted optimizer step whose outcome (applied or skipped) the host has not read yet.

    Attributes:
        step, samples: the training's after it.
        batch_size: tiles over all ranks.
        tiles: this rank's, the numbers of the pairs in their split.
        sums: of this rank's tiles, as a `Meter` takes them.
        outcome: waits for the device; (length of the gradient, stop flag), the same on all ranks. A length that is not
            finite: the device has skipped the step. A flag above 0: some rank cannot go on.
    """

    step: int
    samples: int
    batch_size: int
    tiles: torch.Tensor
    sums: torch.Tensor
    learning_rate: float
    outcome: Callable[[], tuple[float, ...]]


class Components:
    """All that lives as long as a training.

    Attributes:
        network: what is trained; `average`, its exponential average, or None.
        model: what a step calls: the network with its loss and scores, wrapped for all ranks.
        dataset, val_dataset: the training and the validation split.
        optimizer_settings: the settings of the optimizer's groups at the start; what differs later is saved as state.
        distances: what the validation measures beside PSNR and SSIM.
        state: the counters; `meter`: what steps cost and give since the last log line.
        group: of all ranks, for messages between CPUs; None for a single one.
        stop_flag: a parameter that no optimizer changes; its gradient is above 0 after a step if a rank has an error.
        error: why this rank cannot go on, or was asked to stop.
        async_steps: whether the outcome of a step is read while the next gradient is computed, instead of waiting.
        pending: the step whose outcome was not read yet.
        writer: of the checkpoints; on the main process only, once it holds the run folder.
        tracking: the record of the run, once it has one.
        phase: context of a part of a step, by name: for srcnn/training/benchmark.py.
    """

    phase: Any = nullcontext

    def __init__(self, config: TrainConfig, datasets: tuple[ShardDataset, ShardDataset] | None = None) -> None:
        """Every rank draws the same weights. `datasets`: in place of those that the config names."""
        self.config = config
        self.accelerator = start_accelerator(config)
        self.dataset, self.val_dataset = datasets or open_shards(config)
        self.network = starting_network(config, self.accelerator.device)
        if self.network.conditioned:
            for dataset in (self.dataset, self.val_dataset):
                dataset.read_qualities()
        optimizer = build_optimizer(self.network, config.optimizer)
        self.optimizer_settings = group_settings(optimizer)
        self.average: Network | None = None
        if config.optimizer.average_halflife_samples or has_own_average(optimizer):
            self.average = copy.deepcopy(self.network)
        mode, self.to_float_batch = config.compile_mode, to_float_batch
        if mode:  # without CUDA graphs: each micro-batch takes a part of the result
            self.to_float_batch = compile_static_shape(to_float_batch, lambda batch, _: len(batch.clean), "default")
        border = self.network.receptive_radius if config.loss_crop else 0
        scored = LossAndScores(self.network, border, config.loss, mode, config.luma_weight)
        self.stop_flag = scored.stop_flag
        self.model, self.optimizer = self.accelerator.prepare(scored, optimizer)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        timeout = timedelta(minutes=config.timeout_minutes)
        with rendezvous(timeout):
            self.group = new_cpu_group(timeout)
        # wandb sweeps set WANDB_RUN_ID.
        self.state = TrainState(tracker_id=os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        self.meter = Meter(self.accelerator)
        self.distances = perceptual_distances(config.metrics, self.accelerator.device)
        self.async_steps = self.accelerator.device.type in ASYNC_DEVICES
        self.pending: PendingStep | None = None
        self.error: Exception | None = None
        self.writer: AsyncCheckpointWriter | None = None
        self.tracking: Tracking | None = None

    @property
    def eval_network(self) -> Network:
        """The network with the weights that are validated and saved: the average, where there is one."""
        if self.average is None:
            return self.network
        if has_own_average(self.optimizer.optimizer):
            copy_own_average(self.optimizer.optimizer, self.network, self.average)
        return self.average

    @property
    def is_done(self) -> bool:
        return self.state.samples >= self.config.total_samples


def starting_network(config: TrainConfig, device: torch.device) -> Network:
    """The network with its first weights: drawn from the seed, or those of `config.weights`."""
    with torch.random.fork_rng(devices=[]):  # a network of one's own may draw its weights when it is made
        torch.manual_seed(config.seed)
        network = make_network(config.architecture, config.centred)
    initialize(network, config.initialization, config.seed)
    if config.weights:
        try:
            network.load_without_centering(load_model(config.weights))
        except ValueError as error:
            raise UserError(f"weights {config.weights}: {error}") from error
    network = to_device(network, device)
    if NETWORKS.is_own(type(network).__name__):
        check_network(network)
    return network
