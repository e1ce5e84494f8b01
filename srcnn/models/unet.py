"""A U-Net: residual blocks at several scales, with most of the work where there are few pixels.

After DRUNet: Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", IEEE TPAMI 44(10), 2022, section
3.1: 3x3 convolutions, 2x2 convolutions of stride 2 down and transposed ones up, skip connections by addition, no
normalisation. Unlike there: biases, since what a JPEG loses is not proportional to the pixels; the input is added to
the output; no noise level as an input. No layer looks at the whole photo, so it can be restored tile by tile.

Three settings make it cheaper or better for JPEGs. `unshuffle` starts at half or a quarter of the resolution, where
each channel costs a fourth or a sixteenth (pixel-unshuffle: Shi et al., CVPR 2016). `ycbcr` restores luma and chroma,
which a JPEG stores separately. `condition` passes every block the JPEG's quantization, as a scale and a shift of its
channels (FiLM: Perez et al., AAAI 2018), so that one network restores all qualities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from srcnn.models.base import CENTRE, Network, register_network
from srcnn.models.layers import can_fuse, conv_add_, conv_relu
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.runtime.errors import UserError

HALO_PIXELS = 48  # measured on trained networks, which hardly use pixels further away (docs/headline.md)
UNSHUFFLES = (1, 2, 4)
CONDITION_FEATURES = 64  # channels between the condition and the scales and shifts
# The YCbCr of a JPEG: ITU-R BT.601, full range (JFIF; ITU-T T.871, section 7), but chroma is centred on 0, not 128/255.
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in Y; as in Pillow's L
RED_RANGE, BLUE_RANGE = 2 * (1 - LUMA_WEIGHTS[0]), 2 * (1 - LUMA_WEIGHTS[2])  # 1.402, 1.772


@dataclass(frozen=True)
class UNetConfig:
    """The architecture of a U-Net.

    Args:
        widths: channels at each scale, each half the resolution of the one before, such as [32, 64, 128, 256]; empty:
            no U-Net, the network is an SRCNN.
        num_blocks: residual blocks of two convolutions at each scale, both on the way down and on the way up.
        channels: channels of a photo: 1 luma, 3 RGB.
        unshuffle: 2 or 4: squares of so many pixels a side become the channels of one, which is many times cheaper;
            1: none.
        ycbcr: restore luma and chroma, as a JPEG holds them; input and output stay RGB (channels 3).
        condition: the JPEG's quantization tables are an input, so that one network suits all qualities.
    """

    widths: tuple[int, ...] = ()
    num_blocks: int = 4
    channels: int = 1
    unshuffle: int = 1
    ycbcr: bool = False
    condition: bool = False

    residual = True  # not a setting: a U-Net always adds its input

    def __post_init__(self) -> None:
        if len(self.widths) > 8 or min(*self.widths, self.num_blocks, self.channels, 1) < 1:
            raise UserError(f"unet.widths {self.widths}, unet.num_blocks {self.num_blocks}, unet.channels "
                             f"{self.channels}: expected up to 8 widths, and at least 1 of each")
        if self.unshuffle not in UNSHUFFLES:
            raise UserError(f"unet.unshuffle {self.unshuffle}: expected 1, 2 or 4")
        if self.ycbcr and self.channels != 3:
            raise UserError(f"unet.ycbcr: needs RGB, unet.channels 3; found {self.channels}")

    @property
    def multiple(self) -> int:
        """Pixels to each side that one position of the smallest maps covers."""
        return self.unshuffle * 2 ** (len(self.widths) - 1)

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side that an output pixel may depend on: the most over all positions within `multiple`."""
        radii = []
        for pixel in range(self.multiple):
            first, last = pixel // self.unshuffle - 1, pixel // self.unshuffle + 1  # the last layer
            for _ in self.widths[1:]:  # the way up, from its end
                first, last = (first - 2 * self.num_blocks) // 2, (last + 2 * self.num_blocks) // 2
            first, last = first - 2 * self.num_blocks, last + 2 * self.num_blocks  # the bottom
            for _ in self.widths[1:]:  # the way down, from its end
                first, last = 2 * first - 2 * self.num_blocks, 2 * last + 1 + 2 * self.num_blocks
            radii += [pixel - self.unshuffle * (first - 1), self.unshuffle * (last + 2) - 1 - pixel]
        return max(radii)


