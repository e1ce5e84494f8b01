"""The networks: SRCNN 9-1-5 as the source project has it, and the paper's 9-3-5 and 9-5-5; load and save of weights.

Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.
"""

from __future__ import annotations

import io
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from srcnn.config import plain
from srcnn.files import atomic_file
from srcnn.products import Conv, pad, relu
from srcnn.weight_files import config_differs, read_weights

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "srcnn-915-q20"
CENTRE = 0.5
MAX_KERNEL_LOADED = 63  # pixels; restoring with larger ones takes for ever
Initialization = Literal["kaiming", "pytorch", "paper"]


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


class SRCNN(nn.Module):
    """Three convolutions: patches -> features -> non-linear map -> pixels. (N, C, H, W) -> the same shape, for any
    H and W from `min_pixels`.

    Pixels are in [0, 1]; the output is not clipped. `state_dict()` has the source project's names and shapes:
    conv1, conv2, conv3, each weight and bias.

    The source pads every layer by 2 (replicate), so that 128 -> 124 -> 128 -> 128. Here the second layer takes what
    the first and the last leave, which for 9-1-5 is the same 2. A 1x1 convolution commutes with replicate padding, so
    its padding is done together with the third layer's: same result, one copy less.

    With `centred` the first layer sees pixels minus 0.5, which trains much better from a random start. It folds into
    that layer's bias exactly (`folded`), since replicate padding keeps constants; files never hold centred weights.
    """

    def __init__(self, config: ModelConfig | None = None, centred: bool = False) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.centred = centred
        first, second, third = self.config.kernels
        features, mapped = self.config.filters
        self.conv1 = Conv(self.config.channels, features, first)
        self.conv2 = Conv(features, mapped, second)
        self.conv3 = Conv(mapped, self.config.channels, third)

    @property
    def receptive_radius(self) -> int:
        """The config's: what a halo has to be at least, in pixels."""
        return self.config.receptive_radius

    @property
    def min_pixels(self) -> int:
        """The shortest side of a photo; below it the first layer would leave no pixel."""
        return max(1, self.config.kernels[0] - 2 * self.paddings[0])

    @property
    def paddings(self) -> tuple[int, int, int]:
        """Pixels padded before each layer: the source's 2, and what keeps the size."""
        return 2, self.receptive_radius - 4, 2

    def forward(self, degraded: torch.Tensor) -> torch.Tensor:
        first, second, third = self.paddings
        pointwise = self.config.kernels[1] == 1
        pixels = degraded - CENTRE if self.centred else degraded
        features = relu(self.conv1(pad(pixels, first)))
        mapped = relu(self.conv2(features if pointwise else pad(features, second)))
        restored = self.conv3(pad(mapped, second + third if pointwise else third))
        return degraded + restored if self.config.residual else restored

    def folded(self) -> SRCNN:
        """A copy that wants pixels in [0, 1] as they are, and gives the same output."""
        model = SRCNN(self.config)
        model.load_state_dict(self.state_dict())
        if self.centred:
            model._shift_bias(-CENTRE)
        return model

    def load_folded(self, model: SRCNN) -> None:
        """Takes the weights of a model that is not centred, the reverse of `folded`; ValueError at another network."""
        if model.config != self.config:
            raise ValueError(f"these weights are of {model.config}, the network wanted is {self.config}")
        self.load_state_dict(model.state_dict())
        if self.centred:
            self._shift_bias(CENTRE)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | Path | None = None, local_files_only: bool = False,
    ) -> SRCNN:
        """A network from a folder, a repository of the Hugging Face hub, or a shipped name: srcnn/hub.py says more."""
        from srcnn import hub  # imports the hub's client, which a training has no need of
        return hub.from_pretrained(source, revision, token, cache_dir, local_files_only)

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
        """Changes conv1's bias as if all pixels had been raised by `shift`."""
        assert self.conv1.bias is not None
        with torch.no_grad():
            self.conv1.bias += shift * self.conv1.weight.sum(dim=(1, 2, 3))


def to_device(model: SRCNN, device: torch.device) -> SRCNN:
    """Moves the network there, its weights in the memory layout that is fast there."""
    return model.to(device).to(memory_format=torch.contiguous_format if device.type == "cpu" else torch.channels_last)


