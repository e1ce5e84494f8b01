"""SRCNN 9-1-5 as the source project has it, and the paper's 9-3-5 and 9-5-5; start, load and save of any network.

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

from srcnn.base import CENTRE, Network, NetworkT
from srcnn.config import plain
from srcnn.files import atomic_file
from srcnn.layers import Conv, pad, relu
from srcnn.unet import UNet, UNetConfig, config_of
from srcnn.weight_files import config_differs, read_weights

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "srcnn-915-q20"
MAX_KERNEL_LOADED = 63  # pixels; restoring with larger ones takes for ever
X86 = ("x86_64", "AMD64")  # as platform.machine() has it
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


class SRCNN(Network):
    """Three convolutions: patches -> features -> non-linear map -> pixels. (N, C, H, W) -> the same shape, for any
    H and W from `min_pixels`.

    Pixels are in [0, 1]; the output is not clipped. `state_dict()` has the source project's names and shapes:
    conv1, conv2, conv3, each weight and bias.

    The source pads every layer by 2 (replicate), so that 128 -> 124 -> 128 -> 128. Here the second layer takes what
    the first and the last leave, which for 9-1-5 is the same 2. A 1x1 convolution commutes with replicate padding, so
    its padding is done together with the third layer's: same result, one copy less.
    """

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
    def sizes(self) -> str:
        return f"filters {'-'.join(map(str, self.config.filters))}"

    @property
    def first_layer(self) -> nn.Conv2d:
        return self.conv1

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.conv3

    def start(self, layer: str) -> float:
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


def make_network(config: ModelConfig | UNetConfig, centred: bool = False) -> Network:
    """The network that a config is of, its weights not yet drawn or loaded."""
    return UNet(config, centred) if isinstance(config, UNetConfig) else SRCNN(config, centred)


def to_device(model: NetworkT, device: torch.device) -> NetworkT:
    """Moves the network there, its weights in the memory layout that is fast there."""
    rows = device.type == "cpu" and isinstance(model, SRCNN)  # whose layers there are products
    return model.to(device).to(memory_format=torch.contiguous_format if rows else torch.channels_last)


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
    if platform.machine() in X86:  # where oneDNN calls bfloat16 supported with any AVX-512
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    return bool(supported())


def prefers_bf16(config: ModelConfig | UNetConfig, device: torch.device) -> bool:
    """Whether such a network is faster there in bfloat16 than in float32.

    On x86 a U-Net needs AMX for that: with AVX512_BF16 alone its convolutions took 1.5 to 1.7 times as long as in
    float32, in training and restoring alike (oneDNN of PyTorch 2.14; one core of a Xeon without AMX).
    """
    if device.type == "cpu" and isinstance(config, UNetConfig) and platform.machine() in X86:
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return computes_bf16(device)


def initialize(model: Network, how: Initialization, seed: int) -> None:
    """Draws the weights from `seed`.

    "kaiming": He et al. 2015, normal by fan-in, the last layer a hundredth of it: a network that starts as (nearly)
    the identity with a residual connection, and gains from the first step. "pytorch": the framework's default, the
    source project's. "paper": normal with standard deviation 0.001, biases zero. A layer with a
    `Network.start` of 0 begins with zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        assert layer.bias is not None
        # What a pixel is the sum of; of a transposed one, whose parts do not overlap, a weight of each map.
        fan_in = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
        share = model.start(name)
        with torch.no_grad():
            if how == "pytorch" and share:
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
                continue
            deviation = 0.001 if how == "paper" else math.sqrt(2 / fan_in) * share
            layer.weight.normal_(0, deviation, generator=generator)
            layer.bias.zero_()
    if how == "kaiming" and model.centred and not model.residual:
        nn.init.constant_(model.last_layer.get_parameter("bias"), CENTRE)


def save_model(model: Network, path: Path, about: Mapping[str, str] | None = None, half: bool = False) -> None:
    """Writes folded weights as safetensors, with the model's config and `about` (strings) in the file's header.

    With `half` they are float16: half the bytes, and read as float32 again.

    Raises:
        ValueError: values that float16 cannot hold.
    """
    folded = model.folded()
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in folded.state_dict().items()}
    for name, tensor in tensors.items():
        if half and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds values that float16 cannot")
    metadata = {"format": "pt", "srcnn": json.dumps(asdict(folded.config)), **(about or {})}
    with atomic_file(path) as file:
        file.write(safetensors_bytes(tensors, metadata))


def save_state_dict(model: Network, path: Path) -> None:
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


def load_model(source: str | Path = DEFAULT_WEIGHTS) -> Network:
    """Loads a network ready to restore with (eval mode, CPU): a shipped name, a run folder, .safetensors or .pth.

    A .pth that is a plain state_dict without our config is taken for an SRCNN without a residual connection.

    Raises:
        FileNotFoundError: no such file, run or shipped name.
        ValueError: not weights of such a network, or values that are not finite.
    """
    path = find_weights(source)
    state, about = read_weights(path)
    model = make_network((_unet_config_of if "head.weight" in state else _config_of)(path, state, about))
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


def _unet_config_of(path: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> UNetConfig:
    """The config of a U-Net's state_dict, as `_config_of`."""
    try:
        config = config_of(state, about)
    except ValueError as error:
        raise ValueError(f"{path}: not the weights of a U-Net: {error}") from error
    if differs := config_differs(about, plain(asdict(config))):
        raise ValueError(f"{path}: its config is damaged: {differs}")
    return config


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