class Block(nn.Module):
    """A residual block of two convolutions; `scale` and `shift`, (N, C, 1, 1), modulate the maps between them.

    Without gradients the result may take the place of `maps`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(
        self, maps: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        if scale is None and can_fuse(self.conv1, maps):
            return conv_add_(self.conv2, conv_relu(self.conv1, maps), maps)
        inner = self.conv1(maps)
        if scale is not None and shift is not None:
            inner = torch.addcmul(shift, 1 + scale, inner)
        return self.conv2(functional.relu(inner, inplace=True)).add_(maps)


class Blocks(nn.Sequential):
    """A sequence of residual blocks."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__(*(Block(width) for _ in range(num_blocks)))
        self.num_modulations = 2 * num_blocks * width

    def forward(self, maps: torch.Tensor, modulation: torch.Tensor | None = None) -> torch.Tensor:
        """`modulation`: (N, num_modulations), for each block a scale and then a shift of each channel."""
        if modulation is None:
            for block in self:
                maps = block(maps)
            return maps
        parts = modulation[..., None, None].chunk(2 * len(self), 1)
        for block, scale, shift in zip(self, parts[::2], parts[1::2], strict=True):
            maps = block(maps, scale, shift)
        return maps

    @torch.no_grad()
    def fold(self, modulation: torch.Tensor) -> None:
        """Applies `modulation`, (num_modulations,), to the weights of each block's first convolution."""
        for block, (scale, shift) in zip(self, modulation.view(len(self), 2, -1), strict=True):
            assert isinstance(block, Block) and block.conv1.bias is not None
            block.conv1.weight *= (1 + scale)[:, None, None, None]
            block.conv1.bias *= 1 + scale
            block.conv1.bias += shift


