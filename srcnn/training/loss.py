"""The loss of a batch with the scores of what the network restores, in one module that can be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from srcnn.data.loader import Batch
from srcnn.models.base import Network
from srcnn.photos.metrics import luma, tile_psnr

CHARBONNIER = 1e-3  # of pixels in [0, 1]: smaller differences count as squares
LossName = Literal["mse", "l1", "charbonnier"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


class LossAndScores(nn.Module):
    """A network with its loss and scores, so that nothing of a batch's size has to leave a compiled graph.

    (clean, degraded), float (N, C, H, W) in [0, 1] -> the losses of the tiles without `border` pixels on each side,
    summed, float32 (), to go back from; and float64 (4,), what a `Meter` sums: PSNR in, PSNR out (dB, of
    pixels clipped to [0, 1]), that loss, 1, each over the tiles. A conditioned network is given the conditions too,
    float32 (N, CONDITION_SIZE).

    Args:
        luma_weight: that many times the loss of the luma is added to that of the pixels, of three channels.
    """

    def __init__(
        self, network: nn.Module, border: int, loss: LossName = "mse", mode: CompileMode | None = None,
        luma_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.border, self.loss, self.luma_weight = network, border, loss, luma_weight
        # On the network's device: its gradient travels with the network's, see step.py.
        self.stop_flag = nn.Parameter(torch.zeros((), device=next(network.parameters()).device))
        self.score = compile_static_shape(self._score, lambda clean, *_: len(clean), mode) if mode else self._score

    def forward(self, clean: torch.Tensor, degraded: torch.Tensor, *conditions: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor
    ]:
        return self.score(clean, degraded, *conditions)

    def _score(self, clean: torch.Tensor, degraded: torch.Tensor, *conditions: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor
    ]:
        restored = self.network(degraded, *conditions).float()
        difference = crop(restored - clean, self.border)
        loss = pixel_loss(difference, self.loss) * len(clean)
        if self.luma_weight:
            loss = loss + self.luma_weight * pixel_loss(luma(difference), self.loss) * len(clean)
        with torch.no_grad():
            psnr_in, psnr_out = (tile_psnr(clean, other).sum() for other in (degraded, restored.clamp(0, 1)))
            return loss, torch.stack([psnr_in, psnr_out, loss.double(), torch.full_like(psnr_in, len(clean))])


def compile_static_shape(
    function: Callable[..., Any], size_of: Callable[..., int], mode: CompileMode
) -> Callable[..., Any]:
    """The function, compiled for the first batch size it gets; batches of another size, as the last part of a batch may
    be, run uncompiled. Where the mode makes CUDA graphs, the next call overwrites the results of this one.
    """
    compiled = torch.compile(function, dynamic=False, mode=mode)
    sizes: list[int] = []

    def call(*arguments: Any) -> Any:
        size = size_of(*arguments)
        sizes[:] = sizes or [size]
        if size != sizes[0]:
            return function(*arguments)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(*arguments)

    return call


def pixel_loss(difference: torch.Tensor, name: LossName) -> torch.Tensor:
    """The mean over pixels in [0, 1] of what their difference costs.

    "charbonnier" is sqrt(difference^2 + 0.001^2): Lai et al., "Deep Laplacian Pyramid Networks for Fast and Accurate
    Super-Resolution", CVPR 2017, section 3.3.
    """
    if name == "charbonnier":
        return (difference.square() + CHARBONNIER**2).sqrt().mean()
    return difference.abs().mean() if name == "l1" else difference.square().mean()


def crop(pixels: torch.Tensor, border: int) -> torch.Tensor:
    """Leaves out `border` pixels on every side."""
    return pixels[..., border:-border, border:-border] if border else pixels


def conditions_for(network: Network, batch: Batch) -> list[torch.Tensor]:
    """The arguments of a network after the degraded tiles: a batch's conditions, if it is conditioned and has any."""
    return [batch.conditions] if network.conditioned and batch.conditions is not None else []
