"""The damages that a network is trained to undo, by name: small functions that draw their strength.
docs/degradations.md says how to add one. Does not import torch.

What JPEG and bicubic are is defined in `srcnn.photos.degradation`, for shards and commands too.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from srcnn.photos import degradation
from srcnn.photos.jpeg_quality import conditions_of_qualities

MCU_PIXELS = 16  # what a 4:2:0 JPEG is coded in: four blocks of luma over one of each chroma


class Damaged(NamedTuple):
    """What a damage gives: pixels as it got them, uint8 (H, W) or (H, W, 3); and the condition that its
    file would have, `jpeg_quality.condition_of`, None where it would be no JPEG.
    """

    pixels: np.ndarray
    condition: np.ndarray | None = None


Damage = Callable[..., Damaged]  # (pixels, generator, **settings)
DAMAGES: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    """Decorator: makes a function known under its name. `function(pixels, generator, **settings)` draws all its random
    numbers from the generator, so that a sample is the same whenever and wherever it is made.

    Raises:
        ValueError: another file has one of this name.
    """
    known = DAMAGES.get(function.__name__)
    if known and known.__module__ != function.__module__:
        raise ValueError(f"{function.__module__}: {known.__module__} has a damage named {function.__name__} already")
    DAMAGES[function.__name__] = function
    return function


@damage
def clean(pixels: np.ndarray, _: np.random.Generator) -> Damaged:
    """None at all; the condition says that nothing was quantized."""
    return Damaged(pixels, _condition(pixels, 100, "4:4:4"))


@damage
def jpeg(
    pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95), share_444: float = 0.2
) -> Damaged:
    """Saved as a JPEG, whose blocks begin at the corner.

    Args:
        quality: [lowest, highest] of libjpeg's 1..100; each whole number between is as likely.
        share_444: how often the chroma keeps its resolution (4:4:4); else it is halved (4:2:0).
    """
    drawn = _draw_saving(generator, quality, share_444)
    return Damaged(degradation.jpeg(pixels, *drawn), _condition(pixels, *drawn))


@damage
def jpeg_twice(
    pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95), share_444: float = 0.2,
    share_shifted: float = 0.5,
) -> Damaged:
    """Saved as a JPEG, perhaps cropped, and saved again. Half of the time the condition is the last one's, as in the
    file's own tables; else the coarser steps of both.

    Args:
        quality, share_444: as of `jpeg`, drawn for each time.
        share_shifted: how often it is cropped in between, so that the blocks of the first time begin elsewhere.
    """
    first, last = (_draw_saving(generator, quality, share_444) for _ in range(2))
    is_shifted = generator.random() < _share("share_shifted", share_shifted)
    rows, columns = generator.integers(0, MCU_PIXELS, 2) if is_shifted else (0, 0)
    larger = np.pad(pixels, [(rows, 0), (columns, 0), (0, 0)][: pixels.ndim], "symmetric")
    between = degradation.jpeg(larger, *first)[rows:, columns:]
    # libjpeg's steps never grow with the quality: the coarser of both are those of the lower one. "4:2:0" < "4:4:4".
    coarser = min(first[0], last[0]), min(first[1], last[1])
    condition = last if generator.random() < 0.5 else coarser
    return Damaged(degradation.jpeg(between, *last), _condition(pixels, *condition))


def _draw_saving(generator: np.random.Generator, quality: Sequence[int], share_444: float) -> tuple[int, str]:
    """The quality of a JPEG and its chroma subsampling."""
    low, high = _bounds("quality", quality, 1, 100)
    is_444 = generator.random() < _share("share_444", share_444)
    return int(generator.integers(int(low), int(high) + 1)), "4:4:4" if is_444 else "4:2:0"


def _condition(pixels: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    return conditions_of_qualities(subsampling != "4:4:4", grey=pixels.ndim == 2)[quality]


@damage
def bicubic(pixels: np.ndarray, generator: np.random.Generator, scales: Sequence[int] = (2, 3, 4)) -> Damaged:
    """Down and up again by one of these factors, of which the sides are multiples."""
    return Damaged(degradation.bicubic(pixels, int(generator.choice(np.asarray(scales)))))


@damage
def noise(pixels: np.ndarray, generator: np.random.Generator, sigma: Sequence[float] = (1, 25)) -> Damaged:
    """White Gaussian noise whose standard deviation is between these, in levels of 255."""
    deviation = generator.uniform(*_bounds("sigma", sigma, 0, 255))
    return Damaged(degradation.to_uint8(pixels + deviation * generator.standard_normal(pixels.shape, np.float32)))


@damage
def blur(pixels: np.ndarray, generator: np.random.Generator, sigma: Sequence[float] = (0.3, 2)) -> Damaged:
    """Gaussian blur, as Pillow approximates it, whose standard deviation is between these, in pixels."""
    radius = generator.uniform(*_bounds("sigma", sigma, 0, 100))
    return Damaged(np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))))


@damage
def webp(pixels: np.ndarray, generator: np.random.Generator, quality: Sequence[int] = (5, 95)) -> Damaged:
    """Saved as a lossy WebP of a quality between these, 0..100."""
    low, high = _bounds("quality", quality, 0, 100)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=int(generator.integers(int(low), int(high) + 1)))
    with Image.open(buffer) as image:
        return Damaged(np.asarray(image.convert("L" if pixels.ndim == 2 else "RGB")))


def _bounds(name: str, values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """[low, high], in order and within these limits, or ValueError."""
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise ValueError(f"{name} {list(values)}: expected [low, high] within {least}..{most}")
    return values[0], values[1]


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value}: expected 0..1")
    return value


def check_damage(name: str, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Tries a damage on a picture of this shape, (H, W) or (H, W, 3).

    Raises:
        ValueError: there is none of this name, or it has no such setting or value, or does not give the picture's shape
            and type.
    """
    if name not in DAMAGES:
        raise ValueError(f"no such damage; known: {', '.join(sorted(DAMAGES))}. Others are known in the program whose "
                         "file defines them (docs/degradations.md)")
    pixels = np.indices(shape).sum(0).astype(np.uint8)
    try:
        found = DAMAGES[name](pixels, np.random.default_rng(0), **settings)
    except TypeError as error:
        known = list(inspect.signature(DAMAGES[name]).parameters)[2:]
        raise ValueError(f"{error}; its settings: {', '.join(known) or 'none'}") from error
    if not isinstance(found, Damaged):
        raise ValueError(f"gave {type(found).__name__}, expected Damaged(pixels)")
    if found.pixels.shape != shape or found.pixels.dtype != np.uint8:
        raise ValueError(f"gave {found.pixels.dtype} {found.pixels.shape}, expected uint8 {shape}")
