"""The interface of every network, and how one is loaded, saved and shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import nn

from srcnn.models import hub_files
from srcnn.models.weight_files import config_differs, find_weights, read_weights, write_weights
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.files import write_file, write_json
from srcnn.runtime.plugins import NotRegistered, Registry
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.settings import plain
from srcnn.runtime.untrusted import open_regular, read_json

MAX_CARD_BYTES = 1 << 20
CENTRE = 0.5  # subtracted from pixels where a network is centred
NetworkT = TypeVar("NetworkT", bound="Network")


class NetworkConfig(Protocol):
    """The settings of a network: a frozen dataclass with this one and others."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def channels(self) -> int:
        """Channels of a photo: 1 luma, 3 RGB."""


class Network(nn.Module):
    """Restores photos: (N, C, H, W) float in [0, 1] -> the same shape, not clipped, for any H and W from `min_pixels`.

    `forward(degraded, condition=None)`: a `conditioned` network also takes the JPEG compression of each photo, float32
    (N, CONDITION_SIZE) as srcnn/photos/jpeg_quality.py encodes it; None, like zeros, means unknown. Others ignore it.

    A `centred` network subtracts 0.5 from the pixels before its first layer, which trains much better from random
    weights. `without_centering` folds this into the first layer's bias; that is exact, because padding repeats the
    edge pixels. Files never hold centred weights.

    A subclass with `@register_network` is found by its name. It needs a `config_class`, a `receptive_radius` (also as
    a property, or one of the config), and `__init__(self, config)`, or `__init__(self, config, centred)` if it names a
    `first` layer.

    Attributes:
        config_class: the frozen dataclass of its settings, no two networks' the same.
        config: the architecture.
        residual: whether the input is added to the output of the last layer.
        name: such as "SRCNN 9-1-5", for messages and model cards; by default that of the class.
        summary: the rest of the architecture, such as "filters 64-32", for model cards; by default its settings.
        description, source: the kind of network and where it was published, for model cards.
        first: name of the first layer, an nn.Conv2d; "": the network cannot be centred.
        last: name of the last layer, which may learn at a rate of its own; "": it does not.
        marks: settings of the config, true or false, that the shapes of the weights do not show; see `saved_state`.
        min_pixels: the shortest side of a photo.
        multiple: pixels; a photo shifted by a multiple of these gives the shifted result. Tiles start at multiples.
        conditioned: whether the network uses the condition.
        takes_channels_last: whether it computes in that memory layout, too.
    """

    config_class: ClassVar[Any]
    config: NetworkConfig
    description: ClassVar[str] = "Layers"
    source: ClassVar[str] = ""
    first: ClassVar[str] = ""
    last: ClassVar[str] = ""
    marks: ClassVar[tuple[str, ...]] = ()
    min_pixels = 1
    multiple = 1
    conditioned = False
    takes_channels_last = True

    def __init__(self, config: NetworkConfig, centred: bool = False) -> None:
        super().__init__()
        self.config, self.centred = config, centred
        self.name = type(self).__name__
        self.summary = ", ".join(f"{key} {value}" for key, value in asdict(config).items())

    @property
    def residual(self) -> bool:
        return bool(getattr(self.config, "residual", False))

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel may depend on; also how far padding reaches in from an edge."""
        radius: int = getattr(self.config, "receptive_radius")  # noqa: B009  # no config has to have it
        return radius

    @property
    def halo(self) -> int:
        """Pixels around a tile with which it is restored as in the whole photo, within half a level of 255."""
        return self.receptive_radius

    @property
    def device(self) -> torch.device:
        """Where its parameters, or else its buffers, are; the CPU where it has none."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    @property
    def is_bf16(self) -> bool:
        """Whether its weights are bfloat16, see `for_inference`."""
        return any(parameter.dtype == torch.bfloat16 for parameter in self.parameters())

    @property
    def last_layer(self) -> nn.Module:
        return self.get_submodule(self.last)

    def init_gain(self, layer: str) -> float:
        """The factor on He's standard deviation for the initial weights of the layer of this name. A network that does
        not say so keeps the weights that it is made with.
        """
        raise NotImplementedError

    @property
    def about(self) -> dict[str, Any]:
        """What a file says of the network: its name, its config, and which plugin registered it, if one did."""
        name = type(self).__name__
        origin = NETWORKS.origins.get(name)
        return {"network": name, **({"plugins": origin} if origin else {}), **asdict(self.config)}

    def with_condition(self, condition: np.ndarray | torch.Tensor | None) -> Network:
        """A network without a condition that restores as this one does with `condition`, (CONDITION_SIZE,), and is as
        fast as one that never had any. The network itself where it is not conditioned.
        """
        return self

    def for_inference(self: NetworkT, dtype: torch.dtype) -> NetworkT:
        """A copy with weights of `dtype`, input and output stay float32; or the network itself, where it has none."""
        return self

    def without_centering(self: NetworkT) -> NetworkT:
        """A copy on the CPU that is not centred, with the same output."""
        if not self.centred:  # without drawing weights: threads that save would take random numbers from the training
            return copy.deepcopy(self).cpu().to(memory_format=torch.contiguous_format)
        model = type(self)(self.config)
        model.load_state_dict(self.state_dict())
        model._shift_bias(-CENTRE)
        return model

    def saved_state(self) -> dict[str, torch.Tensor]:
        """The weights without centering, as files hold them: with a tensor of one element, 1, named after each of
        `marks` that is set, so that the tensors alone tell the network.
        """
        state: dict[str, torch.Tensor] = self.without_centering().state_dict()
        state.update((mark, torch.ones(1)) for mark in self.marks if getattr(self.config, mark))
        return state

    def load_without_centering(self, model: Network) -> None:
        """Loads the weights of a model that is not centred, the reverse of `without_centering`.

        Raises:
            ValueError: the model has another config.
        """
        if model.config != self.config:
            raise UserError(f"the weights are of {model.config}, but this network is {self.config}")
        self.load_state_dict(model.state_dict())
        if self.centred:
            self._shift_bias(CENTRE)

    @torch.no_grad()
    def _shift_bias(self, shift: float) -> None:
        """Changes the first layer's bias as if `shift` were added to all pixels."""
        layer = self.get_submodule(self.first)
        layer.get_parameter("bias").add_(shift * layer.get_parameter("weight").sum(dim=(1, 2, 3)))

    @classmethod
    def config_of(cls, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> NetworkConfig:
        """The config from `metadata`; of a network that can tell, from the names and shapes of the weights, and from
        `metadata` only what these do not show.

        Raises:
            ValueError: they are not the weights of such a network. (`from_state` checks all names and shapes.)
        """
        if metadata.get("network") != cls.__name__:
            raise UserError(f"not the weights of a {cls.__name__}")
        config: NetworkConfig = cls.config_class(**NETWORKS.settings(cls.__name__, settings_in(metadata)))
        return config

    @classmethod
    def from_state(
        cls: type[NetworkT], state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], path: Path
    ) -> NetworkT:
        """The network of the tensors and metadata that `read_weights` read from `path`, in eval mode on the CPU.

        Raises:
            ValueError: a tensor is missing, unexpected or of a wrong shape, or the metadata contradicts the tensors.
        """
        if cls is Network:
            cls = cast(type[NetworkT], registered(metadata, path))
        marks = {mark: bool(state[mark].any()) for mark in cls.marks if mark in state}
        state = {name: tensor for name, tensor in state.items() if name not in marks}
        try:
            config = cls.config_of(state, {**metadata, **marks})
            with torch.device("meta"):
                expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        if difference := config_differs(metadata, plain(asdict(config))):
            raise UserError(f"{path}: its config is damaged: {difference}")
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        for name in sorted(expected.keys() | shapes.keys()):
            if shapes.get(name) != expected.get(name):
                found = f"has shape {shapes[name]}" if name in shapes else "is missing"
                raise UserError(f"{path}: {name[:99]} {found}, expected {expected.get(name, 'no tensor of that name')}")
            if not state[name].is_floating_point():
                raise UserError(f"{path}: {name[:99]} is {state[name].dtype}; expected floats")
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls: type[NetworkT], source: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, local_files_only: bool = False,
    ) -> NetworkT:
        """Loads a network, in eval mode on the CPU, from a folder written by `save_pretrained`, from whatever
        `load_model` takes, or from a repository "owner/name" of the Hugging Face hub. Local files take precedence.

        Args:
            revision: branch, tag or commit of the repository.
            token: access token of the hub; by default the one of `hf auth login`.
            cache_dir: folder for downloaded files; by default that of huggingface_hub.
            local_files_only: use the cache only, without a request to the hub.

        Raises:
            FileNotFoundError: no such path or shipped name, and no such repository, revision or weights on the hub.
            ConnectionError: the hub cannot be reached, and the cache holds no copy.
            PermissionError: the repository is gated.
            ValueError: not weights of such a network, or config.json contradicts them.
        """
        path = Path(source)
        if hub_files.is_repository(source, revision):
            with extra("hub"):
                from srcnn.models import hub  # imports huggingface_hub

            path = hub.download(str(source), revision, token, cache_dir, local_files_only)
        hub_files.check_has_weights(path)
        weights = find_weights(path)
        model = cls.from_state(*read_weights(weights), weights)
        hub_files.check_config(path / hub_files.CONFIG, model.config)
        return model

    def save_pretrained(
        self, folder: str | Path, *, card: str | Path | None = None, run: str | Path | None = None,
        license: str | None = None,
    ) -> None:
        """Writes model.safetensors, config.json and the model card, README.md, into a folder.

        Args:
            card: the model card as Markdown text, or the Path of a Markdown file; a YAML header is added where it has
                none.
            run: the run folder whose best checkpoint this network is; what its report says of it becomes the card.
                Without `card` and `run` the card of shipped weights is theirs, that of others describes the network
                only.
            license: of the weights, by the hub's name, such as "mit"; None: to be filled in. That of shipped weights
                is known.

        Raises:
            FileNotFoundError: no such card, no checkpoint in the run folder, or no report of it.
            ValueError: the weights differ from the run's best checkpoint, both a card and a run are given, or a licence
                and a card that has a header.
        """
        folder = Path(folder)
        text = self._whole_card(card, run, license)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / hub_files.MODEL, self.saved_state(), self.about)
        write_json(folder / hub_files.CONFIG, {"model_type": hub_files.MODEL_TYPE, **self.about})
        write_file(folder / hub_files.CARD, text.encode())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | bool | None = None,
        commit_message: str = "Upload weights", revision: str | None = None, card: str | Path | None = None,
        run: str | Path | None = None, license: str | None = None,
    ) -> str:
        """Uploads the files of `save_pretrained` to the repository "owner/name" in one commit; returns the commit's
        URL. A missing repository (private if `private`) or branch `revision` is created.

        Raises:
            PermissionError: no write access.
            ConnectionError: the hub cannot be reached, or fails.
            ValueError: no licence, neither here nor in the card's header.
            UserError, OSError: as `save_pretrained`.
        """
        with extra("hub"):
            from srcnn.runtime.hub_client import check_licensed, upload_folder

        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, card=card, run=run, license=license)
            check_licensed((folder / hub_files.CARD).read_text(encoding="utf-8"),
                           'give license="mit" or another, or a card with it in the header')
            return upload_folder(folder, repo_id, commit_message, private=private, token=token, revision=revision)[1]

    def _whole_card(self, card: str | Path | None, run: str | Path | None, license: str | None) -> str:
        """The card and its header."""
        if card is not None and run is not None:
            raise UserError("both a card and a run are given; the card can come from one of them only")
        if isinstance(card, str) and card.endswith(".md"):
            raise UserError(f"the card's text is {card!r:.99}; to read a file, pass Path({card!r:.99})")
        if card is not None:
            text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
            return hub_files.with_header(text, license)
        if run is not None:
            training, results = self._training_card(Path(run))
            return hub_files.with_header(self.card(training=training), license, Path(run).resolve().name, results)
        if not (name := hub_files.shipped_name(self.saved_state())):
            return hub_files.with_header(self.card(), license)
        if license not in (None, hub_files.SHIPPED_LICENSE):
            raise UserError(f"the weights are {name}, whose licence is {hub_files.SHIPPED_LICENSE}, not {license}")
        results = hub_files.shipped_results(name)
        return hub_files.with_header(hub_files.shipped_card(name), hub_files.SHIPPED_LICENSE, name, results)

    def _training_card(self, run: Path) -> tuple[str, list[hub_files.Result]]:
        """What the report of a run wrote: the text on the training, and the scores. Raises as `save_pretrained`."""
        check_run_folder(run)
        best, written, scores = find_weights(run), run / "report" / "card.md", run / "report" / "scores.json"
        ours = self.without_centering().state_dict()
        theirs = {name: tensor for name, tensor in read_weights(best)[0].items() if name not in self.marks}
        if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
            raise UserError(f"{best}: the run's best checkpoint has other weights than this network")
        for path in (written, scores):
            if not path.is_file() or path.stat().st_mtime < best.stat().st_mtime:
                raise FileNotFoundError(f"{path}: missing, or older than the best checkpoint; write it with "
                                        f"`srcnn report {run}`")
        with open_regular(written, MAX_CARD_BYTES) as file:
            text = file.read().decode(errors="replace")
        if not text:
            raise UserError(f"{run}: was never validated, so there are no scores for a card")
        numbers = read_json(scores)
        if not isinstance(numbers, dict) or not all(isinstance(number, int | float) for number in numbers.values()):
            raise UserError(f"{scores}: damaged; write it with `srcnn report {run}`")
        return text, [hub_files.Result("validation", "validation tiles of the training", numbers)]

    def card(self, title: str = "", subject: str = "photographs", training: str = "") -> str:
        """The model card as Markdown without the YAML header.

        Args:
            title: the name of the weights; by default that of the network.
            subject: what the network restores.
            training: paragraphs on the training and the scores.
        """
        channel = {1: "luma", 3: "RGB"}.get(self.config.channels, f"{self.config.channels} channels")
        num_parameters, kind = sum(parameter.numel() for parameter in self.parameters()), type(self).__name__
        kinds = {True: "with a residual connection, ", False: "without a residual connection, "}
        residual = kinds[self.residual] if hasattr(self.config, "residual") else ""
        imports, plugins = kind, ""
        for file, sha256 in NETWORKS.origins.get(kind, {}).items():
            imports, kind = "Network, load_plugins", "Network"
            plugins = f'load_plugins(["{file}"])  # has the class {type(self).__name__}; SHA-256 {sha256[:16]}\n'
        return f"""# {title or self.name}

{self.name}, {self.summary}. {self.description} that restore {subject},
{residual}{num_parameters:,} parameters, for the {channel}
of a photo in [0, 1]. An output pixel depends on {self.receptive_radius} pixels to each side.
{self.source}

```python
from srcnn import {imports}

{plugins}model = {kind}.from_pretrained("{title or "owner/name"}")  # this name, repository or folder
```

{training or "How it was trained, and how well it restores, was not recorded."}
"""


