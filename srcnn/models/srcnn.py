"""SRCNN: the source project's 9-1-5, and the paper's 9-3-5 and 9-5-5.

Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from srcnn.models.base import CENTRE, Network, register_network
from srcnn.models.layers import Conv, im2col, pad, relu, shift_and_add
from srcnn.runtime.errors import UserError

MAX_KERNEL_LOADED = 63  # pixels; larger kernels in a file would make restoring endless
STRIP_PIXELS = 8000  # 64 maps of so many pixels are 1 MB in bfloat16


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of an SRCNN.

    Args:
        kernels: sides of the three layers' kernels, pixels (odd): 9-1-5 is the source's, 9-3-5 and 9-5-5 the paper's.
        filters: output channels of the first and the second layer.
        channels: channels of a photo: 1 luma, 3 RGB.
        residual: add the input to the output, so that the network learns only the correction.
    """

    kernels: tuple[int, int, int] = (9, 1, 5)
    filters: tuple[int, int] = (64, 32)
    channels: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels) or sum(self.kernels) < 11:
            raise UserError(f"model.kernels {self.kernels}: expected odd sides such as 9, 1, 5")
        if min(*self.filters, self.channels) < 1:
            raise UserError(f"model.filters {self.filters}, model.channels {self.channels}: expected at least 1")

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel depends on; also how far padding reaches in from an edge."""
        return sum(kernel // 2 for kernel in self.kernels)


@register_network
class SRCNN(Network):
    """Three convolutions: patches -> features -> non-linear mapping -> pixels. See `Network` for input and output.

    `state_dict()` has the source project's names and shapes: conv1, conv2, conv3, each with weight and bias.

    The source project pads every layer by 2 (replicate), so that 128 -> 124 -> 128 -> 128. Here the second layer is
    padded so that the whole network keeps the size, which is the same 2 for 9-1-5. A 1x1 convolution commutes with
    replicate padding, so its padding is done together with the third layer's: same result, one copy less.

    Attributes:
        pads: pixels of replicate padding before each layer.
    """

    config_class = ModelConfig
    config: ModelConfig
    description = "Three convolutions"
    source = 'Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.'
    first, last = "conv1", "conv3"
    marks = ("residual",)

    def __init__(self, config: ModelConfig | None = None, centred: bool = False) -> None:
        super().__init__(config or ModelConfig(), centred)
        first, second, third = self.config.kernels
        features, mapped = self.config.filters
        self.name = f"SRCNN {first}-{second}-{third}"
        self.summary = f"filters {features}-{mapped}"
        middle = self.config.receptive_radius - 4
        self.pads = (2, middle, 2) if second > 1 else (2, 0, middle + 2)
        self.min_pixels = max(1, first - 4)  # with fewer the first layer would leave no pixel
        self.conv1 = Conv(self.config.channels, features, first)
        self.conv2 = Conv(features, mapped, second)
        self.conv3 = Conv(mapped, self.config.channels, third)

    def init_gain(self, layer: str) -> float:
        return 0.01 if layer == "conv3" else 1.0

    def forward(self, degraded: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        first, second, third = self.pads
        pixels = degraded - CENTRE if self.centred else degraded
        features = relu(self.conv1(pad(pixels, first)))
        mapped = relu(self.conv2(pad(features, second) if second else features))
        restored = self.conv3(pad(mapped, third))
        return degraded + restored if self.config.residual else restored

    @classmethod
    def config_of(cls, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> ModelConfig:
        names = ("conv1.weight", "conv2.weight", "conv3.weight")
        shapes = [tuple(state[name].shape) for name in names if name in state]
        if len(shapes) < 3:
            raise UserError("not the weights of an SRCNN (expected conv1..conv3, weight and bias; found "
                            f"{', '.join(state)[:200]}); srcnn.load_model loads every kind of network")
        if any(len(shape) != 4 or shape[-1] > MAX_KERNEL_LOADED for shape in shapes):
            raise UserError(f"layers of shapes {shapes} are not three convolutions with kernels of up to "
                            f"{MAX_KERNEL_LOADED} pixels")
        (features, channels, _, first), (mapped, _, _, second), (*_, third) = shapes
        try:
            return ModelConfig((first, second, third), (features, mapped), channels, metadata.get("residual") is True)
        except ValueError as error:
            raise UserError(f"its config is damaged: {error}") from error


def supports_fused_bf16(model: SRCNN) -> bool:
    """Whether `fused_bf16` can compute this network."""
    return model.config.kernels[1] == 1 and model.config.residual and not model.centred


def fused_bf16(pixels: torch.Tensor, model: SRCNN) -> torch.Tensor:
    """float32 (C, H, W) -> the output of `model` under bfloat16 autocast, up to the order of sums in float32.

    For inference on a CPU: without gradients. All layers process a strip of rows before the next strip, so that each
    layer's input is still in the core's cache: 80 ns a pixel and core instead of 140.
    """
    first, _, third = model.pads
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
    # This product is pointwise like the 1x1 layer, so it commutes with the padding as well.
    planes = functional.pad(planes[None], (third,) * 4, mode="replicate")[0]
    assert model.conv3.bias is not None
    change = shift_and_add(planes.view(len(pixels), last, last, *planes.shape[1:]))
    return pixels + change + model.conv3.bias[:, None, None]


def _flat(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as a matrix and bias as a column, in bfloat16."""
    assert layer.bias is not None
    return layer.weight.bfloat16().flatten(1), layer.bias.bfloat16()[:, None]
