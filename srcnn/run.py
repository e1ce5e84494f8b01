"""A training run: its settings, its state, its start, and how it goes to the disk and comes back."""

from __future__ import annotations

import copy
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from srcnn import checkpoint, files
from srcnn.config import plain, to_yaml
from srcnn.feed import process_group
from srcnn.model import SRCNN, Initialization, ModelConfig, computes_bf16, initialize, load_model, to_device
from srcnn.optimize import OptimizerConfig, build_optimizer
from srcnn.products import keep_freed_memory
from srcnn.reader import ShardReader
from srcnn.storage import join
from srcnn.stream import Batch, StreamConfig, StreamState
from srcnn.validate import as_floats

CPU_MICRO_BATCH = 1  # tiles whose activations stay in a CPU's cache: faster than the whole batch at once


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Progress is counted in samples (tiles) over all ranks.

    Args:
        run: folder of the run; started again with the same folder it continues from its latest checkpoint.
        shards: folder with train/ and val/, as `make shards` wrote it, or its http(s), s3, gs or az address.
        model: the network.
        initialization: start of the weights: "kaiming" (robust), "pytorch" (the source's), "paper".
        centred: subtract 0.5 from pixels before the first layer while training; folded into its bias when saved.
        weights: start from these weights (file, run folder or shipped name) instead of random ones; empty: random.
        seed: decides the start, the order of the samples and their flips.
        total_samples: length of the training, tiles.
        batch_size: tiles of an optimizer step over all ranks, whatever their number; 0: batch_size_per_process of each.
        batch_size_per_process: tiles a rank contributes to each optimizer step, where batch_size is 0.
        micro_batch_size: tiles through the network at once; gradients accumulate over the batch. 0: by the device.
        augment: flips and 90-degree rotations, the same for both tiles of a pair.
        loss_crop: leave out of the loss the pixels that padding reaches (restoring with a halo never uses them).
        mixed_precision: "no", "bf16" or "fp16"; "auto": bf16 where the device computes it natively; null takes what
            `accelerate launch` was told.
        compile: torch.compile the network, and the way from bytes to its input.
        stream: the order of the samples and how they are read.
        optimizer: what changes the weights.
        log_every_samples: tiles between two log lines.
        validate_every_samples: tiles between two validations, each followed by a checkpoint.
        keep_checkpoints: the latest ones kept; the best is kept beside them.
        trackers: any of "wandb", "tensorboard"; metrics.jsonl is always written.
        num_pictures: pairs shown to the trackers at each validation.
        upload_best: send the best checkpoint to wandb as an artifact at the end.
        overfit_tiles: train and validate on the first so many training tiles only, to see that the loop learns; 0: off.
    """

    run: str = "runs/srcnn"
    shards: str = "data/shards"
    model: ModelConfig = field(default_factory=ModelConfig)
    initialization: Initialization = "kaiming"
    centred: bool = True
    weights: str = ""
    seed: int = 0
    total_samples: int = 640_000
    batch_size: int = 0
    batch_size_per_process: int = 32
    micro_batch_size: int = 0
    augment: bool = True
    loss_crop: bool = False
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    compile: bool = False
    stream: StreamConfig = field(default_factory=StreamConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every_samples: int = 6400
    validate_every_samples: int = 64_000
    keep_checkpoints: int = 2
    trackers: list[Literal["wandb", "tensorboard"]] = field(default_factory=lambda: ["wandb"])
    num_pictures: int = 4
    upload_best: bool = False
    overfit_tiles: int = 0

    def __post_init__(self) -> None:
        for key in ("total_samples", "batch_size_per_process", "log_every_samples", "validate_every_samples",
                    "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} {getattr(self, key)}: expected at least 1")
        if min(self.batch_size, self.micro_batch_size, self.overfit_tiles, self.num_pictures) < 0:
            raise ValueError("batch_size, micro_batch_size, overfit_tiles and num_pictures cannot be negative")

    def global_batch_size(self, num_ranks: int) -> int:
        """Tiles of an optimizer step over all ranks. Raises ValueError where some rank would have none."""
        size = self.batch_size or self.batch_size_per_process * num_ranks
        if size < num_ranks:
            raise ValueError(f"batch_size {size}: expected at least one tile for each of the {num_ranks} ranks")
        return size

    def tiles_at_once(self, device_type: str, num_tiles: int) -> int:
        """How many of a rank's `num_tiles` of a step go through the network together."""
        return min(num_tiles, self.micro_batch_size or (CPU_MICRO_BATCH if device_type == "cpu" else num_tiles))

    def identity(self, state: StreamState) -> dict[str, Any]:
        """What must stay the same when a run continues."""
        keys = ("model", "initialization", "centred", "weights", "seed", "overfit_tiles")
        kept = {key: plain(asdict(self)[key]) for key in keys}
        stream = {"shards": state.manifest_hash, "order": state.order, "order_version": state.order_version}
        return kept | {"optimizer.name": self.optimizer.name} | stream


@dataclass
class Run:
    """Everything that changes while a run goes on."""

    accelerator: Accelerator
    network: SRCNN
    model: torch.nn.Module
    average: SRCNN | None
    optimizer: Any
    as_floats: Callable[[Batch, bool], tuple[torch.Tensor, torch.Tensor]]
    group: Any
    step: int = 0
    skipped_steps: int = 0
    samples: int = 0
    saved_samples: int = 0
    best_psnr: float = float("-inf")
    values: dict[str, float] = field(default_factory=dict)
    tracker_id: str = ""

    @property
    def result(self) -> SRCNN:
        """The weights that are validated and saved."""
        return self.average or self.network


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the processes. The network is tiny: its gradients are one bucket, all-reduced in place."""
    found = torch.accelerator.current_accelerator(check_available=True)
    # Accelerate takes the ranks of a machine without an accelerator for single processes unless told. MPS, which
    # has no float64 for exact sums, counts as none.
    device = torch.device("cpu") if found is None or found.type == "mps" else found
    if device.type == "cpu":
        keep_freed_memory()
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "no"
    launched = int(os.environ.get("WORLD_SIZE", 1))
    share = math.ceil(config.global_batch_size(launched) / launched)
    # With gradients accumulated a static graph crashes or, worse, goes without the all-reduce (PyTorch #187732).
    static = config.tiles_at_once(device.type, share) == share
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[parallel])
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
    """A reader of one split, whose tiles fit the network."""
    reader = ShardReader(join(config.shards, split), config.overfit_tiles, config.stream.access)
    channels = 3 if len(reader.manifest.tile_shape) == 3 else 1
    if channels != config.model.channels:
        raise ValueError(f"{config.shards}: tiles have {channels} channels, model.channels is {config.model.channels}")
    border = config.model.receptive_radius if config.loss_crop else 0
    side, shortest = reader.manifest.tile_shape[0], max(11, 2 * border + 1)
    if side < shortest:
        needed = f"this network and its scores need {shortest} at least"
        raise ValueError(f"{config.shards}: tiles of {side} pixels; {needed}")
    return reader


def stream_state(config: TrainConfig, run: Run, reader: ShardReader) -> StreamState:
    """Where the stream stands: after the samples that the optimizer has used."""
    order = str(config.stream.order_of(config.seed, reader))
    return StreamState(config.seed, run.samples // reader.num_samples, run.samples, reader.manifest.hash(), order)


def start_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Network, average and optimizer at their start; every rank draws the same weights."""
    network = SRCNN(config.model, config.centred)
    if config.weights:
        network.load_folded(load_model(config.weights))
    else:
        initialize(network, config.initialization, config.seed)
    to_device(network, accelerator.device)
    average = copy.deepcopy(network) if config.optimizer.average_halflife_samples else None
    optimizer = build_optimizer(network, config.optimizer)
    compiled, floats = (torch.compile(network), torch.compile(as_floats)) if config.compile else (network, as_floats)
    model, optimizer = accelerator.prepare(compiled, optimizer)
    group = process_group()
    return Run(accelerator, network, model, average, optimizer, floats, group, tracker_id=uuid.uuid4().hex[:8])


def save_checkpoint(config: TrainConfig, run: Run, reader: ShardReader, validated: bool = True) -> None:
    """The main process writes a checkpoint; all wait for it. The best is the validated one of the highest PSNR."""
    accelerator = run.accelerator
    if not validated and run.samples == run.saved_samples:
        return
    is_best = validated and run.values["val/psnr"] > run.best_psnr
    run.best_psnr = max(run.best_psnr, run.values["val/psnr"]) if validated else run.best_psnr
    if accelerator.is_main_process:
        stream = stream_state(config, run, reader)
        training = {
            "step": run.step,
            "skipped_steps": run.skipped_steps,
            "best_psnr": run.best_psnr,
            "is_best": is_best,
            "values": run.values,
            "tracker_id": run.tracker_id,
            "stream": asdict(stream),
            "identity": config.identity(stream),
            "config": plain(asdict(config)),
            "network": run.network.state_dict(),
            "average": run.average.state_dict() if run.average is not None else None,
            "optimizer": run.optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        about = {key: f"{value:.4f}" for key, value in run.values.items()} | {"samples": str(run.samples)}
        checkpoint.save(Path(config.run), run.step, run.result, training, about, is_best, config.keep_checkpoints)
    run.saved_samples = run.samples
    accelerator.wait_for_everyone()


def continue_run(config: TrainConfig, run: Run, reader: ShardReader) -> None:
    """Takes up the latest checkpoint of the run folder, if there is one, on any number of ranks.

    Raises:
        ValueError: the checkpoint is of another network, seed or data, or the ranks do not all find it.
    """
    if run.accelerator.is_main_process:
        Path(config.run, "checkpoints").mkdir(parents=True, exist_ok=True)
    run.accelerator.wait_for_everyone()
    folder = checkpoint.latest(Path(config.run))
    if folder is not None:
        state = checkpoint.load_training(folder)
        check_identity(config, state["identity"], config.identity(stream_state(config, run, reader)))
        load_state(run, state)
        if run.accelerator.is_main_process and state["is_best"]:
            checkpoint.mark_best(Path(config.run), folder, run.result)  # a kill may have come before it
    found = run.accelerator.gather(torch.tensor([run.samples], device=run.accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise ValueError(f"{config.run}: the ranks find checkpoints after {found} tiles; put it where all nodes see it")
    if run.accelerator.is_main_process:
        with files.atomic_file(Path(config.run, "config.yaml")) as file:
            file.write(to_yaml(config).encode())


def load_state(run: Run, state: dict[str, Any]) -> None:
    """Puts a checkpoint's training state into the run; the optimizer's settings stay those of the config."""
    run.network.load_state_dict(state["network"])
    if run.average is not None:
        run.average.load_state_dict(state["average"] or state["network"])
    settings = [
        {key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups
    ]
    run.optimizer.load_state_dict(state["optimizer"])
    for group, setting in zip(run.optimizer.param_groups, settings, strict=True):
        group.update(setting)
    if run.accelerator.scaler and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.samples = state["step"], state["stream"]["consumed_samples"]
    run.best_psnr, run.values, run.tracker_id = state["best_psnr"], state["values"], state["tracker_id"]
    run.skipped_steps, run.saved_samples = state["skipped_steps"], run.samples


def check_identity(config: TrainConfig, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ValueError, with both values, where a run would continue as another one."""
    for key, value in wanted.items():
        if saved.get(key) != value:
            raise ValueError(
                f"{config.run} was begun with {key} {saved.get(key)}, not {value}; choose another run folder (--run), "
                "or the old setting"
            )
