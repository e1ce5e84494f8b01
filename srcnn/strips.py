"""A network with a 1x1 layer, 9-1-5, in bfloat16 on a CPU: all layers over some rows of a tile, then over the next.

Each layer finds the maps of the one before in the cache of its core, which takes 80 ns a pixel and core instead of 140.
For restoring only: nothing is kept for gradients.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from srcnn.layers import columns, relu, sum_shifted
from srcnn.model import SRCNN

STRIP_PIXELS = 8000  # 64 maps of these are 1 MB


def suits(model: SRCNN) -> bool:
    return model.config.kernels[1] == 1 and model.config.residual and not model.centred


def restore_in_strips(pixels: torch.Tensor, model: SRCNN) -> torch.Tensor:
    """float32 (C, H, W) -> what `model` gives under bfloat16 autocast, up to the order of sums in float32."""
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
        features = relu(torch.addmm(bias, weights, columns(padded[:, top : top + rows + kernel - 1], kernel)))
        mapped = relu(torch.addmm(mapping_bias, mapping, features))
        planes[:, top : top + rows] = (spread @ mapped).view(len(planes), -1, width)
    # This product, too, is of each pixel alone: it commutes with the padding before it.
    planes = functional.pad(planes[None], (second + third,) * 4, mode="replicate")[0]
    assert model.conv3.bias is not None
    change = sum_shifted(planes.view(len(pixels), last, last, *planes.shape[1:]))
    return pixels + change + model.conv3.bias[:, None, None]


def _flat(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as a matrix and the bias as a column, in bfloat16."""
    assert layer.bias is not None
    return layer.weight.bfloat16().flatten(1), layer.bias.bfloat16()[:, None]
