"""What every network of the package is: what the other modules use of one, and how it comes from and goes to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from srcnn.models.weight_files import config_differs, find_weights, read_weights, write_weights
from srcnn.runtime.files import atomic_file, write_json
from srcnn.runtime.settings import plain

CENTRE = 0.5
NetworkT = TypeVar("NetworkT", bound="Network")


class NetworkConfig(Protocol):
    """The settings of a network, a frozen dataclass; those that all networks have."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def channels(self) -> int:
        """Of a photo: 1 luma, 3 RGB."""

    @property
    def residual(self) -> bool:
        """Whether the network adds its input to what its last layer gives."""

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel may depend on; also how far padding reaches in from an edge."""


class Network(nn.Module):
    """(N, C, H, W) in [0, 1], degraded -> the same shape, restored and not clipped, for any H and W from `min_pixels`.

    `forward(degraded, condition=None)`: a network that is `conditioned` also takes the JPEG compression of each tile,
    float32 (N, CONDITION_SIZE) as of srcnn/photos/jpeg_quality.py; None, as zeros, means unknown. Others ignore it.

    With `centred` the first layer sees pixels minus 0.5, which trains much better from a random start. It folds into
    that layer's bias exactly (`without_centering`), since the pixels it sees beyond an edge repeat the edge; files
    never hold centred weights.

    Attributes:
        multiple: pixels; moved by a multiple of these, a photo gives the same result, moved. Tiles begin at such.
        conditioned: whether it uses the condition.
        description, source: what such a network is, and where it was published, for model cards.
    """

    config: NetworkConfig
    centred: bool
    multiple = 1
    conditioned = False
    description: ClassVar[str]
    source: ClassVar[str]

    @property
    def name(self) -> str:
        """What it is, for messages: "SRCNN 9-1-5"."""
        raise NotImplementedError

    @property
    def summary(self) -> str:
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

    def init_gain(self, layer: str) -> float:
        """The share of He's standard deviation that the weights of a layer of this name start with."""
        raise NotImplementedError

    def with_condition(self, condition: np.ndarray | torch.Tensor | None) -> Network:
        """A network without a condition that gives what this one gives with this one, (CONDITION_SIZE,), for every
        tile: at no further cost. Itself where it is not conditioned.
        """
        return self

    def without_centering(self: NetworkT) -> NetworkT:
        """The same network for pixels as they are, with the same output."""
        model = type(self)(self.config)
        model.load_state_dict(self.state_dict())
        if self.centred:
            model._shift_bias(-CENTRE)
        return model

    def load_without_centering(self, model: Network) -> None:
        """Takes the weights of a model that is not centred, the reverse of `without_centering`.

        Raises:
            ValueError: it is another network.
        """
        if model.config != self.config:
            raise ValueError(f"these weights are of {model.config}, the network wanted is {self.config}")
        self.load_state_dict(model.state_dict())
        if self.centred:
            self._shift_bias(CENTRE)

    def _shift_bias(self, shift: float) -> None:
        """Changes the first layer's bias as if all pixels had been raised by `shift`."""
        layer = self.first_layer
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias += shift * layer.weight.sum(dim=(1, 2, 3))

    @classmethod
    def config_of(cls, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> NetworkConfig:
        """The config of weights: from their names and shapes, and from `about` what these do not show.

        Raises:
            ValueError: they are not such a network's. (Further names and shapes are checked by `from_state`.)
        """
        raise NotImplementedError

    @classmethod
    def from_state(
        cls: type[NetworkT], state: Mapping[str, torch.Tensor], about: Mapping[str, Any], path: Path
    ) -> NetworkT:
        """The network of what `read_weights` gave for `path`, ready to restore with (eval mode, CPU).

        Raises:
            ValueError: a layer is missing, or too many, or of another shape than the rest, or than `about` says.
        """
        try:
            config = cls.config_of(state, about)
            with torch.device("meta"):
                expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if differs := config_differs(about, plain(asdict(config))):
            raise ValueError(f"{path}: its config is damaged: {differs}")
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        for name in sorted(expected.keys() | shapes.keys()):
            if shapes.get(name) != expected.get(name):
                found = f"has shape {shapes[name]}" if name in shapes else "is missing"
                raise ValueError(f"{path}: {name[:99]} {found}, expected {expected.get(name, 'none of that name')}")
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls: type[NetworkT], source: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, local_files_only: bool = False,
    ) -> NetworkT:
        """A network ready to restore with (eval mode, CPU), from a folder of `save_pretrained`, whatever `load_model`
        takes, or a repository of the Hugging Face hub, "owner/name". What is on the disk goes before the hub.

        Args:
            revision: branch, tag or commit of the repository.
            token: of the hub; by default the one that is logged in with.
            cache_dir: where what is fetched is kept; by default the folder of the hub's client.
            local_files_only: take it from there, and do not ask the hub.

        Raises:
            FileNotFoundError: no such path or shipped name, and no such repository, revision or weights on the hub.
            ConnectionError: the hub is out of reach, and there is no copy in the cache.
            PermissionError: the repository is not for everybody.
            ValueError: not weights of such a network, or of another than config.json says.
        """
        from srcnn.models import hub  # imports the hub's client, which a training has no need of

        path = hub.find(source, revision, token, cache_dir, local_files_only)
        weights = find_weights(path)
        model = cls.from_state(*read_weights(weights), weights)
        hub.check_config(path / hub.CONFIG, model.config)
        return model

    def save_pretrained(
        self, folder: str | Path, *, card: str | Path | None = None, run: str | Path | None = None
    ) -> None:
        """Writes model.safetensors, config.json and README.md, the model card, into a folder.

        Args:
            card: Markdown of the card, or a file of it as a Path; a YAML header is added where it has none.
            run: the run folder whose best checkpoint this is, and whose report has the card's text on the training.
                With neither, the card says what the network is, and that no more is known.

        Raises:
            FileNotFoundError: no such card, or no training or no report in the run folder.
            ValueError: the weights are not those of the run's best checkpoint, or both a card and a run are given.
        """
        from srcnn.models import hub

        folder = Path(folder)
        text = hub.with_header(self._card_text(card, run))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / hub.MODEL, self.without_centering().state_dict(), self.config)
        write_json(folder / hub.CONFIG, {"model_type": hub.MODEL_TYPE, **asdict(self.config)})
        with atomic_file(folder / hub.CARD) as file:
            file.write(text.encode())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | bool | None = None,
        commit_message: str = "Upload SRCNN", revision: str | None = None, card: str | Path | None = None,
        run: str | Path | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to "owner/name" of the hub, in one commit; returns its address.

        A repository or branch (`revision`) that is missing is made, the repository private where `private` is set.

        Raises:
            PermissionError: no right to write there.
            ConnectionError: the hub is out of reach, or out of order.
            Else as `save_pretrained`.
        """
        from srcnn.models import hub

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, run=run)
            return hub.upload(Path(folder), repo_id, private, token, commit_message, revision)

    def _card_text(self, card: str | Path | None, run: str | Path | None) -> str:
        if card is not None and run is not None:
            raise ValueError("a card is given or made from a run; not both")
        if isinstance(card, str) and card.endswith(".md"):
            raise ValueError(f"the card is the text {card!r:.99}; for a file give Path({card!r:.99})")
        if card is not None:
            return card.read_text(encoding="utf-8") if isinstance(card, Path) else card
        return self.card() if run is None else self.card(training=self._training_of(Path(run)))

    def _training_of(self, run: Path) -> str:
        """What the report of a run says of the training. Raises as `save_pretrained`."""
        best, written = find_weights(run), run / "report" / "card.md"
        theirs, ours = read_weights(best)[0], self.without_centering().state_dict()
        if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name].cpu()) for name in ours):
            raise ValueError(f"{run}: its best checkpoint has other weights than this network; "
                             "no card can be made of it")
        if not written.is_file() or written.stat().st_mtime < best.stat().st_mtime:
            raise FileNotFoundError(f"{written}: missing, or older than the best checkpoint: write it with "
                                    f"`srcnn report {run}`")
        if not (text := written.read_text(encoding="utf-8")):
            raise ValueError(f"{run}: it was never validated; there is nothing to say in a card")
        return text

    def card(self, title: str = "", subject: str = "photographs", training: str = "") -> str:
        """The model card, Markdown without a header: what the network is, what it restores, how it was trained.

        Args:
            title: the name of the weights; by default the network's.
            training: paragraphs on the training and the scores.
        """
        channel = {1: "luma", 3: "RGB"}.get(self.config.channels, f"{self.config.channels} channels")
        num_parameters, kind = sum(parameter.numel() for parameter in self.parameters()), type(self).__name__
        return f"""# {title or self.name}

{self.name}, {self.summary}. {self.description} that restore {subject},
{"with" if self.residual else "without"} a residual connection, {num_parameters:,} parameters, for the {channel}
of a photo in [0, 1]. An output pixel depends on {self.receptive_radius} pixels to each side.
{self.source}

```python
from srcnn import {kind}

model = {kind}.from_pretrained("{title or "owner/name"}")  # this name, repository or folder
```

{training or "How it was trained, and how well it restores, was not recorded."}
"""
