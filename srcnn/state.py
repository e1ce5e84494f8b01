"""A training run: its state, its start."""

from __future__ import annotations

import copy
import math
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from srcnn.base import Network
from srcnn.checkpoint import AsyncCheckpointWriter
from srcnn.dataset import ShardDataset
from srcnn.device import device_here, prefers_bf16, raise_malloc_threshold, to_device
from srcnn.distributed import new_cpu_group, rejoin_after_restart, rendezvous
from srcnn.loader import Batch
from srcnn.loss import LossAndScores, compile_static_shape
from srcnn.manifest import Manifest
from srcnn.optimizer import build_optimizer
from srcnn.queued import Queued
from srcnn.storage import join
from srcnn.train_config import TrainConfig
from srcnn.transforms import to_float_batch
from srcnn.weights_io import initialize, load_model, make_network

ASYNC_DEVICES = ("cuda",)  # devices of which the host hears how a step ended while the next one is computed


@dataclass
class Run:
    """Everything that changes while a run goes on.

    Attributes:
        model: what a step calls: the network as `LossAndScores`, for all ranks.
        lags: whether the host hears how a step ended while the next one is computed, instead of waiting.
        queued: the step of which it has not heard yet.
        step, samples: optimizer steps taken, tiles seen; what was skipped or is queued counts.
        logged_samples, validated_samples, saved_samples: where that was done last; saved -1: never.
        saved_at: when, by time.monotonic, seconds.
        best_psnr, best_step: of the best validation, dB, and where it was.
        values: the last validation.
        group: of all ranks, for messages between CPUs; None for a single one.
        writer: of the checkpoints; on the main process only, once it holds the run folder.
    """

    accelerator: Accelerator
    network: Network
    model: torch.nn.Module
    average: Network | None
    optimizer: Any
    to_float_batch: Callable[[Batch, bool], tuple[torch.Tensor, torch.Tensor]]
    group: Any
    lags: bool = False
    queued: Queued | None = None
    step: int = 0
    samples: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    logged_samples: int = 0
    validated_samples: int = 0
    saved_samples: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    best_psnr: float = float("-inf")
    best_step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    tracker_id: str = ""
    writer: AsyncCheckpointWriter | None = None

    @property
    def result(self) -> Network:
        """The weights that are validated and saved."""
        return self.average or self.network


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes. The network is tiny: its gradients are one bucket, all-reduced in place."""
    device = device_here()
    if device.type == "cpu":
        raise_malloc_threshold()
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if prefers_bf16(config.network, device) else "no"
    launched = int(os.environ.get("WORLD_SIZE", 1))
    share = math.ceil(config.global_batch_size(launched) / launched)
    # With gradients accumulated a static graph crashes or, worse, goes without the all-reduce (PyTorch #187732).
    static = config.tiles_at_once(device.type, share) == share
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static)
    timeout = timedelta(minutes=config.timeout_minutes)
    waiting = InitProcessGroupKwargs(timeout=timeout)
    with rendezvous(timeout):
        rejoin_after_restart(device.type, timeout)
        # Accelerate takes the ranks of a machine without an accelerator for single processes unless told.
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision,
                                  kwargs_handlers=[parallel, waiting])
    if launched != accelerator.num_processes:
        raise ValueError(f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; "
                         "see configs/accelerate for settings of the launcher that work")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    return accelerator


def open_shards(config: TrainConfig) -> tuple[ShardDataset, ShardDataset]:
    """Readers of the training and the validation split; the same few training tiles twice when overfitting."""
    return open_split(config, "train"), open_split(config, "train" if config.overfit_tiles else "val")


def open_split(config: TrainConfig, split: str) -> ShardDataset:
    """A reader of one split, whose samples fit the training."""
    reader = ShardDataset(join(config.shards, split), config.overfit_tiles, config.stream.access)
    check_samples(config, split, reader.manifest, reader.location)
    return reader


def check_samples(config: TrainConfig, split: str, manifest: Manifest, location: str) -> None:
    """Raises ValueError where the samples of a split are none for this training."""
    is_degraded = config.degrades and split == "train"
    if manifest.is_clean_only and not is_degraded:
        cure = "set degradation.crop_pixels and degradation.damages" if split == "train" else "validation needs pairs"
        raise ValueError(f"{location}: holds clean tiles alone: {cure} (docs/degradations.md)")
    if is_degraded and not manifest.is_clean_only:
        raise ValueError(f"{location}: holds pairs, degraded already: leave degradation out, or make the shards with "
                         "contents clean (docs/degradations.md)")
    if is_degraded:
        config.degradation.check(manifest.tile_shape)
    check_tiles(config, config.pair_shape(manifest.tile_shape) if is_degraded else manifest.tile_shape, location)


def check_tiles(config: TrainConfig, tile_shape: tuple[int, ...], location: str) -> None:
    """Raises ValueError where tiles of this shape, (H, W) or (H, W, 3), are none for the network and its scores."""
    channels = 3 if len(tile_shape) == 3 else 1
    if channels != config.network.channels:
        key = f"{'unet' if config.unet.widths else 'model'}.channels"
        raise ValueError(f"{location}: tiles have {channels} channels, {key} is {config.network.channels}")
    border = config.network.receptive_radius if config.loss_crop else 0
    side, shortest = tile_shape[0], max(11, 2 * border + 1)
    if side < shortest:
        needed = f"this network and its scores need {shortest} at least"
        if border:
            needed += f", for padding reaches {border} pixels in: turn loss_crop off, or make shards of larger tiles"
        raise ValueError(f"{location}: tiles of {side} pixels; {needed}")


def start_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Network, average and optimizer at their start; every rank draws the same weights."""
    network = make_network(config.network, config.centred)
    initialize(network, config.initialization, config.seed)
    if config.weights:
        network.load_without_centering(load_model(config.weights))
    to_device(network, accelerator.device)
    average = copy.deepcopy(network) if config.optimizer.average_halflife_samples else None
    optimizer = build_optimizer(network, config.optimizer)
    mode, floats = config.compile_mode, to_float_batch
    if mode:  # without graphs: each part of a batch takes what this gives
        floats = compile_static_shape(to_float_batch, lambda batch, _: len(batch.clean), "default")
    border = network.receptive_radius if config.loss_crop else 0
    scored = LossAndScores(network, border, config.loss, mode, config.luma_weight)
    model, optimizer = accelerator.prepare(scored, optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    timeout = timedelta(minutes=config.timeout_minutes)
    with rendezvous(timeout):
        group = new_cpu_group(timeout)
    tracker_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # a sweep names its trials
    lags = accelerator.device.type in ASYNC_DEVICES
    return Run(accelerator, network, model, average, optimizer, floats, group, lags, tracker_id=tracker_id)


def interval_elapsed(config: TrainConfig, run: Run, every: int, last: int) -> bool:
    """Whether a multiple of `every` samples, or the end, was passed since `last`."""
    at_end = run.samples >= config.total_samples
    return every > 0 and run.samples > last and (run.samples // every > last // every or at_end)
