"""What every network of the package is: what the other modules ask of one, and how it comes from and goes to files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from srcnn.model import ModelConfig
    from srcnn.unet import UNetConfig

CENTRE = 0.5
NetworkT = TypeVar("NetworkT", bound="Network")


class Network(nn.Module):
    """(N, C, H, W) in [0, 1], degraded -> the same shape, restored and not clipped, for any H and W from `min_pixels`.

    `forward(degraded, condition=None)`: one that is `conditioned` is told of the JPEG each tile comes from, float32
    (N, CONDITION_SIZE) as of srcnn/jpeg_quality.py; None, as zeros, means that nothing is known. Others ignore it.

    With `centred` the first layer sees pixels minus 0.5, which trains much better from a random start. It folds into
    that layer's bias exactly (`folded`), since the pixels it sees beyond an edge repeat the edge; files never hold
    centred weights.

    Attributes:
        multiple: pixels; moved by a multiple of these, a photo gives the same result, moved. Tiles begin at such.
        conditioned: whether it heeds the condition.
    """

    config: ModelConfig | UNetConfig
    centred: bool
    multiple = 1
    conditioned = False

    @property
    def name(self) -> str:
        """What it is, for messages: "SRCNN 9-1-5"."""
        raise NotImplementedError

    @property
    def sizes(self) -> str:
        """The rest of what it is made of, for cards: "filters 64-32"."""
        raise NotImplementedError

    @property
    def residual(self) -> bool:
        """Whether it adds its input to what its last layer gives."""
        return self.config.residual

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel may depend on; also how far padding reaches in from an edge."""
        return self.config.receptive_radius

    @property
    def halo(self) -> int:
        """Pixels around a tile with which it is restored as the whole photo would be, within half a level of 255."""
        return self.receptive_radius

    @property
    def min_pixels(self) -> int:
        """The shortest side of a photo."""
        return 1

    @property
    def first_layer(self) -> nn.Conv2d:
        """The one that sees the photo; the last one, likewise, gives the pixels."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Conv2d:
        raise NotImplementedError

    def start(self, layer: str) -> float:
        """The share of He's deviation that the weights of a layer of this name start with."""
        raise NotImplementedError

    def with_condition(self, condition: np.ndarray | torch.Tensor | None) -> Network:
        """A network without a condition that gives what this one gives with this one, (CONDITION_SIZE,), for every
        tile: at no further cost. Itself where it is not conditioned.
        """
        return self

    def folded(self: NetworkT) -> NetworkT:
        """The same network for pixels as they are, with the same output."""
        model = type(self)(self.config)
        model.load_state_dict(self.state_dict())
        if self.centred:
            model._shift_bias(-CENTRE)
        return model

    def load_folded(self, model: Network) -> None:
        """Takes the weights of a model that is not centred, the reverse of `folded`; ValueError at another network."""
        if model.config != self.config:
            raise ValueError(f"these weights are of {model.config}, the network wanted is {self.config}")
        self.load_state_dict(model.state_dict())
        if self.centred:
            self._shift_bias(CENTRE)

    @classmethod
    def from_pretrained(
        cls: type[NetworkT], source: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, local_files_only: bool = False,
    ) -> NetworkT:
        """A network from a folder, a repository of the Hugging Face hub, or a shipped name: srcnn/hub.py says more."""
        from srcnn import hub  # imports the hub's client, which a training has no need of
        found = hub.from_pretrained(source, revision, token, cache_dir, local_files_only)
        if not isinstance(found, cls):
            kind = type(found).__name__
            raise ValueError(f"{source}: holds a {kind}, not a {cls.__name__}: {kind}.from_pretrained loads it")
        return found

    def save_pretrained(
        self, folder: str | Path, *, card: str | Path | None = None, run: str | Path | None = None
    ) -> None:
        """Writes model.safetensors, config.json and a model card into a folder: srcnn/hub.py says more."""
        from srcnn import hub
        hub.save_pretrained(self, folder, card, run)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | bool | None = None,
        commit_message: str = "Upload SRCNN", revision: str | None = None, card: str | Path | None = None,
        run: str | Path | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes, and gives the commit's address: srcnn/hub.py says more."""
        from srcnn import hub
        return hub.push_to_hub(self, repo_id, private, token, commit_message, revision, card, run)

    def _shift_bias(self, shift: float) -> None:
        """Changes the first layer's bias as if all pixels had been raised by `shift`."""
        layer = self.first_layer
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias += shift * layer.weight.sum(dim=(1, 2, 3))
