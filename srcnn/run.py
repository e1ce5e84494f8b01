"""A training run: its settings, its state, its start."""

from __future__ import annotations

import copy
import math
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from srcnn.checkpoint import Writer
from srcnn.compiled import CompileMode, Scored, for_one_size
from srcnn.meeting import meet_again, meeting
from srcnn.metrics import LossName
from srcnn.model import (
    Initialization,
    ModelConfig,
    device_here,
    initialize,
    load_model,
    make_network,
    prefers_bf16,
    to_device,
)
from srcnn.network import Network
from srcnn.optimize import OptimizerConfig, build_optimizer
from srcnn.products import keep_freed_memory
from srcnn.queued import Queued
from srcnn.ranks import process_group
from srcnn.reader import ShardReader
from srcnn.sample import Manifest
from srcnn.storage import join
from srcnn.stream import Batch, StreamConfig
from srcnn.training_pairs import DegradationConfig
from srcnn.unet import UNetConfig
from srcnn.validate import as_floats

LAGGING = ("cuda",)  # devices of which the host hears how a step ended while the next one is computed
# Tiles at once on a CPU: the activations of one stay in its cache; a U-Net, which reorders its weights for every call,
# trains 1.05 to 1.6 times as fast with 8.
CPU_MICRO_BATCH, CPU_MICRO_BATCH_UNET = 1, 8


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Progress is counted in samples (tiles) over all ranks.

    Args:
        run: folder of the run; started again with the same folder it continues from its latest checkpoint.
        shards: folder with train/ and val/, as `make shards` wrote it, or its http(s), s3, gs or az address.
        model: the network, an SRCNN, unless `unet` has widths.
        unet: a U-Net in place of it.
        initialization: start of the weights: "kaiming" (robust), "pytorch" (the source's), "paper".
        centred: subtract 0.5 from pixels before the first layer while training; folded into its bias when saved.
        weights: start from these weights (file, run folder or shipped name) instead of random ones; empty: random.
        seed: decides the start, the order of the samples and their flips.
        total_samples: length of the training, tiles.
        batch_size: tiles of an optimizer step over all ranks, whatever their number; 0: batch_size_per_process of each.
        batch_size_per_process: tiles a rank contributes to each optimizer step, where batch_size is 0.
        micro_batch_size: tiles through the network at once; gradients accumulate over the batch. 0: by the device.
        augment: flips and 90-degree rotations, the same for both tiles of a pair.
        degradation: how training pairs are made of shards whose training samples are clean tiles alone.
        loss: mean over the pixels of the squared difference, "mse", of the absolute one, "l1", or of one that is smooth
            at zero and else absolute, "charbonnier". The validation's is always "mse".
        luma_weight: that many times the same loss of the luma is added to it, for networks of three channels.
        loss_crop: leave out of the loss the pixels that padding reaches (restoring with a halo never uses them).
        mixed_precision: "no", "bf16" or "fp16"; "auto": bf16 where the device is faster with it; null takes what
            `accelerate launch` was told.
        compile: torch.compile the network with its loss, and the way from bytes to its input: true or "default",
            "reduce-overhead" (CUDA graphs), "max-autotune" (graphs, and kernels picked by trying: minutes); false: not.
        stream: the order of the samples and how they are read.
        optimizer: what changes the weights.
        log_every_samples: tiles between two log lines.
        validate_every_samples: tiles between two validations, each followed by a checkpoint.
        save_every_samples: tiles between two checkpoints; 0: with the validations only.
        save_every_minutes: at the latest so often a log line is followed by a checkpoint; 0: never for the time.
        keep_checkpoints: the latest ones kept; the best is kept beside them.
        on_save_failure: what to do when a checkpoint cannot be written: "continue" says so and tries again with the
            next one, "stop" ends the run.
        max_skipped_steps: steps in a row that may be left out because loss or gradient is not finite; then it stops.
        timeout_minutes: how long ranks wait for each other, as for one that hangs; longer than a validation takes.
        fresh: begin anew; what the run folder holds is kept beside it under another name.
        trackers: any of "wandb", "tensorboard", "mlflow"; metrics.jsonl is always written.
        alerts: have wandb tell people of a loss that is not finite, a stop, a failure, the end.
        num_pictures: pairs shown to the trackers at each validation.
        upload_best: send the best checkpoint to wandb as an artifact at the end.
        overfit_tiles: train and validate on the first so many training tiles only, to see that the loop learns; 0: off.
    """

    run: str = "runs/srcnn"
    shards: str = "data/shards"
    model: ModelConfig = field(default_factory=ModelConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    initialization: Initialization = "kaiming"
    centred: bool = True
    weights: str = ""
    seed: int = 0
    total_samples: int = 640_000
    batch_size: int = 0
    batch_size_per_process: int = 32
    micro_batch_size: int = 0
    augment: bool = True
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    loss: LossName = "mse"
    luma_weight: float = 0.0
    loss_crop: bool = False
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    compile: bool | CompileMode = False
    stream: StreamConfig = field(default_factory=StreamConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every_samples: int = 6400
    validate_every_samples: int = 64_000
    save_every_samples: int = 0
    save_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    on_save_failure: Literal["continue", "stop"] = "continue"
    max_skipped_steps: int = 20
    timeout_minutes: float = 10.0
    fresh: bool = False
    trackers: list[Literal["wandb", "tensorboard", "mlflow"]] = field(default_factory=lambda: ["wandb"])
    alerts: bool = True
    num_pictures: int = 4
    upload_best: bool = False
    overfit_tiles: int = 0

    def __post_init__(self) -> None:
        for key in ("total_samples", "batch_size_per_process", "log_every_samples", "validate_every_samples",
                    "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} {getattr(self, key)}: expected at least 1")
        for key in ("batch_size", "micro_batch_size", "overfit_tiles", "num_pictures", "save_every_samples",
                    "save_every_minutes", "max_skipped_steps", "luma_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} {getattr(self, key)}: cannot be negative")
        if self.timeout_minutes <= 0:
            raise ValueError(f"timeout_minutes {self.timeout_minutes}: must be above zero")
        if self.unet.widths and (self.model != ModelConfig() or self.initialization == "paper"):
            raise ValueError("unet.widths: a U-Net has no use for the settings of model, nor for the paper's "
                             "initialization; leave them out, or unet")

        if self.luma_weight and self.network.channels != 3:
            raise ValueError(f"luma_weight {self.luma_weight}: the network has {self.network.channels} channels, not 3")
        if self.degrades and self.overfit_tiles:
            raise ValueError(f"overfit_tiles {self.overfit_tiles}: takes pairs of the shards; leave degradation out")
        if self.degrades and self.stream.resident == "device":
            raise ValueError("stream.resident device: pairs are made on the host (degradation): take host, or no")

    @property
    def degrades(self) -> bool:
        """Whether pairs are made while training."""
        return self.degradation.crop_pixels > 0

    def pair_shape(self, tile_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the training pairs, (H, W) or (H, W, 3), where the shards' tiles have `tile_shape`.

        Raises:
            ValueError: these are too small.
        """
        return self.degradation.pair_shape(tile_shape) if self.degrades else tile_shape

    @property
    def network(self) -> ModelConfig | UNetConfig:
        """What is trained."""
        return self.unet if self.unet.widths else self.model

    @property
    def compile_mode(self) -> CompileMode | None:
        """How to compile; None: not."""
        return "default" if self.compile is True else self.compile or None

    def global_batch_size(self, num_ranks: int) -> int:
        """Tiles of an optimizer step over all ranks. Raises ValueError where some rank would have none."""
        size = self.batch_size or self.batch_size_per_process * num_ranks
        if size < num_ranks:
            raise ValueError(f"batch_size {size}: expected at least one tile for each of the {num_ranks} ranks")
        return size

    def tiles_at_once(self, device_type: str, num_tiles: int) -> int:
        """How many of a rank's `num_tiles` of a step go through the network together."""
        on_cpu = CPU_MICRO_BATCH_UNET if self.unet.widths else CPU_MICRO_BATCH
        return min(num_tiles, self.micro_batch_size or (on_cpu if device_type == "cpu" else num_tiles))


@dataclass
class Run:
    """Everything that changes while a run goes on.

    Attributes:
        model: what a step calls: the network as `Scored`, for all ranks.
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
    as_floats: Callable[[Batch, bool], tuple[torch.Tensor, torch.Tensor]]
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
    writer: Writer | None = None

    @property
    def result(self) -> Network:
        """The weights that are validated and saved."""
        return self.average or self.network


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes. The network is tiny: its gradients are one bucket, all-reduced in place."""
    device = device_here()
    if device.type == "cpu":
        keep_freed_memory()
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
    with meeting(timeout):
        meet_again(device.type, timeout)
        # Accelerate takes the ranks of a machine without an accelerator for single processes unless told.
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision,
                                  kwargs_handlers=[parallel, waiting])
    if launched != accelerator.num_processes:
        raise ValueError(f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; "
                         "see configs/accelerate for settings of the launcher that work")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    return accelerator