@register_network
class UNet(Network):
    """A U-Net, see the top of the file; see `Network` for input and output.

    A photo is padded with its edge pixels to a multiple of `multiple`, and by one more on every side for the first
    layer.
    """

    config_class = UNetConfig
    config: UNetConfig
    description = "Residual blocks of convolutions at several scales"
    source = 'Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", IEEE TPAMI 44(10), 2022.'
    first, last = "head", "tail"
    marks = ("ycbcr",)

    def __init__(self, config: UNetConfig, centred: bool = False) -> None:
        if not config.widths:
            raise UserError("unet.widths: expected at least one")
        super().__init__(config, centred)
        self.multiple = config.multiple
        self.conditioned = config.condition
        self.name = f"U-Net {'-'.join(map(str, config.widths))}"
        self.summary = _summary(config)
        widths, planes = config.widths, config.channels * config.unshuffle**2

        def blocks(width: int) -> Blocks:
            return Blocks(width, config.num_blocks)

        self.head = nn.Conv2d(planes, widths[0], 3)
        self.before = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(*pair, 2, stride=2) for pair in zip(widths, widths[1:]))
        self.bottom = blocks(widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in zip(widths[1:], widths))
        self.after = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.tail = nn.Conv2d(widths[0], planes, 3, padding=1)
        if config.condition:  # last, so that the other layers get the same random weights as without it
            num_modulations = sum(blocks.num_modulations for blocks in self.stages)
            self.modulation = nn.Sequential(nn.Linear(CONDITION_SIZE, CONDITION_FEATURES), nn.ReLU(),
                                            nn.Linear(CONDITION_FEATURES, num_modulations))

    @property
    def halo(self) -> int:
        """HALO_PIXELS, or the receptive radius where that is less, rounded up to `multiple`."""
        return self.multiple * -(-min(HALO_PIXELS, self.receptive_radius) // self.multiple)

    @property
    def stages(self) -> list[Blocks]:
        """The blocks of the way down, the bottom and the way up; both ways from the largest maps to the smallest."""
        return [*self.before, self.bottom, *self.after]

    def init_gain(self, layer: str) -> float:
        """Blocks and the whole network start as nearly the identity; layers not followed by a ReLU keep the variance;
        the condition has no effect yet.
        """
        if layer.startswith("modulation."):
            return 0.0 if layer == "modulation.2" else 1.0
        return {"conv1": 1.0, "conv2": 0.1, "tail": 0.01}.get(layer.rpartition(".")[2], math.sqrt(0.5))

    def forward(self, degraded: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return self.forward_inner(degraded, condition)

    def forward_inner(
        self, degraded: torch.Tensor, condition: torch.Tensor | None = None, inner: tuple[slice, slice] | None = None
    ) -> torch.Tensor:
        """What `forward` computes at the rows and columns `inner`, without what only the pixels around them need on the
        way up: of a tile of 768 pixels with its halo a tenth of the work.
        """
        height, width = degraded.shape[-2:]
        pixels = degraded - CENTRE if self.centred else degraded
        # torch.export traces these expressions, and the negative padding below, for any size.
        step, edge = self.multiple, self.config.unshuffle
        right, bottom = (step * ((side + step - 1) // step) - side for side in (width, height))
        pixels = functional.pad(pixels, (edge, edge + right, edge, edge + bottom), mode="replicate")
        margins, around = [0, right, 0, bottom], [0] * 4  # pixels around `inner`: left, right, top, bottom; and steps
        if inner is not None:
            rows, columns = inner
            margins = [columns.start, width + right - columns.stop, rows.start, height + bottom - rows.stop]
            around = [margin // step for margin in margins]
        maps = self.head(self.to_planes(pixels).to(self.head.weight.dtype))
        maps, kept = self._down_and_up(maps, self._modulations(condition, degraded.shape[0]), around)
        spare = [margin - step * num + edge * rest for margin, num, rest in zip(margins, around, kept, strict=True)]
        change = functional.pad(self.to_pixels(self.tail(maps)), [-num for num in spare])
        return (degraded if inner is None else degraded[..., inner[0], inner[1]]) + change

    def _down_and_up(
        self, maps: torch.Tensor, modulations: Sequence[torch.Tensor | None], around: list[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """From the first layer to the last. `around`: positions of the smallest maps at the left, right, top and bottom
        whose output is not needed; returned: those of the largest maps that are left of them.
        """
        num_skips, kept, skipped = len(self.down), around, []
        for before, down, modulation in zip(self.before, self.down, modulations, strict=False):
            skipped.append(before(maps, modulation))
            maps = down(skipped[-1])
        maps = self.bottom(maps, modulations[num_skips])
        for number in reversed(range(num_skips)):
            fewer = [min(num, -(-self._reach(number) // 2)) for num in kept]
            maps = self.up[number](_crop(maps, kept, fewer))
            kept = [2 * num for num in fewer]
            skip = _crop(skipped.pop(), [num * 2 ** (num_skips - number) for num in around], kept)
            maps = self.after[number](maps.add_(skip), modulations[num_skips + 1 + number])
        return maps, kept

    def _reach(self, number: int) -> int:
        """Positions to each side that the output depends on, of the maps that the way up has at this scale."""
        below = 1 if number == 0 else -(-self._reach(number - 1) // 2)
        return below + 2 * self.config.num_blocks

    def to_planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """The input of the first layer: pixels converted to YCbCr and unshuffled, as the config says."""
        planes, side = to_ycbcr(pixels) if self.config.ycbcr else pixels, self.config.unshuffle
        return functional.pixel_unshuffle(planes, side) if side > 1 else planes

    def to_pixels(self, planes: torch.Tensor) -> torch.Tensor:
        """The reverse of `to_planes`, for the output of the last layer."""
        side = self.config.unshuffle
        pixels = functional.pixel_shuffle(planes, side) if side > 1 else planes
        return to_rgb(pixels.to(self.tail.weight.dtype)) if self.config.ycbcr else pixels

    def _modulations(self, condition: torch.Tensor | None, num_tiles: int) -> Sequence[torch.Tensor | None]:
        """The modulation of each of `stages`, (num_tiles, num_modulations); None if not `conditioned`."""
        if not self.conditioned:
            return [None] * len(self.stages)
        if condition is None:
            condition = self.head.weight.new_zeros(num_tiles, CONDITION_SIZE)
        return self.modulation(condition).split([blocks.num_modulations for blocks in self.stages], 1)

    @torch.no_grad()
    def with_condition(self, condition: np.ndarray | torch.Tensor | None) -> UNet:
        if not self.conditioned:
            return self
        weight = self.head.weight
        with torch.device("meta"):
            model = UNet(replace(self.config, condition=False), self.centred)
        weights = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
        if condition is not None:
            condition = torch.as_tensor(condition, dtype=weight.dtype, device=weight.device)[None]
        for blocks, modulation in zip(model.stages, self._modulations(condition, 1), strict=True):
            blocks.fold(modulation[0])  # type: ignore[index]  # not None: self is conditioned
        return model.train(self.training)

    @torch.no_grad()
    def for_inference(self, dtype: torch.dtype) -> UNet:
        """A copy with weights of `dtype`, with the conversions to YCbCr and back in the first and last layer's."""
        with torch.device("meta"):
            model = UNet(replace(self.config, ycbcr=False), self.centred)
        weights = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        if self.config.ycbcr:
            colours = torch.eye(3, dtype=self.head.weight.dtype, device=self.head.weight.device)[..., None, None]
            into, back = to_ycbcr(colours)[..., 0, 0], to_rgb(colours)[..., 0, 0]  # rows: a colour converted

            def mix(tensor: torch.Tensor, colours: torch.Tensor, axis: int) -> torch.Tensor:
                planes = tensor.reshape(*tensor.shape[:axis], 3, -1, *tensor.shape[axis + 1 :])
                return torch.tensordot(colours, planes, ([1], [axis])).movedim(0, axis).flatten(axis, axis + 1)

            weights["head.weight"] = mix(weights["head.weight"], into, 1)
            for name in ("tail.weight", "tail.bias"):
                weights[name] = mix(weights[name], back.T, 0)
        model.load_state_dict(weights, assign=True)
        return model.to(dtype).to(memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def _shift_bias(self, shift: float) -> None:
        if not self.config.ycbcr:
            super()._shift_bias(shift)
            return
        assert self.head.bias is not None
        luma = self.head.weight[:, : self.config.unshuffle**2]  # the same shift of R, G and B leaves chroma as it is
        self.head.bias += shift * luma.sum(dim=(1, 2, 3))

    def load_without_centering(self, model: Network) -> None:
        """Also loads weights of the same network without a condition: the condition then has no effect yet."""
        if self.conditioned and model.config == replace(self.config, condition=False):
            conditioned = UNet(self.config)
            conditioned.load_state_dict({**self.state_dict(), **model.state_dict()})
            for parameter in conditioned.modulation[-1].parameters():
                nn.init.zeros_(parameter)
            model = conditioned
        super().load_without_centering(model)

    @classmethod
    def config_of(cls, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> UNetConfig:
        """From `metadata` come `ycbcr`, by default False, and how many of the first layer's planes are `channels`, by
        default 1 or 3 where that is possible.
        """
        if "head.weight" not in state:
            raise UserError(f"not the weights of a U-Net (no head.weight; found {', '.join(state)[:200]}); "
                            "srcnn.load_model loads every kind of network")
        names = ["head.weight", *(f"down.{scale}.weight" for scale in range(8))]
        shapes = [tuple(state[name].shape) for name in names if name in state]
        if any(len(shape) != 4 or 0 in shape for shape in shapes):
            raise UserError(f"layers of shapes {shapes} are not convolutions")
        num_blocks = sum(name.startswith("bottom.") and name.endswith(".conv1.weight") for name in state)
        channels, unshuffle = _split_planes(shapes[0][1], metadata.get("channels"))
        return UNetConfig(tuple(shape[0] for shape in shapes), num_blocks, channels, unshuffle,
                          metadata.get("ycbcr") is True, "modulation.0.weight" in state)


def _crop(maps: torch.Tensor, found: Sequence[int], wanted: Sequence[int]) -> torch.Tensor:
    """Maps with `wanted` positions at the left, right, top and bottom instead of those `found` there."""
    left, right, top, bottom = (before - after for before, after in zip(found, wanted, strict=True))
    height, width = maps.shape[-2:]
    return maps[..., top : height - bottom, left : width - right] if left or right or top or bottom else maps


def _split_planes(num_planes: int, channels: Any) -> tuple[int, int]:
    """(channels, unshuffle) that give the first layer so many planes; `channels` as a file's metadata has it."""
    for candidate in (channels, 1, 3):
        for unshuffle in UNSHUFFLES:
            if type(candidate) is int and candidate * unshuffle**2 == num_planes:
                return candidate, unshuffle
    return num_planes, 1


def _summary(config: UNetConfig) -> str:
    parts = [f"{config.num_blocks} blocks at each scale on either way"]
    if config.unshuffle > 1:
        parts.append(f"from 1/{config.unshuffle} of the resolution")
    if config.ycbcr:
        parts.append("in YCbCr")
    if config.condition:
        parts.append("conditioned on the JPEG's quantization")
    return ", ".join(parts)


def to_luma(rgb: torch.Tensor) -> torch.Tensor:
    """(..., 3, H, W) RGB -> (..., 1, H, W) Y, in the same range: Pillow's "L" without rounding."""
    red, green, blue = rgb.chunk(3, -3)
    return LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue


def to_ycbcr(rgb: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) RGB in [0, 1] -> the same shape: Y in [0, 1], Cb and Cr in [-0.5, 0.5].

    Without matrix products and convolutions, which autocast would compute in bfloat16: chroma is a small difference of
    large numbers.
    """
    luma, (red, _, blue) = to_luma(rgb), rgb.chunk(3, 1)
    return torch.cat([luma, (blue - luma) / BLUE_RANGE, (red - luma) / RED_RANGE], 1)


def to_rgb(ycbcr: torch.Tensor) -> torch.Tensor:
    """The reverse of `to_ycbcr`, for photos and for differences of photos."""
    luma, by_blue, by_red = ycbcr.chunk(3, 1)
    by_blue, by_red = BLUE_RANGE * by_blue, RED_RANGE * by_red  # B - Y, R - Y
    by_green = -(LUMA_WEIGHTS[0] * by_red + LUMA_WEIGHTS[2] * by_blue) / LUMA_WEIGHTS[1]
    return torch.cat([luma + by_red, luma + by_green, luma + by_blue], 1)
