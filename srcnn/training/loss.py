"""The losses, and that of a batch with the scores of what the network restores, in one module that can be compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from srcnn.data.loader import Batch
from srcnn.models.base import Network
from srcnn.models.unet import to_luma
from srcnn.photos import metrics
from srcnn.runtime.errors import UserError
from srcnn.runtime.plugins import Registry, as_kind

WEIGHT = "weight"  # of a loss, beside its settings
Loss = Callable[..., torch.Tensor]  # (restored, clean, **settings)
LossConfig = str | dict[str, Any]  # a name, or settings by name
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


# Decorator of a loss: (N, C, H, W) twice, restored (not clipped) and clean, to the mean over the tiles, a scalar.
register_loss = LOSSES = Registry[Loss]("loss", num_inputs=2)


@register_loss
def mse(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The mean squared difference."""
    return (restored - clean).square().mean()


@register_loss
def l1(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference."""
    return (restored - clean).abs().mean()


@register_loss
def charbonnier(restored: torch.Tensor, clean: torch.Tensor, epsilon: float = 1e-3) -> torch.Tensor:
    """The mean of sqrt(difference^2 + epsilon^2), epsilon of pixels in [0, 1]: smaller differences count as squares.

    Lai et al., "Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution", CVPR 2017, section 3.3.
    """
    return ((restored - clean).square() + epsilon**2).sqrt().mean()


@register_loss
def ssim(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """1 - SSIM, see `srcnn.photos.metrics.ssim`. Zhao et al., "Loss Functions for Image Restoration with Neural
    Networks", IEEE TCI 3(1), 2017, where it is one of two: {l1: {weight: 0.16}, ssim: {weight: 0.84}} is like theirs.
    """
    return (1 - metrics.ssim(restored, clean).mean()).float()


@register_loss
def fft(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference of the real and imaginary parts of all frequencies.

    Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring" (MIMO-UNet), ICCV 2021, section 3.4, at
    one scale; there it has the weight 0.1 beside l1.
    """
    return torch.view_as_real(torch.fft.fft2(restored - clean)).abs().mean()


def make_loss(config: LossConfig) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of a name, or the weighted sum of several, (restored, clean) -> a scalar.

    Raises:
        UserError: an unknown name or setting, or a weight that is not above 0.
    """
    parts = []
    for name, settings in ({config: {}} if isinstance(config, str) else config).items():
        if not isinstance(settings, dict | None):
            raise UserError(f"loss {name}: {settings!r:.99}: expected its settings, such as {{{WEIGHT}: 0.1}}")
        settings = dict(settings or {})
        weight = as_kind(settings.pop(WEIGHT, 1.0), float, f"loss {name}: {WEIGHT}")
        if weight <= 0:
            raise UserError(f"loss {name}: {WEIGHT} {weight}: expected a number above 0")
        parts.append((weight, partial(LOSSES[name], **LOSSES.settings(name, settings))))
    if not parts:
        raise UserError("loss: expected at least one")
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    return lambda restored, clean: torch.stack([weight * loss(restored, clean) for weight, loss in parts]).sum()


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
        self, network: nn.Module, border: int, loss: LossConfig = "mse", mode: CompileMode | None = None,
        luma_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.border, self.loss, self.luma_weight = network, border, make_loss(loss), luma_weight
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
        inner = crop(restored, self.border), crop(clean, self.border)
        loss = self.loss(*inner) * len(clean)
        if self.luma_weight:
            loss = loss + self.luma_weight * self.loss(*map(to_luma, inner)) * len(clean)
        with torch.no_grad():
            psnr_in, psnr_out = (metrics.tile_psnr(clean, other).sum() for other in (degraded, restored.clamp(0, 1)))
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


def crop(pixels: torch.Tensor, border: int) -> torch.Tensor:
    """Leaves out `border` pixels on every side."""
    return pixels[..., border:-border, border:-border] if border else pixels


def conditions_for(network: Network, batch: Batch) -> list[torch.Tensor]:
    """The arguments of a network after the degraded tiles: a batch's conditions, if it is conditioned and has any."""
    return [batch.conditions] if network.conditioned and batch.conditions is not None else []
