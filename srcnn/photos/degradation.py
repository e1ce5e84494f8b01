"""Degradations of clean photos: bicubic down- and upscaling, then JPEG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from srcnn.runtime.errors import UserError


@dataclass(frozen=True)
class Degradation:
    """How clean photos are degraded.

    Args:
        jpeg_quality: JPEG quality 1..100 on libjpeg's scale; [low, high] draws one for each photo, from the hash
            of its content; [] means no JPEG.
        jpeg_subsampling: chroma subsampling of the JPEG.
        scale: bicubic down- and upscaling by this factor before the JPEG, as in the SRCNN paper; 1 means none.
    """

    jpeg_quality: int | list[int] = 20
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    scale: int = 1

    def __post_init__(self) -> None:
        qualities = self.quality_bounds()
        if not all(1 <= quality <= 100 for quality in qualities) or len(qualities) not in (0, 2):
            raise UserError(f"jpeg_quality {self.jpeg_quality}: expected 1..100, [low, high] or []")
        if qualities and qualities[0] > qualities[1]:
            raise UserError(f"jpeg_quality {self.jpeg_quality}: expected [low, high] with low <= high")
        if self.scale < 1:
            raise UserError(f"scale {self.scale}: expected a whole number from 1")
        if not qualities and self.scale == 1:
            raise UserError("jpeg_quality [] with scale 1 degrades nothing; give a quality or a scale")

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> Degradation:
        """From a manifest or a model card. Drops the key `jpeg_optimize` of older ones, which changed no pixel."""
        return Degradation(**{key: value for key, value in values.items() if key != "jpeg_optimize"})

    def quality_bounds(self) -> tuple[int, ...]:
        """(low, high), both the same for a single quality; () without a JPEG."""
        if isinstance(self.jpeg_quality, int):
            return (self.jpeg_quality, self.jpeg_quality)
        return tuple(self.jpeg_quality)

    def quality(self, content_sha256: str) -> int | None:
        """The JPEG quality of a photo, drawn uniformly from the bounds by its hash; None without a JPEG."""
        if not (bounds := self.quality_bounds()):
            return None
        low, high = bounds
        # Not the first hex digits, which choose the split: the two must be independent.
        return low + int(content_sha256[32:48], 16) % (high - low + 1)


def jpeg(pixels: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """Encodes uint8 pixels, (H, W) or (H, W, 3), as JPEG with Pillow and decodes them again; same shape."""
    options = {} if pixels.ndim == 2 else {"subsampling": subsampling}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    with Image.open(buffer) as image:
        return np.asarray(image)


def bicubic(pixels: np.ndarray, scale: int) -> np.ndarray:
    """`bicubic_levels`, rounded and clipped to uint8; same shape."""
    return to_uint8(bicubic_levels(pixels, scale))


def bicubic_levels(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic down- and upscaling by `scale` with antialiasing: float32 levels, not rounded or clipped; same shape.

    The protocol of the SRCNN paper. Pillow's float bicubic agrees with MATLAB's imresize within 0.01 dB on Set5.

    Raises:
        ValueError: a side is not a multiple of `scale`; see `crop_to_multiple`.
    """
    height, width = pixels.shape[:2]
    if height % scale or width % scale:
        raise UserError(f"{width}x{height} pixels: sides are not multiples of the scale {scale}")

    def down_and_up(band: np.ndarray) -> np.ndarray:
        image = Image.fromarray(band.astype(np.float32))
        small = image.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))

    bands = [down_and_up(band) for band in np.moveaxis(np.atleast_3d(pixels), -1, 0)]
    return np.stack(bands, -1).reshape(pixels.shape)


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Levels of any dtype, rounded and clipped to 0..255."""
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def crop_to_multiple(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Crops at the bottom and the right so that both sides are multiples (`modcrop` in the papers' code)."""
    height, width = pixels.shape[:2]
    return pixels[: height - height % multiple, : width - width % multiple]


def degrade(pixels: np.ndarray, degradation: Degradation, quality: int | None) -> np.ndarray:
    """Degrades uint8 pixels, (H, W) or (H, W, 3); same shape. `quality` is the result of `Degradation.quality`."""
    degraded = pixels if degradation.scale == 1 else bicubic(pixels, degradation.scale)
    return degraded if quality is None else jpeg(degraded, quality, degradation.jpeg_subsampling)