def open_shards(config: TrainConfig) -> tuple[ShardReader, ShardReader]:
    """Readers of the training and the validation split; the same few training tiles twice when overfitting."""
    return open_split(config, "train"), open_split(config, "train" if config.overfit_tiles else "val")


def open_split(config: TrainConfig, split: str) -> ShardReader:
    """A reader of one split, whose samples fit the training."""
    reader = ShardReader(join(config.shards, split), config.overfit_tiles, config.stream.access)
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
    if config.weights:
        network.load_folded(load_model(config.weights))
    else:
        initialize(network, config.initialization, config.seed)
    to_device(network, accelerator.device)
    average = copy.deepcopy(network) if config.optimizer.average_halflife_samples else None
    optimizer = build_optimizer(network, config.optimizer)
    mode, floats = config.compile_mode, as_floats
    if mode:  # without graphs: each part of a batch takes what this gives
        floats = for_one_size(as_floats, lambda batch, _: len(batch.clean), "default")
    border = network.receptive_radius if config.loss_crop else 0
    model, optimizer = accelerator.prepare(Scored(network, border, config.loss, mode, config.luma_weight), optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    timeout = timedelta(minutes=config.timeout_minutes)
    with meeting(timeout):
        group = process_group(timeout)
    tracker_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # a sweep names its trials
    lags = accelerator.device.type in LAGGING
    return Run(accelerator, network, model, average, optimizer, floats, group, lags, tracker_id=tracker_id)


def due(config: TrainConfig, run: Run, every: int, last: int) -> bool:
    """Whether a multiple of `every` samples, or the end, was passed since `last`."""
    at_end = run.samples >= config.total_samples
    return every > 0 and run.samples > last and (run.samples // every > last // every or at_end)
