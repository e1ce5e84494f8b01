"""The registry of damages, random augmentations that a network is trained to undo. Does not import torch.

docs/extending.md explains how to add one. JPEG and bicubic themselves are in `srcnn.photos.degradation`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from srcnn.photos import degradation
from srcnn.photos.jpeg_quality import conditions_of_qualities
from srcnn.runtime.errors import UserError
from srcnn.runtime.plugins import Registry

MCU_PIXELS = 16  # the minimum coded unit of a 4:2:0 JPEG: four blocks of luma, one of each chroma


class Damaged(NamedTuple):
    """The result of a damage.

    Attributes:
        pixels: uint8, of the shape of the input, (H, W) or (H, W, 3).
        condition: the condition vector (`jpeg_quality.condition_of`) of the damaged photo's file; None if not a JPEG.
    """

    pixels: np.ndarray
    condition: np.ndarray | None = None


Damage = Callable[..., Damaged]  # (pixels, generator, **settings)
# Decorator of a damage. It must draw all its random numbers from the generator, so that samples are reproducible.
damage = DAMAGES = Registry[Damage]("damage", num_inputs=2)


@damage
def clean(pixels: np.ndarray, _: np.random.Generator) -> Damaged:
    """Leaves the pixels as they are, with the condition vector of a JPEG without quantization."""
    return Damaged(pixels, _condition(pixels, 100, "4:4:4"))


@damage
def jpeg(
    pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95), share_444: float = 0.2
) -> Damaged:
    """JPEG whose blocks begin at the top left corner.

    Args:
        quality: [lowest, highest] on libjpeg's scale 1..100, drawn uniformly.
        share_444: probability of full chroma resolution (4:4:4) instead of half (4:2:0).
    """
    drawn = _draw_saving(generator, quality, share_444)
    return Damaged(degradation.jpeg(pixels, *drawn), _condition(pixels, *drawn))


@damage
def jpeg_twice(
    pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95), share_444: float = 0.2,
    share_shifted: float = 0.5,
) -> Damaged:
    """JPEG, perhaps cropping, and JPEG again. With equal probability the condition vector is that of the last JPEG, as
    its file has it, or that of the coarser steps of both.

    Args:
        quality, share_444: as for `jpeg`, drawn for each of the two.
        share_shifted: probability of cropping in between, so that the block grids of the two differ.
    """
    first, last = (_draw_saving(generator, quality, share_444) for _ in range(2))
    is_shifted = generator.random() < _share("share_shifted", share_shifted)
    rows, columns = generator.integers(0, MCU_PIXELS, 2) if is_shifted else (0, 0)
    padded = np.pad(pixels, [(rows, 0), (columns, 0), (0, 0)][: pixels.ndim], "symmetric")
    between = degradation.jpeg(padded, *first)[rows:, columns:]
    # libjpeg's steps never grow with the quality, so the lower quality has the coarser ones. "4:2:0" < "4:4:4".
    coarser = min(first[0], last[0]), min(first[1], last[1])
    condition = last if generator.random() < 0.5 else coarser
    return Damaged(degradation.jpeg(between, *last), _condition(pixels, *condition))


def _draw_saving(generator: np.random.Generator, quality: Sequence[int], share_444: float) -> tuple[int, str]:
    """Draws the quality of a JPEG and its chroma subsampling."""
    low, high = _bounds("quality", quality, 1, 100)
    is_444 = generator.random() < _share("share_444", share_444)
    return int(generator.integers(int(low), int(high) + 1)), "4:4:4" if is_444 else "4:2:0"


def _condition(pixels: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    return conditions_of_qualities(subsampling != "4:4:4", grey=pixels.ndim == 2)[quality]


@damage
def bicubic(pixels: np.ndarray, generator: np.random.Generator, scales: Sequence[int] = (2, 3, 4)) -> Damaged:
    """Bicubic down- and upscaling by one of these factors; the sides must be multiples of each."""
    return Damaged(degradation.bicubic(pixels, int(generator.choice(np.asarray(scales)))))


@damage
def noise(pixels: np.ndarray, generator: np.random.Generator, sigma: Sequence[float] = (1, 25)) -> Damaged:
    """White Gaussian noise with a standard deviation drawn from [low, high], in levels of 255."""
    deviation = generator.uniform(*_bounds("sigma", sigma, 0, 255))
    return Damaged(degradation.to_uint8(pixels + deviation * generator.standard_normal(pixels.shape, np.float32)))


@damage
def blur(pixels: np.ndarray, generator: np.random.Generator, sigma: Sequence[float] = (0.3, 2)) -> Damaged:
    """Pillow's Gaussian blur with a standard deviation drawn from [low, high], in pixels."""
    radius = generator.uniform(*_bounds("sigma", sigma, 0, 100))
    return Damaged(np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))))


@damage
def webp(pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95)) -> Damaged:
    """Lossy WebP with a quality drawn from [lowest, highest] within 0..100."""
    low, high = _bounds("quality", quality, 0, 100)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=int(generator.integers(int(low), int(high) + 1)))
    with Image.open(buffer) as image:
        return Damaged(np.asarray(image.convert("L" if pixels.ndim == 2 else "RGB")))


def _bounds(name: str, values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """(low, high). Raises ValueError unless they are ordered and within the limits."""
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise UserError(f"{name} {list(values)}: expected [low, high] within {least}..{most}")
    return values[0], values[1]


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{name} {value}: expected 0..1")
    return value


def check_damage(name: str, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Applies a damage to a test picture of this shape, (H, W) or (H, W, 3).

    Raises:
        ValueError: the name, a setting or its value is invalid, or the result has another shape or dtype.
    """
    settings = DAMAGES.settings(name, settings)
    damaged = DAMAGES[name](np.indices(shape).sum(0).astype(np.uint8), np.random.default_rng(0), **settings)
    if not isinstance(damaged, Damaged):
        raise UserError(f"returned {type(damaged).__name__}, expected Damaged(pixels)")
    if damaged.pixels.shape != shape or damaged.pixels.dtype != np.uint8:
        raise UserError(f"returned {damaged.pixels.dtype} {damaged.pixels.shape}, expected uint8 {shape}")
