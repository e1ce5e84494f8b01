"""Makes training pairs of clean tiles during training: crops, downscales, augments and degrades them.

The random numbers of a sample depend only on the seed and its position in the stream. Does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from srcnn.data.dataset import PairBuffer
from srcnn.data.shuffle import generator_at
from srcnn.photos.damages import DAMAGES, check_damage
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.photos.reading import luma_l
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS
from srcnn.runtime.errors import UserError
from srcnn.runtime.plugins import load_plugins, loaded_plugins

WEIGHT = "weight"  # of a damage, beside its settings


@dataclass(frozen=True)
class DegradationConfig:
    """How training pairs are made of shards whose training samples are clean tiles only.

    Args:
        crop_pixels: side of the pairs, a multiple of 8; 0: the shards hold pairs, nothing is degraded during training.
        scales: up to 1, equally likely; crops of crop_pixels/scale are downscaled to crop_pixels.
        damages: settings by name, and a `weight` (default 1), to which the damage's share of the samples is
            proportional: {jpeg: {weight: 3, quality: [5, 95]}, clean: {}}; docs/degradations.md.
        unknown: fraction of the samples for which a conditioned network gets no condition.
        grey: fraction of the samples of colour tiles that are greyscale, R = G = B, damaged as a greyscale photo.
    """

    crop_pixels: int = 0
    scales: list[float] = field(default_factory=lambda: [1.0])
    damages: dict[str, dict[str, Any]] = field(default_factory=dict)
    unknown: float = 0.1
    grey: float = 0.0

    def __post_init__(self) -> None:
        crop = self.crop_pixels
        if crop < 0 or crop % JPEG_BLOCK_PIXELS:
            raise UserError(f"degradation.crop_pixels {crop}: expected a multiple of {JPEG_BLOCK_PIXELS}, or 0")
        if bool(crop) != bool(self.damages):
            raise UserError("degradation: give both crop_pixels and damages, or neither")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise UserError(f"degradation.scales {self.scales}: expected numbers above 0, up to 1")
        for name in ("unknown", "grey"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"degradation.{name} {share}: expected 0..1")
        for name, settings in self.damages.items():
            weight = settings.get(WEIGHT, 1)
            if not isinstance(weight, (int, float)) or not weight > 0:
                raise UserError(f"degradation.damages.{name}.{WEIGHT} {weight}: expected a number above 0")

    def check(self, tile_shape: tuple[int, ...]) -> None:
        """Tries every damage on a pair made of clean tiles of this shape. Raises ValueError, which names the key."""
        for name, settings in self.damages.items():
            try:
                check_damage(name, _without_weight(settings), self.pair_shape(tile_shape))
            except ValueError as error:
                raise UserError(f"degradation.damages.{name}: {error}") from error

    def pair_shape(self, tile_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(S, S) or (S, S, 3), of pairs made of clean tiles of this shape. Raises ValueError if these are too small."""
        largest = max(self.source_sides)
        if largest > min(tile_shape[:2]):
            raise UserError(f"degradation.crop_pixels {self.crop_pixels}, degradation.scales {self.scales}: crops of "
                             f"up to {largest} pixels, tiles have {tile_shape[1]}x{tile_shape[0]}")
        return (self.crop_pixels, self.crop_pixels, *tile_shape[2:])

    @cached_property
    def source_sides(self) -> tuple[int, ...]:
        """The side of the crops before they are downscaled, for each scale; pixels."""
        return tuple(round(self.crop_pixels / scale) for scale in self.scales)

    @cached_property
    def choices(self) -> tuple[tuple[str, dict[str, Any], float], ...]:
        """(name, settings, bound) of each damage; the first one whose bound is above a random number is chosen."""
        names = sorted(self.damages)
        weights = np.array([self.damages[name].get(WEIGHT, 1) for name in names], np.float64)
        bounds = [*(weights.cumsum() / weights.sum())[:-1].tolist(), 1.0]
        settings = (DAMAGES.settings(name, _without_weight(self.damages[name])) for name in names)
        return tuple(zip(names, settings, bounds))


def _without_weight(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != WEIGHT}


class TrainingPair(NamedTuple):
    """Pictures, uint8 (S, S) or (S, S, 3), and the input of a conditioned network, float32 (CONDITION_SIZE,)."""

    clean: np.ndarray
    degraded: np.ndarray
    condition: np.ndarray


def make_training_pair(
    tile: np.ndarray, config: DegradationConfig, generator: np.random.Generator, symmetry: int = 0
) -> TrainingPair:
    """Makes a pair of a clean tile, uint8 (H, W) or (H, W, 3).

    The symmetry is applied before the damage, as JPEG blocks start at the top left corner, and rows are not coded like
    columns.
    """
    source = config.source_sides[generator.integers(len(config.source_sides))]
    top, left = (int(generator.integers(0, side - source + 1)) for side in tile.shape[:2])
    clean = tile[top : top + source, left : left + source]
    if source != config.crop_pixels:
        size = (config.crop_pixels, config.crop_pixels)
        clean = np.asarray(Image.fromarray(clean).resize(size, Image.Resampling.LANCZOS))
    clean = np.ascontiguousarray(apply_symmetry(clean, symmetry))
    is_grey = clean.ndim == 3 and config.grey > 0 and generator.random() < config.grey
    if is_grey:
        clean = luma_l(clean)
    is_known, drawn = generator.random() >= config.unknown, generator.random()
    name, settings = next((name, settings) for name, settings, bound in config.choices if drawn < bound)
    degraded, condition = DAMAGES[name](clean, generator, **settings)
    if not is_known or condition is None:
        condition = np.zeros(CONDITION_SIZE, np.float32)
    if is_grey:
        clean, degraded = (np.repeat(each[..., None], 3, axis=2) for each in (clean, degraded))
    return TrainingPair(clean, degraded, condition)


def apply_symmetry(pixels: np.ndarray, symmetry: int) -> np.ndarray:
    """Transforms pixels (S, S) or (S, S, 3) by a symmetry 0..7, like `transforms.apply_symmetries`; returns a view.

    For 96x96 grey pixels this takes 12 microseconds, torchvision's flips 92.
    """
    flipped = pixels[:: -1 if symmetry & 2 else 1, :: -1 if symmetry & 1 else 1]
    return flipped.swapaxes(0, 1) if symmetry & 4 else flipped


class PairMaker:
    """Makes the pairs of a batch; safe to use from several threads. `pair_shape` is (S, S) or (S, S, 3)."""

    def __init__(self, config: DegradationConfig, seed: int, augment: bool, tile_shape: tuple[int, ...]) -> None:
        self.config, self.seed, self.augment = config, seed, augment
        self.pair_shape = config.pair_shape(tile_shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"plugins": loaded_plugins()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        load_plugins(state.pop("plugins"))  # in a spawned process, such as a worker of a DataLoader
        self.__dict__ |= state

    def fill(self, tiles: np.ndarray, positions: np.ndarray, symmetries: np.ndarray, buffer: PairBuffer) -> np.ndarray:
        """Makes pairs of clean tiles (N, H, W[, 3]) at positions (N,) of the stream and writes them to `buffer`.

        Returns:
            The conditions, float32 (N, CONDITION_SIZE).
        """
        conditions = np.empty((len(tiles), CONDITION_SIZE), np.float32)
        for index, (tile, position, symmetry) in enumerate(zip(tiles, positions.tolist(), symmetries.tolist())):
            generator = generator_at(self.seed, position)
            pair = make_training_pair(tile, self.config, generator, symmetry if self.augment else 0)
            buffer.clean[index], buffer.degraded[index], conditions[index] = pair
        return conditions
