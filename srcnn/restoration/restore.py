"""Restores photos: Pillow images, NumPy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from srcnn.models.base import Network
from srcnn.models.device import restoring_device
from srcnn.models.pretrained import WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL
from srcnn.models.wrapped import as_network
from srcnn.photos.jpeg_quality import JpegSave, jpeg_save, jpeg_save_of
from srcnn.photos.metadata import pillow_options
from srcnn.photos.photo_file import PhotoFile, photo_file_of, read_photo_file
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.tiled_inference import MAX_LEVEL, PixelAccess, Progress, RestoreOptions, restore_tiles
from srcnn.runtime.errors import UserError

PhotoT = TypeVar("PhotoT", np.ndarray, torch.Tensor, Image.Image)
ModelSource = nn.Module | str | Path
PHOTO_TYPES = "the path of a photo (str or Path), a Pillow image, a NumPy array or a torch tensor"
MODEL_TYPES = "srcnn.SRCNN, srcnn.UNet, another nn.Module (srcnn.wrap), or the name, file or run folder of weights"


@overload
def restore(
    photo: str | Path, model: ModelSource | None = None, tile_pixels: int = 0, *, quality: int | None = None,
    strength: float = 1.0, force: bool = False, exact: bool = False, consistent: bool = True, ensemble: bool = False,
    in_place: bool = False, on_progress: Progress | None = None,
) -> Image.Image: ...


@overload
def restore(
    photo: PhotoT, model: ModelSource | None = None, tile_pixels: int = 0, *, quality: int | None = None,
    strength: float = 1.0, force: bool = False, exact: bool = False, consistent: bool = True, ensemble: bool = False,
    in_place: bool = False, on_progress: Progress | None = None,
) -> PhotoT: ...


def restore(
    photo: np.ndarray | torch.Tensor | Image.Image | str | Path, model: ModelSource | None = None, tile_pixels: int = 0,
    *, quality: int | None = None, strength: float = 1.0, force: bool = False, exact: bool = False,
    consistent: bool = True, ensemble: bool = False, in_place: bool = False, on_progress: Progress | None = None,
) -> np.ndarray | torch.Tensor | Image.Image:
    """Restores a degraded photo; the result has the same type, size and range, and of a path it is a Pillow image.

    Args:
        photo: a path, of which the upright image is returned, with EXIF, ICC profile, XMP and resolution in `info`; a
            Pillow image; NumPy pixels (H, W) or (H, W, 3) RGB; a torch tensor (C, H, W) or (N, C, H, W) with 1 or 3
            channels. uint8, uint16 (NumPy), or float32 in [0, 1]; any size from 1x1.
        model: a network, used on the device where it is, also any other module of PyTorch that says its halo
            (`srcnn.wrap`); a name or file of weights, by default "unet-jpeg"; or a family of shipped weights,
            "srcnn-915", of which `quality` selects one. A network of one channel restores the luma (BT.601, full
            range), one of three RGB, and greyscale as R = G = B. Weights are cached until their file changes.
        tile_pixels: side of the tiles that go through the network; 0: chosen for the device.
        quality: of the JPEG that the photo was, 1..100; by default estimated from its pixels, and from the tables of a
            path or an image just opened from a JPEG. It selects the weights, is the input of a conditioned network, and
            sets how much chroma is smoothed beside a network for luma; without one chroma is unchanged.
        strength: fraction of the network's change that is applied, 0..1.
        force: restore all photos. Without it, photos without JPEG damage and JPEGs of high quality are returned
            unchanged, if `model` is a family, or the name or file of a conditioned network.
        exact: compute in float32; else in bfloat16 where the device is faster with it, within 0.01 dB.
        consistent: keep the luma within what the JPEG allows, if `model` is a family or a conditioned network.
        ensemble: average what the network makes of the photo and of its three mirror images: in four times the time.
        in_place: change the photo itself and return it, without a second copy of its pixels.
        on_progress: called with the number of tiles done and of all tiles.

    Raises:
        ValueError: another type of photo or model; pixels of another shape or dtype; quality, strength or tile_pixels
            out of range; not weights; a file that cannot be read as a photo (PhotoRefused).
        FileNotFoundError: no such weights.
    """
    check_types(photo, model)
    networks = (as_network(model) if isinstance(model, nn.Module)
                else WeightSelector(str(model or DEFAULT_MODEL), restoring_device()))
    options = RestoreOptions(tile_pixels, exact, strength, consistent=consistent, ensemble=ensemble)
    restorer = JpegRestorer(networks, options, force=force)
    source = read_photo_file(Path(photo)) if isinstance(photo, (str, Path)) else photo
    known = None if quality is None else jpeg_save(quality, grey=_is_grey(source))
    if isinstance(source, PhotoFile):
        restorer(access_to_file(source), source.jpeg, known, on_progress)
        return image_of(source)
    if isinstance(source, Image.Image):
        return _restore_image(source, partial(restorer, known=known, on_progress=on_progress), in_place)

    def restore_pixels(pixels: np.ndarray) -> np.ndarray:
        restored = _writable(pixels, in_place)
        restorer(access_to_array(restored), None, known, on_progress)
        return restored

    if isinstance(source, torch.Tensor):
        return map_arrays(source, source if in_place else torch.empty_like(source), restore_pixels)
    return restore_pixels(source)


def _restore_image(image: Image.Image, work: Callable[[PixelAccess, JpegSave | None], object], in_place: bool
                   ) -> Image.Image:
    file = photo_file_of(image)
    if in_place and file.image is not image:
        raise UserError(f"a Pillow image of mode {image.mode} cannot be restored in place; convert it to RGB")
    if file.image is image and not in_place:
        file = PhotoFile(image.copy())
    work(access_to_file(file), jpeg_save_of(image))
    return file.to_image(image)


def check_types(photo: object, model: object) -> None:
    """Raises UserError, which says what is accepted, where a photo or a model is something else."""
    if not isinstance(photo, (str, Path, Image.Image, np.ndarray, torch.Tensor)):
        raise UserError(f"the photo is of type {type(photo).__name__}; expected {PHOTO_TYPES}")
    if model is not None and not isinstance(model, (str, Path, nn.Module)):
        raise UserError(f"the model is of type {type(model).__name__}; expected {MODEL_TYPES}")


def image_of(file: PhotoFile) -> Image.Image:
    """A photo file as a Pillow image with its metadata in `info`. Colours of 16 bits, which Pillow lacks, get 8."""
    if isinstance(file.image, np.ndarray) and file.image.ndim == 2:
        image = Image.fromarray(file.image)
    else:
        image = file.eight_bit_image()
    image.info.update(pillow_options(file.metadata, "WEBP"))  # all that is kept for more formats than one
    return image


def _is_grey(photo: np.ndarray | torch.Tensor | Image.Image | PhotoFile) -> bool:
    if isinstance(photo, PhotoFile):
        return photo.is_grey
    if isinstance(photo, Image.Image):
        return photo.mode in ("1", "L", "LA", "La") or photo.mode.startswith("I")
    return photo.ndim == 2 or isinstance(photo, torch.Tensor) and photo.shape[-3] == 1


def map_arrays(photo: torch.Tensor, result: torch.Tensor, work: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """Applies `work` to each photo of (C, H, W) or (N, C, H, W), as an array (H, W) or (H, W, 3), and fills `result`.

    Raises:
        ValueError: another shape or dtype.
    """
    if photo.ndim not in (3, 4) or photo.shape[-3] not in (1, 3) or photo.dtype not in (torch.uint8, torch.float32):
        raise UserError("expected uint8 or float32 (C, H, W) or (N, C, H, W) with 1 or 3 channels, "
                        f"found {photo.dtype} {tuple(photo.shape)}")
    photos, results = (each if each.ndim == 4 else each[None] for each in (photo, result))
    for before, after in zip(photos, results, strict=True):
        pixels = before.detach().cpu().permute(1, 2, 0).contiguous().numpy()
        restored = np.atleast_3d(work(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        after.copy_(torch.from_numpy(restored).permute(2, 0, 1))
    return result


def restore_array(pixels: np.ndarray, model: Network, options: RestoreOptions = RestoreOptions()) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8, uint16 or float32 in [0, 1] -> the same shape and dtype, restored."""
    restored = _writable(pixels, in_place=False)
    restore_tiles(access_to_array(restored), model, options)
    return restored


def _writable(pixels: np.ndarray, in_place: bool) -> np.ndarray:
    """The array itself, or a copy. Raises UserError if it is not a photo, or is read-only."""
    check_pixels(pixels)
    if in_place and not pixels.flags.writeable:
        raise UserError("the array is read-only and cannot be restored in place")
    return pixels if in_place else pixels.copy()


def access_to_array(pixels: np.ndarray) -> PixelAccess:
    """To an array (H, W) or (H, W, 3), uint8, uint16 or float32."""
    height, width = pixels.shape[:2]
    return PixelAccess(height, width, lambda part: pixels[part].copy(), pixels.__setitem__, pixels.dtype)


def access_to_file(file: PhotoFile) -> PixelAccess:
    """To the colours of a photo file in memory."""
    return PixelAccess(*file.size, file.read, file.write, file.dtype)


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError at an array that is not a photo."""
    if pixels.dtype not in MAX_LEVEL or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise UserError(f"expected uint8, uint16 or float32, (H, W) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
