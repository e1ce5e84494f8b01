"""The settings of a training."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from srcnn.data.loader import LoaderConfig
from srcnn.data.training_pairs import DegradationConfig
from srcnn.models.base import NETWORKS, NetworkConfig, settings_in
from srcnn.models.perceptual import PerceptualName
from srcnn.models.srcnn import ModelConfig
from srcnn.models.unet import UNetConfig
from srcnn.models.weights import Initialization
from srcnn.photos.damages import DAMAGES
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.plugins import NotRegistered, Registry
from srcnn.runtime.storage import is_url
from srcnn.training.loss import LOSSES, CompileMode, LossConfig, make_loss
from srcnn.training.optimizer import OPTIMIZERS, OptimizerConfig

# Tiles at once on a CPU: the activations of one in an SRCNN stay in its cache; a U-Net, which reorders its weights for
# every call, trains 1.05 to 1.6 times as fast with 8.
CPU_MICRO_BATCH_SRCNN, CPU_MICRO_BATCH = 1, 8


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Progress is counted in samples (tiles) over all ranks.

    Args:
        run: folder of the run; started again with the same folder it continues from its latest checkpoint.
        shards: folder with train/ and val/, as `srcnn shards` wrote it, or its http(s), s3, gs or az address.
        plugins: Python files with networks, losses, damages or optimizers of one's own, `--plugins FILE` for each on
            the command line. A config does not load them: in one it is a record, {file name: SHA-256}, of a run's.
        model: the network, an SRCNN, unless `unet` has widths, or `network` is given.
        unet: a U-Net in place of it.
        network: any registered network in place of both, {name: NAME, ...} with its settings.
        initialization: start of the weights: "kaiming" (robust), "pytorch" (the source's), "paper". A network of one's
            own may decide for itself.
        centred: subtract 0.5 from pixels before the first layer while training; folded into its bias when saved. Of
            networks that say which their first layer is.
        weights: start from these weights (file, run folder or shipped name) instead of random ones; empty: random.
        seed: decides the start, the order of the samples and their flips.
        total_samples: length of the training, tiles.
        batch_size: tiles of an optimizer step over all ranks, whatever their number; 0: batch_size_per_process of each.
        batch_size_per_process: tiles a rank contributes to each optimizer step, where batch_size is 0.
        micro_batch_size: tiles through the network at once; gradients accumulate over the batch. 0: by the device.
        augment: flips and 90-degree rotations, the same for both tiles of a pair.
        degradation: how training pairs are made of shards whose training samples are clean tiles alone.
        loss: "mse", the mean over the pixels of the squared difference; "l1", of the absolute one; "charbonnier", of
            one that is smooth at zero and else absolute; "ssim", 1 - SSIM; "fft", "l1" of the frequencies. Or a sum of
            several, with weights and settings: {l1: {}, fft: {weight: 0.1}}. The validation's is always "mse".
        luma_weight: that many times the same loss of the luma is added to it, for networks of three channels.
        loss_crop: leave out of the loss the pixels that padding reaches (restoring with a halo never uses them).
        mixed_precision: "no", "bf16" or "fp16"; "auto": bf16 where the device is faster with it; null takes what
            `accelerate launch` sets.
        compile: torch.compile the network with its loss, and the way from bytes to its input: true or "default",
            "reduce-overhead" (CUDA graphs), "max-autotune" (graphs, and kernels picked by trying: minutes); false: not.
        stream: the order of the samples and how they are read.
        optimizer: what changes the weights.
        log_every_samples: tiles between two log lines.
        validate_every_samples: tiles between two validations, each followed by a checkpoint.
        metrics: any of "lpips" and "dists", perceptual distances that validations measure too (the extra `metrics`).
        save_every_samples: tiles between two checkpoints; 0: with the validations only.
        save_every_minutes: at the latest so often a log line is followed by a checkpoint; 0: never for the time.
        keep_checkpoints: the latest ones kept; the best is kept beside them.
        on_save_failure: what to do when a checkpoint cannot be written: "continue" logs it and tries again with the
            next one, "stop" ends the run.
        max_skipped_steps: steps in a row that may be left out because loss or gradient is not finite; then it stops.
        timeout_minutes: how long ranks wait for each other, as for one that hangs, and a stop for a disk that does not
            answer; longer than a validation takes.
        fresh: start over; what the run folder holds is kept beside it under another name.
        trackers: any of "wandb", "tensorboard", "mlflow"; metrics.jsonl is always written.
        alerts: wandb alerts for a loss that is not finite, a stop, a failure, the end.
        num_pictures: pairs shown to the trackers at each validation.
        upload_best: send the best checkpoint to wandb as an artifact at the end.
        overfit_tiles: train and validate on the first so many training tiles only, to see that the loop learns; 0: off.
    """

    COMMON: ClassVar[dict[str, tuple[str, ...]]] = {"settings that most trainings need": (
        "shards", "run", "total_samples", "batch_size", "optimizer.lr", "model.kernels", "unet.widths", "weights",
        "mixed_precision", "trackers")}
    SUBJECTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "the network: an SRCNN, with unet.widths a U-Net, or any other": ("model", "unet", "network", "plugins",
                                                                          "initialization", "centred"),
        "batches and their loss": ("batch_size_per_process", "micro_batch_size", "augment", "seed", "loss",
                                   "luma_weight", "loss_crop", "compile"),
        "the optimizer": ("optimizer",),
        "validation, checkpoints, failures": (
            "log_every_samples", "validate_every_samples", "metrics", "save_every_samples", "save_every_minutes",
            "keep_checkpoints", "on_save_failure", "max_skipped_steps", "timeout_minutes", "fresh", "overfit_tiles"),
        "what the trackers show": ("alerts", "num_pictures", "upload_best"),
        "how shards are read": ("stream",),
        "pairs made of clean tiles while training (docs/degradations.md)": ("degradation",),
    }

    run: str = "runs/srcnn"
    shards: str = "data/shards"
    plugins: dict[str, str] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    network: dict[str, Any] = field(default_factory=dict)
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
    loss: LossConfig = "mse"
    luma_weight: float = 0.0
    loss_crop: bool = False
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    compile: bool | CompileMode = False
    stream: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every_samples: int = 6400
    validate_every_samples: int = 64_000
    metrics: list[PerceptualName] = field(default_factory=list)
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
        object.__setattr__(self, "run", os.path.expanduser(self.run))
        if is_url(self.run):
            raise UserError(f"run {without_credentials(self.run)}: expected a folder; a run is not written to a URL")
        for key in ("total_samples", "batch_size_per_process", "log_every_samples", "validate_every_samples",
                    "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} {getattr(self, key)}: expected at least 1")
        for key in ("batch_size", "micro_batch_size", "overfit_tiles", "num_pictures", "save_every_samples",
                    "save_every_minutes", "max_skipped_steps", "luma_weight"):
            if getattr(self, key) < 0:
                raise UserError(f"{key} {getattr(self, key)}: cannot be negative")
        if self.timeout_minutes <= 0:
            raise UserError(f"timeout_minutes {self.timeout_minutes}: must be above zero")
        self._find_what_is_named()
        if self.unet.widths and (self.model != ModelConfig() or self.initialization == "paper"):
            raise UserError("unet.widths: a U-Net has no use for the settings of model, nor for the paper's "
                            "initialization; leave them out, or unet")
        if self.network and (self.model, self.unet) != (ModelConfig(), UNetConfig()):
            raise UserError("network: in place of model and unet; leave them out, or network")
        channels = self.architecture.channels
        if self.luma_weight and channels != 3:
            raise UserError(f"luma_weight {self.luma_weight}: the network has {channels} channels, not 3")
        if self.degrades and self.overfit_tiles:
            raise UserError(f"overfit_tiles {self.overfit_tiles}: takes pairs of the shards; leave degradation out")
        if self.degrades and self.stream.resident == "device":
            raise UserError("stream.resident device: pairs are made on the host (degradation): take host, or no")

    def _find_what_is_named(self) -> None:
        """Finds network, loss, optimizer and damages in their registries, and notes the plugins that registered them.

        Raises:
            UserError: there is no such thing, or it has no such setting.
        """
        used: list[tuple[Registry[Any], str]] = []
        if self.network:
            used.append((NETWORKS, str(self.network.get("name", ""))))
        used += [(LOSSES, name) for name in ([self.loss] if isinstance(self.loss, str) else self.loss)]
        used += [(OPTIMIZERS, self.optimizer.name), *((DAMAGES, name) for name in self.degradation.damages)]
        try:
            for registry, name in used:
                registry[name]
        except NotRegistered as error:
            named = f"; the config was written with the plugins {', '.join(self.plugins):.300}" if self.plugins else ""
            raise UserError(f"{error}{named}") from error
        make_loss(self.loss)
        OPTIMIZERS.settings(self.optimizer.name, self.optimizer.settings)
        origins = [registry.origins.get(name, {}) for registry, name in used]
        object.__setattr__(self, "plugins", {file: sha256 for each in origins for file, sha256 in each.items()})

    @property
    def degrades(self) -> bool:
        """Whether pairs are made while training."""
        return self.degradation.crop_pixels > 0

    def pair_shape(self, tile_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the training pairs, (H, W) or (H, W, 3), where the shards' tiles have `tile_shape`.

        Raises:
            UserError: these are too small.
        """
        return self.degradation.pair_shape(tile_shape) if self.degrades else tile_shape

    @cached_property
    def architecture(self) -> NetworkConfig:
        """The config of what is trained."""
        if not self.network:
            return self.unet if self.unet.widths else self.model
        name = str(self.network.get("name", ""))
        config: NetworkConfig = NETWORKS[name].config_class(**NETWORKS.settings(name, settings_in(self.network)))
        return config

    @property
    def compile_mode(self) -> CompileMode | None:
        """How to compile; None: not."""
        return "default" if self.compile is True else self.compile or None

    def global_batch_size(self, num_ranks: int) -> int:
        """Tiles of an optimizer step over all ranks. Raises UserError where some rank would have none."""
        size = self.batch_size or self.batch_size_per_process * num_ranks
        if size < num_ranks:
            raise UserError(f"batch_size {size}: expected at least one tile for each of the {num_ranks} ranks")
        return size

    def tiles_at_once(self, device_type: str, num_tiles: int) -> int:
        """How many of a rank's `num_tiles` of a step go through the network together."""
        on_cpu = CPU_MICRO_BATCH_SRCNN if isinstance(self.architecture, ModelConfig) else CPU_MICRO_BATCH
        return min(num_tiles, self.micro_batch_size or (on_cpu if device_type == "cpu" else num_tiles))
