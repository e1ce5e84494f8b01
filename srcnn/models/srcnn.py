"""SRCNN: the source project's 9-1-5, and the paper's 9-3-5 and 9-5-5.

Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from srcnn.models.base import CENTRE, Network, register_network
from srcnn.models.layers import Conv, conv_of_padded, conv_relu, pad
from srcnn.runtime.errors import UserError

MAX_KERNEL_LOADED = 63  # pixels; larger kernels in a file would make restoring endless


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
        features = conv_relu(self.conv1, pad(pixels.to(self.conv1.weight.dtype), first))
        mapped = conv_relu(self.conv2, pad(features, second) if second else features)
        restored = conv_of_padded(self.conv3, mapped, third)
        return degraded + restored if self.config.residual else restored

    def for_inference(self, dtype: torch.dtype) -> SRCNN:
        return copy.deepcopy(self).to(dtype).to(memory_format=torch.channels_last)

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
