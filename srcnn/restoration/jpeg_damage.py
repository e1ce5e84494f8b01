"""Finds the JPEG damage of a photo and undoes it: leaves alone what has none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from srcnn.models.base import Network
from srcnn.models.pretrained import WeightSelector
from srcnn.photos.jpeg_history import worst_save
from srcnn.photos.jpeg_quality import JpegSave
from srcnn.photos.reading import to_eight_bits
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS
from srcnn.restoration.tiled_inference import PixelAccess, Progress, RestoreOptions, restore_tiles

MAX_SAMPLE_SIDE = 4096  # pixels, of the middle of a photo from which the damage is estimated


class Treatment(NamedTuple):
    """What was found in a photo and done to it.

    Attributes:
        damage: the coarsest JPEG compression that the photo went through; None: none was found.
        file: that of its own file; None if it is not a JPEG.
        was_restored: False: the pixels are unchanged.
        weights: the name of the weights that were chosen from a family; else "".
    """

    damage: JpegSave | None
    file: JpegSave | None
    was_restored: bool
    weights: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found and chosen, in words."""
        if self.damage is None:
            found = "no JPEG damage found"
        elif self.file is None:
            found = f"once a JPEG {self.damage.quality}"
        elif self.file is not self.damage:
            found = f"JPEG {self.damage.quality}, saved again at {self.file.quality}"
        else:
            found = f"JPEG {self.file.quality}"
        if not self.was_restored and self.damage is not None:
            return found, "good already"
        return (found, self.weights) if self.weights else (found,)


@dataclass(frozen=True)
class JpegRestorer:
    """Restores photos by the JPEG damage that each of them has.

    Args:
        networks: one network, which is used for all photos; or those to choose from, which leave good photos alone.
        options: for all photos; its `damage` is replaced by that of each photo.
        force: restore photos without damage, too.
    """

    networks: WeightSelector | Network
    options: RestoreOptions = RestoreOptions()
    force: bool = False

    def __call__(
        self, photo: PixelAccess, file: JpegSave | None = None, known: JpegSave | None = None,
        on_progress: Progress | None = None,
    ) -> Treatment:
        """Restores a photo, or leaves it alone.

        Args:
            file: the compression of the photo's own file, if it is a JPEG.
            known: the damage, if it need not be looked for in the pixels.
        """
        damage = known or (find_damage(photo, file) if self._depends_on_damage(photo) else file)
        name = ""
        if isinstance(self.networks, Network):
            network = self.networks
        else:
            weights = self.networks.weights_for_quality(None if damage is None else damage.quality, self.force)
            if weights is None:
                return Treatment(damage, file, was_restored=False)
            network, name = self.networks.load(weights), weights if self.networks.family else ""
        consistent = self.options.consistent and self._is_for_jpeg
        restore_tiles(photo, network, replace(self.options, damage=damage, consistent=consistent), on_progress)
        return Treatment(damage, file, True, name)

    @property
    def _is_for_jpeg(self) -> bool:
        """Whether the networks undo JPEG damage and nothing else: noise and blur lie outside of what a JPEG allows."""
        if isinstance(self.networks, Network):
            return self.networks.conditioned
        return self.networks.good_quality is not None

    def _depends_on_damage(self, photo: PixelAccess) -> bool:
        if self._is_for_jpeg:
            return True
        selector = self.networks
        network = selector if isinstance(selector, Network) else selector.load(selector.source)
        is_colour = photo.read((slice(0, 1), slice(0, 1))).ndim == 3
        return self.options.smooth_chroma and network.config.channels == 1 and is_colour


def find_damage(photo: PixelAccess, file: JpegSave | None) -> JpegSave | None:
    """The coarsest JPEG compression that a photo went through, by its pixels and its own file (`worst_save`)."""
    region = _middle(photo.height), _middle(photo.width)
    pixels = photo.read(region)
    if pixels.dtype == np.uint16:
        pixels = to_eight_bits(pixels)
    elif pixels.dtype != np.uint8:
        pixels = np.rint(255 * np.nan_to_num(pixels).clip(0, 1)).astype(np.uint8)
    return worst_save(pixels, file)


def _middle(length: int) -> slice:
    """At most MAX_SAMPLE_SIDE in the middle of a side, beginning at a multiple of JPEG_BLOCK_PIXELS."""
    start = max(0, length - MAX_SAMPLE_SIDE) // 2
    start -= start % JPEG_BLOCK_PIXELS
    return slice(start, min(length, start + MAX_SAMPLE_SIDE))