def device_here() -> torch.device:
    """What a process on this machine computes with; MPS, which has no float64 for exact sums, counts as none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None or found.type == "mps" else found


def computes_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN calls bfloat16 supported with any AVX-512
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    return bool(supported())


def initialize(model: SRCNN, how: Initialization, seed: int) -> None:
    """Draws the weights from `seed`.

    "kaiming": He et al. 2015, normal by fan-in, the last layer a hundredth of it: a network that starts as (nearly)
    the identity with a residual connection, and gains from the first step. "pytorch": the framework's default, the
    source project's. "paper": normal with standard deviation 0.001, biases zero.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = (model.conv1, model.conv2, model.conv3)
    for layer in layers:
        assert layer.bias is not None
        fan_in = layer.weight[0].numel()
        with torch.no_grad():
            if how == "pytorch":
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
                continue
            deviation = 0.001 if how == "paper" else math.sqrt(2 / fan_in) * (0.01 if layer is layers[-1] else 1)
            layer.weight.normal_(0, deviation, generator=generator)
            layer.bias.zero_()
    if how == "kaiming" and model.centred and not model.config.residual:
        nn.init.constant_(model.conv3.get_parameter("bias"), CENTRE)


def save_model(model: SRCNN, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Writes folded weights as safetensors, with the model's config and `about` (strings) in the file's header."""
    folded = model.folded()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in folded.state_dict().items()}
    metadata = {"format": "pt", "srcnn": json.dumps(asdict(folded.config)), **(about or {})}
    with atomic_file(path) as file:
        file.write(safetensors_bytes(tensors, metadata))


def save_state_dict(model: SRCNN, path: Path) -> None:
    """Writes folded weights as a plain state_dict, what the source project's `load_state_dict` reads.

    The config travels in the dict's `_metadata`, which `load_state_dict` of other programs ignores.
    """
    folded = model.folded().cpu()
    state = folded.state_dict()
    state._metadata[""]["srcnn"] = json.dumps(asdict(folded.config))  # type: ignore[attr-defined]
    save_tensors(state, path)


def save_tensors(content: Any, path: Path) -> None:
    """torch.save by way of memory: a full disk is an OSError, not one that torch raises while it cleans up."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def load_model(source: str | Path = DEFAULT_WEIGHTS) -> SRCNN:
    """Loads a network ready to restore with (eval mode, CPU): a shipped name, a run folder, .safetensors or .pth.

    A .pth that is a plain state_dict without our config is taken for one without a residual connection.

    Raises:
        FileNotFoundError: no such file, run or shipped name.
        ValueError: not weights of such a network, or values that are not finite.
    """
    path = find_weights(source)
    state, about = read_weights(path)
    model = SRCNN(_config_of(path, state, about))
    model.load_state_dict(state)
    return model.eval()


def find_weights(source: str | Path) -> Path:
    """The file of weights that `source` means: a shipped name, a run folder (its best checkpoint) or a file."""
    path = Path(source)
    for candidate in (path, path / "best" / "model.safetensors", path / "model.safetensors"):
        if candidate.is_file():
            return candidate
    if (shipped := WEIGHTS / f"{source}.safetensors").is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
    raise FileNotFoundError(f"{source}: no such file, run folder or shipped model; shipped: {names}")


def _config_of(path: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> ModelConfig:
    """The config of a state_dict, from its shapes; checks names and shapes, and what `about` says of them."""
    names = {f"conv{number}.{part}" for number in (1, 2, 3) for part in ("weight", "bias")}
    if set(state) != names:
        found = ", ".join(state)[:200]
        raise ValueError(f"{path}: not the weights of an SRCNN (expected conv1..conv3, weight and bias; found {found})")
    shapes = [tuple(state[f"conv{number}.weight"].shape) for number in (1, 2, 3)]
    if any(len(shape) != 4 or shape[-1] > MAX_KERNEL_LOADED for shape in shapes):
        raise ValueError(f"{path}: layers of shapes {shapes} are not three convolutions of up to {MAX_KERNEL_LOADED}")
    kernels, filters = (shapes[0][-1], shapes[1][-1], shapes[2][-1]), (shapes[0][0], shapes[1][0])
    try:
        config = ModelConfig(kernels, filters, shapes[0][1], about.get("residual", False))
    except ValueError as error:
        raise ValueError(f"{path}: its config is damaged: {error}") from error
    if differs := config_differs(about, plain(asdict(config) | {"residual": bool(config.residual)})):
        raise ValueError(f"{path}: its config is damaged: {differs}")
    maps = (config.channels, *filters, config.channels)
    for number, kernel in enumerate(kernels, 1):
        before, after = maps[number - 1 : number + 1]
        for part, expected in (("weight", (after, before, kernel, kernel)), ("bias", (after,))):
            shape = tuple(state[f"conv{number}.{part}"].shape)
            if shape != expected:
                raise ValueError(f"{path}: conv{number}.{part} has shape {shape}, expected {expected}")
    return config
