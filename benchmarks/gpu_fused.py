"""A fused kernel beside the compiled network: forward, forward and backward, the whole step; and how far it is off."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_part import Contestant, Part, Race, is_installed
from benchmarks.gpu_step import BATCH, BEST_EAGER, COMPILE_SECONDS, batch_of, build
from srcnn.model import SRCNN, initialize, to_device
from srcnn.products import full_precision
from srcnn.transforms import to_float_batch

MODULE = "benchmarks.fused_kernel"
NUM_COMPARED = 8  # tiles


def measure(part: Part) -> None:
    if not is_installed(MODULE):
        part.note(skipped=f"there is no {MODULE}")
        return
    kernel = importlib.import_module(MODULE)
    if not kernel.fused_available(part.device):
        part.note(skipped=f"{MODULE} is not for {part.device}")
        return
    batch = batch_of(part, 4 if part.quick else BATCH)
    part.attempt("its errors", lambda: part.note(errors=errors(part, kernel, to_float_batch(batch))), COMPILE_SECONDS)
    race = Race(part)
    pixels = to_float_batch(batch)[1]
    networks: dict[str, Callable[[], nn.Module]] = {
        "eager": lambda: network_of(part), "fused": lambda: kernel.FusedSRCNN(network_of(part)).to(part.device),
        "compiled": lambda: torch.compile(network_of(part), mode="default", dynamic=False),
    }  # fmt: skip
    for name, make in networks.items():
        race.enter(f"forward, {name}", lambda: forward(part, make(), pixels), COMPILE_SECONDS)
        race.enter(f"forward and backward, {name}", lambda: both(part, make(), pixels), COMPILE_SECONDS)
    race.rounds(2)
    race.leave(*race.running)
    graph = part.device.type == "cuda"
    steps = {"step, compiled": (replace(BEST_EAGER, mode="default", graph=graph), None),
             "step, fused": (replace(BEST_EAGER, graph=graph), kernel.FusedSRCNN)}
    for name, (rung, wrap) in steps.items():
        race.enter(name, lambda: build(rung, batch, part.device, wrap(network_of(part)) if wrap else None),
                   COMPILE_SECONDS)
    race.rounds(2)


def network_of(part: Part) -> SRCNN:
    model = SRCNN()
    initialize(model, "pytorch", 0)
    return to_device(model, part.device)


def forward(part: Part, network: nn.Module, given: torch.Tensor) -> Contestant:
    """bfloat16 inside, by autocast where the network leaves that to it."""
    def step() -> None:
        with torch.inference_mode(), torch.autocast(part.device.type, torch.bfloat16):
            network(given)

    return Contestant(step, len(given), tried=True)


def both(part: Part, network: nn.Module, given: torch.Tensor) -> Contestant:
    """With the gradients of the weights of a mean square."""
    def step() -> None:
        with torch.autocast(part.device.type, torch.bfloat16):
            restored = network(given)
        restored.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return Contestant(step, len(given), tried=True)


def errors(part: Part, kernel: Any, pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Relative errors against the plain network in float32: of what comes out, and of the gradient of each weight;
    those of the plain network under bfloat16 autocast beside them.
    """
    clean, degraded = (tiles[:NUM_COMPARED] for tiles in pairs)

    def run(network: nn.Module, given: torch.Tensor, autocast: bool = False) -> dict[str, torch.Tensor]:
        with torch.autocast(part.device.type, torch.bfloat16, enabled=autocast):
            restored = network(given)
        (restored.float() - clean).square().mean().backward()
        return {"output": restored.detach()} | {name: weights.grad for name, weights in network.named_parameters()}

    with full_precision():
        exact = run(network_of(part), degraded)
    others = {"plain, bf16 autocast": run(network_of(part), degraded, autocast=True),
              "fused": run(kernel.FusedSRCNN(network_of(part)).to(part.device), degraded)}
    return {name: {key: relative(found[key], value) for key, value in exact.items() if key in found}
            for name, found in others.items()}


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Length of the difference, as a part of the exact one's."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
