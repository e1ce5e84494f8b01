"""SRCNN 9-1-5 as the source project has it, and the paper's 9-3-5 and 9-5-5.

Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from srcnn.models.base import CENTRE, Network
from srcnn.models.layers import Conv, im2col, pad, relu, shift_and_add

MAX_KERNEL_LOADED = 63  # pixels; restoring with larger ones takes for ever
STRIP_PIXELS = 8000  # 64 maps of these are 1 MB


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        kernels: side of the three layers' kernels, pixels (odd): 9-1-5 is the source's, 9-3-5 and 9-5-5 the paper's.
        filters: channels after the first and the second layer.
        channels: channels of a photo: 1 luma, 3 RGB.
        residual: add the input to the output, so that the network learns the correction only.
    """

    kernels: tuple[int, int, int] = (9, 1, 5)
    filters: tuple[int, int] = (64, 32)
    channels: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels) or sum(self.kernels) < 11:
            raise ValueError(f"model.kernels {self.kernels}: expected odd sides such as 9, 1, 5")
        if min(*self.filters, self.channels) < 1:
            raise ValueError(f"model.filters {self.filters}, model.channels {self.channels}: expected at least 1")

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel depends on; also how far padding reaches in from an edge."""
        return sum(kernel // 2 for kernel in self.kernels)


class SRCNN(Network):
    """Three convolutions: patches -> features -> non-linear map -> pixels. (N, C, H, W) -> the same shape, for any
    H and W from `min_pixels`.

    Pixels are in [0, 1]; the output is not clipped. `state_dict()` has the source project's names and shapes:
    conv1, conv2, conv3, each weight and bias.

    The source pads every layer by 2 (replicate), so that 128 -> 124 -> 128 -> 128. Here the second layer takes what
    the first and the last leave, which for 9-1-5 is the same 2. A 1x1 convolution commutes with replicate padding, so
    its padding is done together with the third layer's: same result, one copy less.
    """

    description = "Three convolutions"
    source = 'Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.'

    def __init__(self, config: ModelConfig | None = None, centred: bool = False) -> None:
        super().__init__()
        self.config: ModelConfig = config or ModelConfig()
        self.centred = centred
        first, second, third = self.config.kernels
        features, mapped = self.config.filters
        self.conv1 = Conv(self.config.channels, features, first)
        self.conv2 = Conv(features, mapped, second)
        self.conv3 = Conv(mapped, self.config.channels, third)

    @property
    def name(self) -> str:
        return f"SRCNN {'-'.join(map(str, self.config.kernels))}"

    @property
    def summary(self) -> str:
        return f"filters {'-'.join(map(str, self.config.filters))}"

    @property
    def first_layer(self) -> nn.Conv2d:
        return self.conv1

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.conv3

    def init_gain(self, layer: str) -> float:
        return 0.01 if layer == "conv3" else 1.0

    @property
    def min_pixels(self) -> int:
        """The shortest side of a photo; below it the first layer would leave no pixel."""
        return max(1, self.config.kernels[0] - 2 * self.paddings[0])

    @property
    def paddings(self) -> tuple[int, int, int]:
        """Pixels padded before each layer: the source's 2, and what keeps the size."""
        return 2, self.receptive_radius - 4, 2

    @property
    def pads(self) -> tuple[int, int, int]:
        """The same as `forward` does it: a pointwise second layer leaves its own to the third."""
        first, second, third = self.paddings
        return (first, 0, second + third) if self.config.kernels[1] == 1 else (first, second, third)

    def forward(self, degraded: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        first, second, third = self.pads
        pixels = degraded - CENTRE if self.centred else degraded
        features = relu(self.conv1(pad(pixels, first)))
        mapped = relu(self.conv2(pad(features, second) if second else features))
        restored = self.conv3(pad(mapped, third))
        return degraded + restored if self.config.residual else restored

    @classmethod
    def config_of(cls, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> ModelConfig:
        layers = [state.get(f"conv{number}.weight") for number in (1, 2, 3)]
        shapes = [tuple(layer.shape) for layer in layers if layer is not None]
        if len(shapes) < 3:
            raise ValueError("not the weights of an SRCNN (expected conv1..conv3, weight and bias; found "
                             f"{', '.join(state)[:200]}); srcnn.load_model loads every kind of network")
        if any(len(shape) != 4 or shape[-1] > MAX_KERNEL_LOADED for shape in shapes):
            raise ValueError(f"layers of shapes {shapes} are not three convolutions of up to {MAX_KERNEL_LOADED}")
        (features, channels, _, first), (mapped, _, _, second), (*_, third) = shapes
        try:
            return ModelConfig((first, second, third), (features, mapped), channels, about.get("residual") is True)
        except ValueError as error:
            raise ValueError(f"its config is damaged: {error}") from error


def supports_fused_bf16(model: SRCNN) -> bool:
    """Whether `fused_bf16` restores as this network does."""
    return model.config.kernels[1] == 1 and model.config.residual and not model.centred


def fused_bf16(pixels: torch.Tensor, model: SRCNN) -> torch.Tensor:
    """float32 (C, H, W) -> what `model` gives under bfloat16 autocast, up to the order of sums in float32.

    On a CPU, for restoring only: nothing is kept for gradients. All layers go over some rows of the tile, then over the
    next: each finds the maps of the one before in its core's cache, which takes 80 ns a pixel and core instead of 140.
    """
    first, second, third = model.paddings
    kernel, last = model.config.kernels[0], model.config.kernels[2]
    weights, bias = _flat(model.conv1)
    mapping, mapping_bias = _flat(model.conv2)
    spread = model.conv3.weight.bfloat16().permute(0, 2, 3, 1).flatten(0, 2)
    padded = functional.pad(pixels[None].bfloat16(), (first,) * 4, mode="replicate")[0]
    height, width = padded.shape[1] - kernel + 1, padded.shape[2] - kernel + 1
    planes = padded.new_empty(len(spread), height, width)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        features = relu(torch.addmm(bias, weights, im2col(padded[:, top : top + rows + kernel - 1], kernel)))
        mapped = relu(torch.addmm(mapping_bias, mapping, features))
        planes[:, top : top + rows] = (spread @ mapped).view(len(planes), -1, width)
    # This product, too, is of each pixel alone: it commutes with the padding before it.
    planes = functional.pad(planes[None], (second + third,) * 4, mode="replicate")[0]
    assert model.conv3.bias is not None
    change = shift_and_add(planes.view(len(pixels), last, last, *planes.shape[1:]))
    return pixels + change + model.conv3.bias[:, None, None]


def _flat(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as a matrix and the bias as a column, in bfloat16."""
    assert layer.bias is not None
    return layer.weight.bfloat16().flatten(1), layer.bias.bfloat16()[:, None]
