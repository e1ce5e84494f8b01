"""A U-Net: residual blocks of plain convolutions at four scales, most of the work where there are few pixels.

After DRUNet: Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", IEEE TPAMI 44(10), 2022, section
3.1: 3x3 convolutions, 2x2 ones of stride 2 down, transposed ones up, skips that are added, no normalisation. Here with
biases, as what a JPEG took away is no multiple of the pixels; residual to the input; and no noise level as an input.
Nothing looks at the whole photo at once, so that it can be restored tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from srcnn.network import CENTRE, Network

HALO_PIXELS = 48


@dataclass(frozen=True)
class UNetConfig:
    """The larger network.

    Args:
        widths: channels at each scale, from whole pixels down by halves, such as [32, 64, 128, 256]; empty: no U-Net,
            the network is an SRCNN.
        num_blocks: residual blocks of two convolutions at each scale, on the way down and again on the way up.
        channels: channels of a photo: 1 luma, 3 RGB.
    """

    widths: tuple[int, ...] = ()
    num_blocks: int = 4
    channels: int = 1

    residual = True  # no setting: it always adds its input

    def __post_init__(self) -> None:
        if len(self.widths) > 8 or min(*self.widths, self.num_blocks, self.channels, 1) < 1:
            raise ValueError(f"unet.widths {self.widths}, unet.num_blocks {self.num_blocks}, unet.channels "
                             f"{self.channels}: expected up to 8 widths, and at least 1 of each")

    @property
    def multiple(self) -> int:
        """Pixels under one of the smallest maps."""
        return 2 ** (len(self.widths) - 1)

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel may depend on; the most of all places on the smallest maps' grid."""
        radii = []
        for pixel in range(self.multiple):
            first, last = pixel - 1, pixel + 1  # the last layer
            for scale in range(len(self.widths) - 1):  # up again, from the end
                first, last = (first - 2 * self.num_blocks) // 2, (last + 2 * self.num_blocks) // 2
            first, last = first - 2 * self.num_blocks, last + 2 * self.num_blocks
            for scale in range(len(self.widths) - 1):
                first, last = 2 * first - 2 * self.num_blocks, 2 * last + 1 + 2 * self.num_blocks
            radii += [pixel - (first - 1), last + 1 - pixel]
        return max(radii)


class Block(nn.Module):
    """Maps plus what two convolutions make of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.conv2(functional.relu(self.conv1(maps), inplace=True))


class UNet(Network):
    """Down to the smallest maps and up again; see the top of the file, and `Network` for what goes in and out.

    A photo is continued by its edge pixels to a multiple of the smallest maps' pixels, and by one for the first layer.
    """

    def __init__(self, config: UNetConfig, centred: bool = False) -> None:
        super().__init__()
        if not config.widths:
            raise ValueError("unet.widths: expected at least one")
        self.config: UNetConfig = config
        self.centred = centred
        self.multiple = config.multiple
        widths = config.widths

        def blocks(width: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width) for _ in range(config.num_blocks)))

        self.head = nn.Conv2d(config.channels, widths[0], 3)
        self.before = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(*pair, 2, stride=2) for pair in zip(widths, widths[1:]))
        self.bottom = blocks(widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in zip(widths[1:], widths))
        self.after = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.tail = nn.Conv2d(widths[0], config.channels, 3, padding=1)

    @property
    def name(self) -> str:
        return f"U-Net {'-'.join(map(str, self.config.widths))}"

    @property
    def sizes(self) -> str:
        return f"{self.config.num_blocks} blocks at each scale on either way"

    @property
    def halo(self) -> int:
        """What was measured of trained networks, whose far pixels hardly count: docs/headline.md."""
        return min(HALO_PIXELS, self.receptive_radius)

    @property
    def first_layer(self) -> nn.Conv2d:
        return self.head

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.tail

    def start(self, layer: str) -> float:
        """Blocks, and the whole, begin as nearly the identity; layers without a ReLU after them keep the variance."""
        return {"conv1": 1.0, "conv2": 0.1, "tail": 0.01}.get(layer.rpartition(".")[2], math.sqrt(0.5))

    def forward(self, degraded: torch.Tensor) -> torch.Tensor:
        height, width = degraded.shape[-2:]
        pixels = degraded - CENTRE if self.centred else degraded
        # In these words, and with the cut below as a padding of less than nothing, torch.export follows any size.
        step = self.multiple
        right, bottom = (step * ((side + step - 1) // step) - side for side in (width, height))
        maps = self.head(functional.pad(pixels, (1, 1 + right, 1, 1 + bottom), mode="replicate"))
        skipped = []
        for before, down in zip(self.before, self.down, strict=True):
            skipped.append(before(maps))
            maps = down(skipped[-1])
        maps = self.bottom(maps)
        for up, after in zip(reversed(self.up), reversed(self.after), strict=True):
            maps = after(up(maps) + skipped.pop())
        return degraded + functional.pad(self.tail(maps), (0, -right, 0, -bottom))


def config_of(state: Mapping[str, torch.Tensor]) -> UNetConfig:
    """The config of a U-Net's weights, from their names and shapes.

    Raises:
        ValueError: one is missing, or too many, or of another shape than the rest say.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    first = [shapes["head.weight"], *(shapes[name] for scale in range(8) if (name := f"down.{scale}.weight") in shapes)]
    if any(len(shape) != 4 or 0 in shape for shape in first):
        raise ValueError(f"layers of shapes {first} are no convolutions")
    num_blocks = sum(name.startswith("bottom.") and name.endswith(".conv1.weight") for name in shapes)
    config = UNetConfig(tuple(shape[0] for shape in first), num_blocks, first[0][1])
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in UNet(config).state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            told = f"has shape {shapes[name]}" if name in shapes else "is missing"
            raise ValueError(f"{name[:99]} {told}, expected {expected.get(name, 'none of that name')}")
    return config
