"""Networks of other programs: any module of PyTorch, and files of weights that the package spandrel knows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import nn

from srcnn.models.base import Network
from srcnn.models.device import full_precision
from srcnn.photos.degradation import Degradation, degrade
from srcnn.runtime.errors import UserError

HALOS = (8, 16, 32, 48, 64, 96)  # pixels, tried when a halo is measured
MAX_MULTIPLE = 64  # pixels, tried for where tiles may begin; more only where the network says so
MARGIN = 100  # pixels of the test picture around its middle, at least
MIDDLE = 16  # pixels, the side of the tile that is compared
MAX_LEVELS = 0.25  # of 255, that a tile may differ; half of what `Network.halo` promises, as other photos differ more
VISIBLE, MAX_PROBED_SIDE = 1e-4, 640  # change of a pixel in [0, 1]; pixels of the picture on which a network is tried
EXTRA = "a network of another program needs the package spandrel: pip install 'srcnn[models]'"
OUR_IDS = "srcnn."  # with which the ids begin that `srcnn.spandrel` gives our networks in spandrel


@dataclass(frozen=True)
class WrappedConfig:
    """What is known of a network of another program: how many channels of a photo it takes, 1 luma or 3 RGB."""

    channels: int
    receptive_radius: int = 0


class WrappedNetwork(Network):
    """A module (1, C, H, W) float32 in [0, 1] -> the same shape as a network that photos are restored with.

    It cannot be trained, saved or exported.

    Args:
        measures: measure the halo, unless it is given, and the `multiple`, of which this one is the least, when they
            are first used (`measure_tiling`).
        function: what computes it, where it is not the module's own forward.
    """

    takes_channels_last = False  # its code may view tensors as if they were contiguous

    def __init__(
        self, module: nn.Module, halo: int | None, channels: int, multiple: int = 1, min_pixels: int = 1,
        name: str = "", function: Callable[[torch.Tensor], torch.Tensor] | None = None, measures: bool = False,
    ) -> None:
        super().__init__(WrappedConfig(channels))
        self.module = module.eval()
        self.min_pixels, self.name = min_pixels, name
        self._function, self._multiple, self._halo = function or module, multiple, halo
        self._measures, self._difference = measures, 0.0

    def _measure(self) -> None:
        if self._measures:
            self._multiple, self._halo, self._difference = measure_tiling(self, self._multiple, self._halo)
            self._measures = False
            if self._difference > MAX_LEVELS:
                warnings.warn(f"{self.name}: {self.about_halo()}; it sees more of a photo: give a larger halo, or a "
                              "tile as large as the photo", stacklevel=4)

    @property
    def halo(self) -> int:
        self._measure()
        assert self._halo is not None
        return self._halo

    @property
    def multiple(self) -> int:  # type: ignore[override]
        self._measure()
        return self._multiple

    def about_halo(self) -> str:
        """The halo in words, and what was measured with it."""
        return f"halo of {self.halo} pixels; measured: tiles within {self._difference:.2g} levels of 255 of the whole"

    def forward(self, degraded: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        restored = self._function(degraded)
        if not isinstance(restored, torch.Tensor) or restored.shape != degraded.shape:
            found = tuple(restored.shape) if isinstance(restored, torch.Tensor) else type(restored).__name__
            raise UserError(f"{self.name} gives {found} for {tuple(degraded.shape)}; expected the same shape")
        return restored

    def without_centering(self) -> NoReturn:  # every way to save or export begins with it
        raise UserError(f"{self.name} is a network of another program, which cannot be saved or exported here")


def wrap(
    module: nn.Module, *, halo: int | None = None, channels: int | None = None, multiple: int | None = None,
    min_pixels: int | None = None,
) -> Network:
    """Any module of PyTorch as a network for `srcnn.restore`, which is put into eval mode.

    Its forward takes (1, C, H, W) float32 in [0, 1] and returns the same shape. What is not given is taken from the
    module's attribute of that name, if it has one.

    Args:
        halo: pixels to each side that an output pixel depends on, so that tiles are restored as in the whole photo.
        channels: 3 (the default): RGB; 1: luma.
        multiple: tiles begin at multiples of so many pixels; 1 by default.
        min_pixels: the shortest side that it takes; 1 by default. Smaller photos are extended.

    Raises:
        ValueError: no halo, or one of them out of range.
    """
    kind = type(module).__name__

    def setting(name: str, given: int | None, default: int | None, allowed: str, is_allowed: Callable[[int], bool]
                ) -> int:
        value = getattr(module, name, default) if given is None else given
        if value is None:
            raise UserError(f"{kind}: how many pixels around it does an output pixel depend on? Use "
                            f"srcnn.wrap(module, {name}=PIXELS), or give {kind} an attribute {name}")
        if type(value) is not int or not is_allowed(value):
            raise UserError(f"{kind}: {name} is {value!r:.99}; expected {allowed}")
        return value

    def is_positive(value: int) -> bool:
        return value > 0

    return WrappedNetwork(
        module,
        setting("halo", halo, None, "a whole number from 0", lambda value: value >= 0),
        setting("channels", channels, 3, "1 (luma) or 3 (RGB)", (1, 3).__contains__),
        setting("multiple", multiple, 1, "a whole number from 1", is_positive),
        setting("min_pixels", min_pixels, 1, "a whole number from 1", is_positive),
        kind,
    )


def as_network(model: nn.Module) -> Network:
    """The network itself, or any other module wrapped by what its attributes say (`wrap`)."""
    return model if isinstance(model, Network) else wrap(model)


def from_spandrel(state: Mapping[str, torch.Tensor], path: Path, halo: int | None) -> Network | None:
    """The network of weights whose architecture spandrel recognizes by the names and shapes of its tensors; None where
    it does not, or where it is one of ours (`srcnn.spandrel.install`). `halo` None: it is measured when first used.

    Raises:
        ImportError: spandrel is missing.
        ValueError: the weights do not fit the architecture, or it is not one that restores photos of 1 or 3 channels
            in their own size.
    """
    import spandrel

    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        return None
    except Exception as error:  # whatever an architecture raises at tensors that it does not expect
        raise UserError(f"{path}: weights that spandrel cannot load: {str(error)[:300]}") from error
    if str(descriptor.architecture.id).startswith(OUR_IDS):
        return None
    name = descriptor.architecture.name
    channels = descriptor.input_channels, descriptor.output_channels
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or descriptor.scale != 1 \
            or channels not in ((1, 1), (3, 3)):
        raise UserError(f"{path}: {name}, scale {descriptor.scale}, {channels[0]} to {channels[1]} channels; expected "
                        "a network that restores photos of 1 or 3 channels in their own size")
    if halo is not None and halo < 0:
        raise UserError(f"halo {halo}: expected a number of pixels from 0")
    size, window = descriptor.size_requirements, getattr(descriptor.model, "window_size", 1)  # of transformers
    multiple = math.lcm(size.multiple_of, window if type(window) is int else 1)
    return WrappedNetwork(
        descriptor.model, halo, channels[0], multiple, max(1, size.minimum), name, descriptor, measures=True)


@torch.inference_mode()
def measure_tiling(network: Network, least_multiple: int = 1, halo: int | None = None) -> tuple[int, int, float]:
    """Where tiles may begin, and how many pixels around them a network needs, for tiles as in the whole photo.

    Compared is the middle of a JPEG of noise, restored from parts of it and from the whole.

    Returns:
        multiple: the first of `least_multiple`, twice, four times ... that, to MAX_MULTIPLE, by which the picture can
            be cut at its upper left so that the middle differs by at most MAX_LEVELS, else that of the least
            difference.
        halo: the first of HALOS, or the given one alone, rounded up to the multiple, with which the middle differs by
            at most MAX_LEVELS, else the last.
        difference: by how much it differs, in levels of 255.
    """
    multiples = [least_multiple]
    while multiples[-1] * 2 <= MAX_MULTIPLE:
        multiples.append(multiples[-1] * 2)
    margin = -(-max(MARGIN, halo or 0) // multiples[-1]) * multiples[-1]
    picture = _test_picture(MIDDLE + 2 * margin)[:, : network.config.channels].to(network.device)

    def middle(before: int, after: int) -> torch.Tensor:
        """The middle, restored with so many pixels above and left of it, and below and right."""
        part, inner = slice(margin - before, margin + MIDDLE + after), slice(before, before + MIDDLE)
        return network(picture[..., part, part])[..., inner, inner]

    with full_precision():
        whole = middle(margin, margin)

        def difference(before: int, after: int) -> float:
            return 255 * float((middle(before, after) - whole).abs().max())

        differences = {}
        for multiple in multiples:
            differences[multiple] = difference(margin - multiple, margin)
            if differences[multiple] <= MAX_LEVELS:
                break
        multiple = min(differences, key=lambda multiple: differences[multiple])
        for pixels in HALOS if halo is None else (halo,):
            rounded = -(-pixels // multiple) * multiple
            if (left := difference(rounded, rounded)) <= MAX_LEVELS:
                break
    return multiple, rounded, left


def _test_picture(side: int) -> torch.Tensor:
    """(1, 3, side, side) in [0, 1]: noise of all scales, as photographs have, saved as a JPEG of quality 20."""
    random = np.random.default_rng(0)
    levels = np.full((side, side, 3), 128.0)
    for scale in (1, 2, 4, 8, 16, 32, 64):
        coarse = random.normal(0, 3 * scale**0.5, (side // scale + 1, side // scale + 1, 3))
        for channel in range(3):
            plane = Image.fromarray(coarse[..., channel].astype(np.float32))
            levels[..., channel] += np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
    pixels = degrade(levels.clip(0, 255).astype(np.uint8), Degradation(jpeg_quality=20), 20)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def check_network(network: Network) -> None:
    """Tries a network of a plugin before it is trained, and warns where tiles cannot be as in the whole photo.

    Raises:
        UserError: another shape comes out than goes in, or its tensors are shared or not of floats.
    """
    state = network.state_dict()
    if whole := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise UserError(f"{network.name}: {whole[0]} is not of floats, which files of weights hold alone (BatchNorm "
                        "counts batches: take another normalisation)")
    if len({tensor.data_ptr() for tensor in state.values()}) < len(state):
        raise UserError(f"{network.name}: two of its tensors are the same memory, which files of weights cannot hold")
    network.eval()
    side = network.min_pixels
    for height, width in ((side, side), (side + 4, side + 13)):
        pixels = torch.rand(2, network.config.channels, height, width, device=network.device)
        with torch.inference_mode():
            restored = network(pixels)
        if restored.shape != pixels.shape:
            raise UserError(f"{network.name} gives {tuple(restored.shape)} for {tuple(pixels.shape)}, not the same")
    with full_precision():
        problem = _tiling_problem(network)
    if problem:
        warnings.warn(f"{network.name}: {problem}; tiles will differ from the whole photo", stacklevel=2)
    network.train()


@torch.inference_mode()
def _tiling_problem(network: Network) -> str:
    """What `receptive_radius` and `multiple` promise and the network does not keep; "" where nothing is found."""
    radius, multiple = network.receptive_radius, network.multiple
    before = -(-(radius + 1) // multiple) * multiple  # pixels on each side of those that are changed
    side = max(2 * before + multiple, -(-network.min_pixels // multiple) * multiple)
    if side > MAX_PROBED_SIDE:
        return ""
    pixels = torch.rand(1, network.config.channels, side + multiple, side + multiple, device=network.device)
    changed = pixels[..., :side, :side].repeat(multiple, 1, 1, 1)
    numbers = torch.arange(multiple, device=network.device)
    places = numbers + before
    changed[numbers, :, places, places] += 100
    whole, part = network(pixels), network(pixels[..., :side, :side])
    picture, row, column = ((network(changed) - part).abs().amax(1) > VISIBLE).nonzero().unbind(1)
    seen = torch.stack([row, column]) - places[picture]
    if seen.numel() and (reach := int(seen.abs().max())) > radius:
        return f"a pixel depends on others {reach} pixels away or further, its receptive_radius is {radius}"
    shifted = network(pixels[..., multiple:, multiple:])
    inner = slice(radius, side - radius)
    moved = whole[..., multiple:, multiple:][..., inner, inner] - shifted[..., inner, inner]
    return "" if moved.abs().max() < VISIBLE else f"it depends on where a tile begins, also at multiples of {multiple}"
