"""What changes the weights: the optimizer, its learning rate over the samples seen, the average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from srcnn.models.base import Network
from srcnn.runtime.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. Everything that lasts is counted in samples (tiles), so it holds for any batch and rank count.

    Args:
        name: "adam", "adamw" or "sgd".
        lr: learning rate of all layers at its highest.
        last_layer_lr_factor: the last layer learns at this times `lr`; the SRCNN paper uses 0.1.
        weight_decay: adamw: decoupled; sgd and adam: added to the gradient.
        momentum: sgd only.
        schedule: "constant", or "cosine" down to zero at `total_samples`.
        warmup_samples: tiles over which the rate rises from zero in a line.
        clip_norm: gradients longer than this are scaled down to it; 0: never.
        average_halflife_samples: keep an exponential average of the weights with this half-life in tiles, validated
            and saved instead of the last weights; 0 means none.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    last_layer_lr_factor: float = 1.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_samples: int = 0
    clip_norm: float = 0.0
    average_halflife_samples: int = 0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.last_layer_lr_factor <= 0:
            raise UserError(f"optimizer.lr {self.lr} and last_layer_lr_factor must be above zero")
        if min(self.weight_decay, self.momentum, self.warmup_samples, self.clip_norm) < 0:
            raise UserError("optimizer: weight_decay, momentum, warmup_samples and clip_norm cannot be negative")
        if self.average_halflife_samples < 0:
            raise UserError("optimizer.average_halflife_samples cannot be negative; 0 means no average")


def build_optimizer(model: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over two groups: the first layers, and the last with its own rate. `peak_lr` is kept in each.

    Fused, it is one kernel for all parameters, which reads `found_inf` on the device; on a CPU it takes a third of the
    time. The learning rate is an argument of the kernel: a new one in each step waits for nothing.
    """
    last_lr = config.lr * config.last_layer_lr_factor
    last = list(model.last_layer.parameters())
    first = [parameter for parameter in model.parameters() if all(parameter is not other for other in last)]
    groups = [
        {"params": first, "lr": config.lr, "peak_lr": config.lr},
        {"params": last, "lr": last_lr, "peak_lr": last_lr},
    ]
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
    else:
        kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        optimizer = kind(groups, weight_decay=config.weight_decay, fused=True)
    complete_state(optimizer)
    return optimizer


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Puts the state where the fused kernels want it: in the memory layout of the parameters, which the one for CPUs
    takes for granted; and momentum that is zero before the first step, which they leave unset if that one is skipped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("momentum") and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


def lr_factor(config: OptimizerConfig, samples: int, total_samples: int) -> float:
    """The share (0..1) of the peak learning rate for the step that begins after `samples` tiles."""
    warmup = min(1.0, (samples + 1) / config.warmup_samples) if config.warmup_samples else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, samples / total_samples)))


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def update_average(average: Network, model: Network, config: OptimizerConfig, samples: int, new_samples: int) -> None:
    """Moves the averaged weights towards the model's after a step that brought the tiles seen to `samples`.

    The half-life is at most a tenth of the tiles seen, so that the random start is soon forgotten.
    """
    halflife = min(config.average_halflife_samples, samples / 10)
    average_parameters = get_ema_multi_avg_fn(0.5 ** (new_samples / halflife))  # type: ignore[no-untyped-call]
    average_parameters(list(average.parameters()), list(model.parameters()), None)
