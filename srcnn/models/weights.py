"""Networks of any kind: made from a config, their weights drawn, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from srcnn.models.base import CENTRE, Network
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.unet import UNet, UNetConfig
from srcnn.models.weight_files import DEFAULT_WEIGHTS, find_weights, read_weights, save_tensors, write_weights

Initialization = Literal["kaiming", "pytorch", "paper"]


def make_network(config: ModelConfig | UNetConfig, centred: bool = False) -> Network:
    """The network that a config is of, its weights not yet drawn or loaded."""
    return UNet(config, centred) if isinstance(config, UNetConfig) else SRCNN(config, centred)


def initialize(model: Network, how: Initialization, seed: int) -> None:
    """Draws the weights from `seed`.

    "kaiming": He et al. 2015, normal by fan-in, the last layer a hundredth of it: a network that starts as (nearly)
    the identity with a residual connection, and gains from the first step. "pytorch": the framework's default, the
    source project's. "paper": normal with standard deviation 0.001, biases zero. A layer with a
    `Network.init_gain` of 0 begins with zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        assert layer.bias is not None
        # What a pixel is the sum of; of a transposed one, whose parts do not overlap, a weight of each map.
        fan_in = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
        gain = model.init_gain(name)
        with torch.no_grad():
            if how == "pytorch" and gain:
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
                continue
            deviation = 0.001 if how == "paper" else math.sqrt(2 / fan_in) * gain
            layer.weight.normal_(0, deviation, generator=generator)
            layer.bias.zero_()
    if how == "kaiming" and model.centred and not model.residual:
        nn.init.constant_(model.last_layer.get_parameter("bias"), CENTRE)


def save_model(model: Network, path: Path, about: Mapping[str, str] | None = None, half: bool = False) -> None:
    """Writes weights without centering as safetensors, with the model's config and `about` in the file's header.

    With `half` they are float16: half the bytes, and read as float32 again.

    Raises:
        ValueError: values that float16 cannot hold.
    """
    write_weights(path, model.without_centering().state_dict(), model.config, about, half)


def save_state_dict(model: Network, path: Path) -> None:
    """Writes weights without centering as a plain state_dict, what the source project's `load_state_dict` reads.

    The config travels in the dict's `_metadata`, which `load_state_dict` of other programs ignores; a key of its own
    would be refused there.
    """
    state = model.without_centering().cpu().state_dict()
    state._metadata[""]["srcnn"] = json.dumps(asdict(model.config))  # type: ignore[attr-defined]
    save_tensors(state, path)


def load_model(source: str | Path = DEFAULT_WEIGHTS) -> Network:
    """Loads a network ready to restore with (eval mode, CPU): a shipped name, a run folder, .safetensors or .pth.

    A .pth that is a plain state_dict without our config is taken for an SRCNN without a residual connection.

    Raises:
        FileNotFoundError: no such file, run or shipped name.
        ValueError: not weights of such a network, or values that are not finite.
    """
    path = find_weights(source)
    state, about = read_weights(path)
    return (UNet if "head.weight" in state else SRCNN).from_state(state, about, path)
