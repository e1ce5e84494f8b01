"""Restored photos: as in one piece, colour by its luma or as RGB; arrays, tensors and images in, the same kind out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from srcnn.models.base import Network
from srcnn.models.device import device_here
from srcnn.models.pretrained import FAMILY, WeightSelector
from srcnn.photos.jpeg_quality import condition_of_image, condition_of_quality, quality_of
from srcnn.photos.photo_file import PhotoFile, photo_file_of
from srcnn.restoration.tiled_inference import LEVELS, Pixels, Progress, Treatment, restore_tiles

PhotoT = TypeVar("PhotoT", np.ndarray, torch.Tensor, Image.Image)


def restore(
    photo: PhotoT,
    model: Network | str | None = None,
    tile_pixels: int = 0,
    *,
    quality: int | None = None,
    strength: float = 1.0,
    exact: bool = False,
    in_place: bool = False,
    on_progress: Progress | None = None,
) -> PhotoT:
    """A damaged photo -> the restored one of the same kind, size and range.

    Args:
        photo: a Pillow image; NumPy pixels (H, W) or (H, W, 3) RGB; a torch tensor (C, H, W) or (N, C, H, W) with 1 or
            3 channels. uint8, uint16 (NumPy), or float32 in [0, 1]; any size from 1x1.
        model: on the device that is to do the work; or its name or file; or a family of shipped weights, of which the
            one for the photo's `quality` is taken, as without a model. With one channel it restores the luma (BT.601,
            full range), with three RGB, and greyscale as R = G = B. Weights by name are read once, and again when their
            file changes.
        tile_pixels: side of the tiles that go through the network; 0 chooses by the device.
        quality: of the JPEG the photo comes from, 1..100. It picks the weights, or is an input of a conditioned
            network, and smooths the chroma beside a network for the luma; a photo that is good already comes back as it
            is. An image that `Image.open` has just read from a JPEG knows it itself; without one the chroma stays as
            it is.
        strength: share of the network's change that is made, 0..1.
        exact: float32 throughout; else bfloat16 where the device is faster with it, several times for some, and within
            0.01 dB.
        in_place: change the photo itself and return it, without a second copy of its pixels.
        on_progress: called with the tiles done and their number.
    """
    condition = None
    if isinstance(photo, Image.Image) and quality is None:
        quality, condition = quality_of(photo), condition_of_image(photo)
    treatment = Treatment(tile_pixels, exact, strength, quality, condition)
    if quality is not None and condition is None:
        treatment = replace(treatment, condition=condition_of_quality(quality, grey=_is_grey(photo)))
    if not isinstance(model, Network):
        networks = WeightSelector(model or FAMILY, device_here())
        name = networks.weights_for_quality(quality)
        if name is None:
            return photo if in_place else photo.clone() if isinstance(photo, torch.Tensor) else photo.copy()
        model = networks.load(name)
    if isinstance(photo, Image.Image):
        return _restore_image(photo, model, treatment, in_place, on_progress)
    if isinstance(photo, torch.Tensor):
        network = model
        return through_arrays(photo, photo if in_place else torch.empty_like(photo),
                              lambda pixels: _restore_array(pixels, network, treatment, False, on_progress))
    return _restore_array(photo, model, treatment, in_place, on_progress)


def _is_grey(photo: np.ndarray | torch.Tensor | Image.Image) -> bool:
    if isinstance(photo, Image.Image):
        return photo.mode in ("1", "L", "LA", "La") or photo.mode.startswith("I")
    return photo.ndim == 2 or isinstance(photo, torch.Tensor) and photo.shape[-3] == 1


def _restore_image(
    photo: Image.Image, model: Network, treatment: Treatment, in_place: bool, on_progress: Progress | None
) -> Image.Image:
    canvas = photo_file_of(photo)
    if in_place and canvas.image is not photo:
        raise ValueError(f"a Pillow image of mode {photo.mode} cannot be restored in place; convert it to RGB")
    if canvas.image is photo and not in_place:
        canvas = PhotoFile(photo.copy())
    restore_canvas(canvas, model, treatment, on_progress)
    return canvas.to_image(photo)


def through_arrays(photo: torch.Tensor, result: torch.Tensor, work: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """`work` on each photo of (C, H, W) or (N, C, H, W), as an array (H, W) or (H, W, 3), into `result`.

    Raises:
        ValueError: another shape or dtype.
    """
    if photo.ndim not in (3, 4) or photo.shape[-3] not in (1, 3) or photo.dtype not in (torch.uint8, torch.float32):
        raise ValueError("expected uint8 or float32 (C, H, W) or (N, C, H, W) with 1 or 3 channels, "
                         f"found {photo.dtype} {tuple(photo.shape)}")
    photos, results = (each if each.ndim == 4 else each[None] for each in (photo, result))
    for before, after in zip(photos, results, strict=True):
        pixels = before.detach().cpu().permute(1, 2, 0).contiguous().numpy()
        done = np.atleast_3d(work(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        after.copy_(torch.from_numpy(done).permute(2, 0, 1))
    return result


def restore_pixels(
    pixels: np.ndarray,
    model: Network,
    tile_pixels: int = 0,
    *,
    exact: bool = False,
    quality: int | None = None,
    condition: np.ndarray | None = None,
) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8, uint16 or float32 in [0, 1] -> the same shape, restored; see `restore`.

    `condition` is the input of a conditioned network, in place of that of `quality`.
    """
    treatment = Treatment(tile_pixels, exact, chroma_quality=quality, condition=condition)
    if quality is not None and condition is None:
        treatment = replace(treatment, condition=condition_of_quality(quality, grey=_is_grey(pixels)))
    return _restore_array(pixels, model, treatment, False, None)


def _restore_array(
    pixels: np.ndarray, model: Network, treatment: Treatment, in_place: bool, on_progress: Progress | None
) -> np.ndarray:
    check_pixels(pixels)
    if in_place and not pixels.flags.writeable:
        raise ValueError("these pixels are read-only and cannot be restored in place")
    restored = pixels if in_place else np.empty_like(pixels)
    height, width = pixels.shape[:2]
    whole = Pixels(height, width, lambda part: pixels[part].copy(), restored.__setitem__, pixels.dtype)
    restore_tiles(whole, model, treatment, on_progress)
    return restored


def restore_canvas(
    canvas: PhotoFile, model: Network, treatment: Treatment = Treatment(), on_progress: Progress | None = None
) -> None:
    """Restores a photo in place."""
    whole = Pixels(*canvas.size, canvas.read, canvas.write, canvas.dtype)
    restore_tiles(whole, model, treatment, on_progress)


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError at an array that is no photo."""
    if pixels.dtype not in LEVELS or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"expected uint8, uint16 or float32, (H, W) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
