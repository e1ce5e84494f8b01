"""Initializes the weights of networks, saves and loads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from srcnn.models.base import CENTRE, Network
from srcnn.models.srcnn import SRCNN
from srcnn.models.unet import UNet
from srcnn.models.weight_files import DEFAULT_MODEL, find_weights, read_weights, save_tensors, write_weights
from srcnn.models.wrapped import EXTRA, from_spandrel
from srcnn.runtime.errors import UserError
from srcnn.runtime.torch_internals import set_state_note

Initialization = Literal["kaiming", "pytorch", "paper"]


def initialize(model: Network, how: Initialization, seed: int) -> None:
    """Sets all weights and biases from `seed`.

    "kaiming": He et al., ICCV 2015: normal by fan-in, times the layer's `Network.init_gain`, which is a hundredth for
    the last layer: a residual network starts as nearly the identity and gains from the first step. "pytorch": the
    default of PyTorch and of the source project. "paper": normal with standard deviation 0.001, biases zero. A layer
    with an `init_gain` of 0 starts with zeros. A network without `init_gain` is left as it is.
    """
    if type(model).init_gain is Network.init_gain:
        return
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        # Weights that one output value sums over; the strides of transposed layers are as large as their kernels.
        fan_in = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
        gain = model.init_gain(name)
        with torch.no_grad():
            if how == "pytorch" and gain:
                for parameter in layer.parameters(recurse=False):
                    parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
                continue
            deviation = 0.001 if how == "paper" else math.sqrt(2 / fan_in) * gain
            layer.weight.normal_(0, deviation, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
    if how == "kaiming" and model.centred and not model.residual:
        nn.init.constant_(model.last_layer.get_parameter("bias"), CENTRE)


def save_model(model: Network, path: str | Path, metadata: Mapping[str, str] | None = None, half: bool = False) -> None:
    """Writes weights without centering as safetensors, with the model's config and `metadata` in the file's header.

    With `half` they are stored as float16, half the size; `load_model` gives float32 again.

    Raises:
        ValueError: values that float16 cannot hold.
    """
    write_weights(path, model.saved_state(), model.about, metadata, half)


def save_state_dict(model: Network, path: str | Path) -> None:
    """Writes weights without centering as a plain state_dict; one without a residual connection is what the source
    project's `load_state_dict` reads. (`Network.saved_state` marks the others, which it would get wrong.)

    The config is beside the weights, where `load_state_dict` of other programs ignores it.
    """
    state = model.saved_state()
    set_state_note(state, json.dumps(model.about))
    save_tensors(state, path)


def load_model(source: str | Path = DEFAULT_MODEL, halo: int | None = None) -> Network:
    """Loads a network ready to restore with (eval mode, CPU): a shipped name, a run folder, .safetensors or .pth.

    A state_dict without a config is taken for an SRCNN without a residual connection, or else for a network that the
    package spandrel knows (`srcnn.models.wrapped`), whose `halo` is measured where none is given.

    Raises:
        FileNotFoundError: no such file, run or shipped name.
        ValueError: not the weights of a known network (one of a plugin has to be registered before), or values that
            are not finite; a halo for a network that knows its own.
    """
    path = find_weights(source)
    state, metadata = read_weights(path)
    kind: type[Network] = UNet if "head.weight" in state else SRCNN  # in files that do not say it
    if metadata.get("network"):
        kind = Network
    try:
        model = kind.from_state(state, metadata, path)
    except UserError as error:
        if metadata or (other := _of_another_program(state, path, halo, error)) is None:
            raise
        return other
    if halo is not None:
        raise UserError(f"a halo is given for networks of other programs only; that of {model.name} is {model.halo}")
    return model


def _of_another_program(
    state: Mapping[str, torch.Tensor], path: Path, halo: int | None, error: UserError
) -> Network | None:
    """The network of spandrel with these weights, None where it knows none. Raises UserError without spandrel, where
    `error` says why they are not ours.
    """
    try:
        return from_spandrel(state, path, halo)
    except ImportError:
        if {"conv1.weight", "head.weight"} & state.keys():
            return None
        raise UserError(f"{error}; {EXTRA}") from error