NETWORKS = Registry[type[Network]]("network", settings_of=lambda kind: kind.config_class)
RESERVED = ("name", "network", "plugins", "model_type")  # keys beside the settings, in configs and files of weights


def register_network(kind: type[NetworkT]) -> type[NetworkT]:
    """Decorator: configs, `network: {name: NAME, ...}`, and files of weights find the network by the name of its class.

    Raises:
        UserError: it is no `Network`, or its `config_class` is not as `Network` says.
    """
    name, config = kind.__name__, getattr(kind, "config_class", None)
    if not issubclass(kind, Network):
        raise UserError(f"{name}: a network must be a subclass of srcnn.Network")
    if not (isinstance(config, type) and is_dataclass(config)) or "channels" not in (names := {
            field.name for field in fields(config)}):
        raise UserError(f"{name}: config_class must be a dataclass of its settings, with channels among them")
    if clash := names.intersection(RESERVED):
        raise UserError(f"{name}: {config.__name__} cannot have a setting called {', '.join(clash)}")
    for other in NETWORKS.values():
        if other.config_class is config and other.__name__ != name:
            raise UserError(f"{name}: {other.__name__} has the same config_class; derive another one from it")
    NETWORKS(kind)
    return kind


def make_network(config: NetworkConfig, centred: bool = False) -> Network:
    """The network of a config, its weights not yet initialized or loaded; centred if it can be."""
    kind = next(kind for kind in NETWORKS.values() if kind.config_class is type(config))
    return kind(config, centred) if kind.first else kind(config)


def registered(metadata: Mapping[str, Any], path: Path) -> type[Network]:
    """The network that the metadata of the weights in `path` names.

    Raises:
        NotRegistered: there is none, and the message says which plugin registers it, by what the file says.
    """
    try:
        return NETWORKS[str(metadata.get("network", ""))]
    except NotRegistered as error:
        plugins = metadata.get("plugins")
        named = ", ".join(map(str, plugins))[:300] if isinstance(plugins, dict) else ""
        raise NotRegistered(f"{path}: {error}{f'; these weights say that it was {named}' if named else ''}") from error


def settings_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The network's own settings in the metadata of a file of weights, or in the value of a config's `network`."""
    return {key: value for key, value in metadata.items() if key not in RESERVED}
