"""What changes the weights: the optimizer, its learning rate over the samples seen, the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from srcnn.models.base import Network
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.plugins import Registry


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. Everything that lasts is counted in samples (tiles), so it holds for any batch and rank count.

    Args:
        name: "adam", "adamw", "sgd", or one of your own (docs/extending.md).
        lr: learning rate of all layers at its highest.
        last_layer_lr_factor: the last layer learns at this times `lr`; the SRCNN paper uses 0.1.
        weight_decay: adamw: decoupled; sgd and adam: added to the gradient.
        momentum: sgd only.
        settings: further ones of this optimizer, such as {betas: [0.9, 0.95]} of adam and adamw.
        schedule: "constant", or "cosine" down to zero at `total_samples`.
        warmup_samples: tiles over which the rate rises from zero in a line.
        clip_norm: gradients longer than this are scaled down to it; 0: never.
        average_halflife_samples: keep an exponential average of the weights with this half-life in tiles, validated
            and saved instead of the last weights; 0 means none.
    """

    name: str = "adam"
    lr: float = 1e-3
    last_layer_lr_factor: float = 1.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    settings: dict[str, Any] = field(default_factory=dict)
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


Groups = list[dict[str, Any]]  # of parameters, with "params" and "lr", as PyTorch's optimizers take them
Maker = Callable[..., torch.optim.Optimizer]  # (groups, config, **settings)
# Decorator of a function that makes an optimizer.
register_optimizer = OPTIMIZERS = Registry[Maker]("optimizer", num_inputs=2)


@register_optimizer
def adam(
    groups: Groups, config: OptimizerConfig, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=betas, eps=eps, weight_decay=config.weight_decay, fused=True)


@register_optimizer
def adamw(
    groups: Groups, config: OptimizerConfig, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=config.weight_decay, fused=True)


@register_optimizer
def sgd(groups: Groups, config: OptimizerConfig, nesterov: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=nesterov,
                           fused=True)


@register_optimizer
def adamw_schedulefree(
    groups: Groups, config: OptimizerConfig, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Defazio et al., "The Road Less Scheduled", NeurIPS 2024: an average of the weights takes the place of a schedule
    that ends at a known time. For the schedule "constant", with `warmup_samples`.
    """
    with extra("schedulefree"):
        from schedulefree import AdamWScheduleFree
    if config.schedule != "constant" or config.average_halflife_samples:
        raise UserError("takes schedule constant, and has an average of its own: leave average_halflife_samples 0")
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, betas=betas, weight_decay=config.weight_decay)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def build_optimizer(model: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over two groups: the first layers, and the last with its own rate. `peak_lr` is kept in each.

    Fused, it is one kernel for all parameters, which reads `found_inf` on the device; on a CPU it takes a third of the
    time. The learning rate is an argument of the kernel: a new one in each step waits for nothing.
    """
    if config.last_layer_lr_factor != 1 and not model.last:
        raise UserError(f"optimizer.last_layer_lr_factor: {model.name} does not say which layer is its last")
    last = list(model.last_layer.parameters()) if model.last else []
    first = [parameter for parameter in model.parameters() if all(parameter is not other for other in last)]
    rates = config.lr, config.lr * config.last_layer_lr_factor
    groups = [{"params": group, "lr": lr, "peak_lr": lr} for group, lr in zip((first, last), rates) if group]
    settings = OPTIMIZERS.settings(config.name, config.settings)
    try:
        optimizer = OPTIMIZERS[config.name](groups, config, **settings)
    except ValueError as error:
        raise UserError(f"optimizer {config.name}: {error}") from error
    complete_state(optimizer)
    return optimizer


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Puts the state where the fused kernels want it: in the memory layout of the parameters, which the one for CPUs
    takes for granted; and momentum that is zero before the first step, which they leave unset if that one is skipped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            is_fused_sgd = group.get("momentum") and group.get("fused")
            if is_fused_sgd and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


def has_own_average(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has weights to validate and save that are not those of its steps, as the package schedulefree does."""
    return hasattr(optimizer, "eval")


@torch.no_grad()
def copy_own_average(optimizer: Any, model: Network, average: Network) -> None:
    """Puts the weights to validate and save into `average`. Those of the steps stay as they are, to the bit."""
    kept = [parameter.clone() for parameter in model.parameters()]
    optimizer.eval()
    average.load_state_dict(model.state_dict())
    optimizer.train()
    for parameter, before in zip(model.parameters(), kept, strict=True):
        parameter.copy_(before)


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the groups of an optimizer hold beside parameters and the learning rate, which is set in each step."""
    return [{key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups]


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
