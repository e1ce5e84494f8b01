"""The start of a training: processes, process group and precision, and the shards of both splits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import Manifest
from srcnn.models.base import make_network
from srcnn.models.device import device_here, prefers_bf16, raise_malloc_threshold
from srcnn.runtime.distributed import rejoin_after_restart, rendezvous
from srcnn.runtime.errors import UserError
from srcnn.runtime.storage import join
from srcnn.training.config import TrainConfig

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
PRECISIONS = ("no", "bf16", "fp16")
NO_VALUES, YES_VALUES = ("", "0", "n", "no", "f", "false", "off", "none"), ("1", "y", "yes", "t", "true", "on")
OTHERS = "only data-parallel ranks on CPUs and CUDA GPUs are supported: launch with a file of configs/accelerate"
# Settings by the environment that this training does not follow, and what to do instead.
UNSUPPORTED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "unset it: micro_batch_size is how many tiles of a batch are accumulated",
    "ACCELERATE_DYNAMO_BACKEND": "unset it, and set compile",
    "ACCELERATE_TORCH_DEVICE": "unset it; CUDA_VISIBLE_DEVICES chooses GPUs, ACCELERATE_USE_CPU=true the CPU",
    "ACCELERATE_DOWNCAST_BF16": "unset it: it is for TPUs",
    "XLA_USE_BF16": "unset it: it is for TPUs",
    "XLA_DOWNCAST_BF16": "unset it: it is for TPUs",
}


def unsupported_settings(env: Mapping[str, str] = os.environ) -> list[str]:
    """The settings in the environment, as from `accelerate launch`, that this training does not support: why not."""
    found = []
    for name, value in env.items():
        is_off = value.lower() in NO_VALUES or name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" and value == "1"
        if name in UNSUPPORTED and not is_off:
            found.append(f"{name}={value}: {UNSUPPORTED[name]}")
        elif name == "ACCELERATE_MIXED_PRECISION" and value.lower() not in PRECISIONS:
            found.append(f"{name}={value}: expected one of {', '.join(PRECISIONS)}")
        elif name == "ACCELERATE_USE_CPU" and value.lower() not in NO_VALUES + YES_VALUES:
            found.append(f"{name}={value}: expected true or false")
        elif name.startswith("ACCELERATE_USE_") and name != "ACCELERATE_USE_CPU" and not is_off:
            found.append(f"{name}={value}: {OTHERS}")  # FSDP, DEEPSPEED, MEGATRON_LM, ..., and what may come
    if (device := training_device(env).type) not in ("cpu", "cuda"):
        found.append(f"device {device}: {OTHERS}; ACCELERATE_USE_CPU=true trains on the CPU")
    return found


def training_device(env: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this process's rank, without its number."""
    return torch.device("cpu") if env.get("ACCELERATE_USE_CPU", "").lower() in YES_VALUES else device_here()


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes. The network is tiny: its gradients are one bucket, all-reduced in place.

    Raises:
        UserError: the launcher or the environment wants what this training does not support.
    """
    if problems := unsupported_settings():
        raise UserError("; ".join(problems))
    device = training_device()
    if device.type == "cpu":
        raise_malloc_threshold()
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if prefers_bf16(config.architecture, device) else "no"
    launched = int(os.environ.get("WORLD_SIZE", 1))
    share = math.ceil(config.global_batch_size(launched) / launched)
    # With gradients accumulated a static graph crashes or, worse, goes without the all-reduce (PyTorch #187732).
    static = config.tiles_at_once(device.type, share) == share
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static)
    timeout = timedelta(minutes=config.timeout_minutes)
    waiting = InitProcessGroupKwargs(timeout=timeout)
    with rendezvous(timeout):
        rejoin_after_restart(device.type, timeout)
        # Without `cpu`, Accelerate takes the ranks of a machine without an accelerator for single processes. The plugin
        # keeps it from reading ACCELERATE_GRADIENT_ACCUMULATION_STEPS: step.py accumulates itself.
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision,
                                  gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                                  kwargs_handlers=[parallel, waiting])
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(f"Accelerate is configured for {accelerator.distributed_type.value}: {OTHERS}")
    if launched != accelerator.num_processes:
        raise UserError(f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; "
                         "see configs/accelerate for settings of the launcher that work")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    return accelerator


def open_shards(config: TrainConfig) -> tuple[ShardDataset, ShardDataset]:
    """The datasets of both splits; the same few training tiles twice when overfitting."""
    return open_split(config, "train"), open_split(config, "train" if config.overfit_tiles else "val")


def open_split(config: TrainConfig, split: str) -> ShardDataset:
    """The dataset of one split, whose samples fit the training."""
    dataset = ShardDataset(join(config.shards, split), config.overfit_tiles, config.stream.access)
    check_samples(config, split, dataset.manifest, dataset.location)
    return dataset


def check_samples(config: TrainConfig, split: str, manifest: Manifest, location: str) -> None:
    """Raises UserError where a split does not hold what this training needs."""
    is_degraded = config.degrades and split == "train"
    if manifest.is_clean_only and not is_degraded:
        hint = "set degradation.crop_pixels and degradation.damages" if split == "train" else "validation needs pairs"
        raise UserError(f"{location}: holds clean tiles alone: {hint} (docs/degradations.md)")
    if is_degraded and not manifest.is_clean_only:
        raise UserError(f"{location}: holds pairs, degraded already: leave degradation out, or make the shards with "
                         "contents clean (docs/degradations.md)")
    if is_degraded:
        config.degradation.check(manifest.tile_shape)
    check_tiles(config, config.pair_shape(manifest.tile_shape) if is_degraded else manifest.tile_shape, location)


def check_tiles(config: TrainConfig, tile_shape: tuple[int, ...], location: str) -> None:
    """Raises UserError where tiles of this shape, (H, W) or (H, W, 3), do not fit the network and its scores."""
    channels = 3 if len(tile_shape) == 3 else 1
    if channels != config.architecture.channels:
        key = f"{'network' if config.network else 'unet' if config.unet.widths else 'model'}.channels"
        raise UserError(f"{location}: tiles have {channels} channels, {key} is {config.architecture.channels}")
    border = 0
    if config.loss_crop:
        with torch.device("meta"):
            border = make_network(config.architecture).receptive_radius
    side, shortest = tile_shape[0], max(11, 2 * border + 1)
    if side < shortest:
        hint = f" ({border} on each side for loss_crop: turn it off, or make larger tiles)" if border else ""
        raise UserError(f"{location}: tile size is {side} pixels, the network and its scores need {shortest}{hint}")
