"""Enlarges photos 2, 3 or 4 times: bicubic, then the luma is restored by a network trained for that scale.

Done tile by tile with the result of the whole photo at once; memory holds a few tiles beside source and result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from srcnn.models.base import Network
from srcnn.models.device import restoring_device
from srcnn.models.pretrained import WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL
from srcnn.models.wrapped import as_network
from srcnn.photos.metadata import with_size
from srcnn.photos.photo_file import PhotoFile, photo_file_of, read_photo_file
from srcnn.photos.reading import MAX_MEGAPIXELS
from srcnn.photos.tiling import Region
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import (
    ModelSource,
    PhotoT,
    access_to_file,
    check_pixels,
    check_types,
    image_of,
    map_arrays,
    restore,
)
from srcnn.restoration.tiled_inference import PixelAccess, Progress, RestoreOptions, restore_tiles
from srcnn.runtime.errors import UserError

SCALES = (2, 3, 4)
SUPPORT = 2  # pixels of the source to each side that bicubic interpolation uses


def weights_for_scale(scale: int) -> str:
    """The name of the shipped weights for a scale of `SCALES`."""
    check_scale(scale)
    return f"srcnn-915-x{scale}"


def check_scale(scale: int) -> None:
    if scale not in SCALES:
        raise UserError(f"scale {scale}: expected {', '.join(map(str, SCALES))}")


@overload
def upscale(
    photo: str | Path, model: ModelSource | None = None, scale: int = 2, tile_pixels: int = 0, *,
    restore_first: bool = True, exact: bool = False, ensemble: bool = False, on_progress: Progress | None = None,
) -> Image.Image: ...


@overload
def upscale(
    photo: PhotoT, model: ModelSource | None = None, scale: int = 2, tile_pixels: int = 0, *,
    restore_first: bool = True, exact: bool = False, ensemble: bool = False, on_progress: Progress | None = None,
) -> PhotoT: ...


def upscale(
    photo: np.ndarray | torch.Tensor | Image.Image | str | Path,
    model: ModelSource | None = None,
    scale: int = 2,
    tile_pixels: int = 0,
    *,
    restore_first: bool = True,
    exact: bool = False,
    ensemble: bool = False,
    on_progress: Progress | None = None,
) -> np.ndarray | torch.Tensor | Image.Image:
    """Enlarges a photo; the result has the same type, of a path a Pillow image, and is `scale` times as wide and high.

    Args:
        photo: as for `restore`: a path, a Pillow image, pixels or a tensor; any size from 1x1.
        model: a network for this scale, or a name or file of weights; None: the shipped weights for the scale. With
            one channel it restores the luma, and chroma is bicubic, as transparency always is.
        tile_pixels: as in `restore`, as are `exact`, `ensemble` and `on_progress`.
        restore_first: undo JPEG damage first, as `restore` does with shipped weights; enlarged, it would only grow.

    Raises:
        ValueError: another scale; another type of photo or model; pixels of another shape or dtype; not weights; a file
            that cannot be read as a photo (PhotoRefused).
        FileNotFoundError: no such weights.
    """
    check_scale(scale)
    check_types(photo, model)
    network = as_network(model) if isinstance(model, nn.Module) else network_for_scale(model, scale)
    options = RestoreOptions(tile_pixels, exact, ensemble=ensemble)
    if isinstance(photo, (str, Path)):
        file = read_photo_file(Path(photo))
        if restore_first:
            JpegRestorer(WeightSelector(DEFAULT_MODEL, restoring_device()), options)(access_to_file(file), file.jpeg)
        return image_of(upscale_photo_file(file, network, scale, options, on_progress))
    if restore_first:
        photo = restore(photo, tile_pixels=tile_pixels, exact=exact, ensemble=ensemble)
    if isinstance(photo, torch.Tensor):
        enlarged = photo.new_empty((*photo.shape[:-2], *(side * scale for side in photo.shape[-2:])))
        return map_arrays(photo, enlarged,
                          lambda pixels: _upscale_array(pixels, network, scale, options, on_progress))
    if isinstance(photo, np.ndarray):
        return _upscale_array(photo, network, scale, options, on_progress)
    return upscale_photo_file(photo_file_of(photo), network, scale, options, on_progress).to_image(photo)


def network_for_scale(source: str | Path | None, scale: int) -> Network:
    """The network of these weights, or of the shipped ones for the scale, on this machine's device.

    Raises:
        ValueError: a family of weights, which are chosen from by JPEG quality; or not weights.
        FileNotFoundError: no such weights.
    """
    networks = WeightSelector(str(source or weights_for_scale(scale)), restoring_device())
    if networks.family:
        raise UserError(f"{source}: weights for JPEGs; to enlarge photos use {weights_for_scale(scale)}")
    return networks.load(networks.source)


def _upscale_array(
    pixels: np.ndarray, model: Network, scale: int, options: RestoreOptions, on_progress: Progress | None
) -> np.ndarray:
    check_pixels(pixels)
    height, width = pixels.shape[:2]
    enlarged = np.empty((height * scale, width * scale, *pixels.shape[2:]), pixels.dtype)
    source = PixelAccess(height, width, pixels.__getitem__, enlarged.__setitem__, pixels.dtype)
    restore_tiles(_enlarged(source, scale), model, options, on_progress)
    return enlarged


def upscale_photo_file(
    photo: PhotoFile,
    model: Network,
    scale: int,
    options: RestoreOptions = RestoreOptions(),
    on_progress: Progress | None = None,
) -> PhotoFile:
    """A new photo file with the enlarged photo and the metadata with its new size.

    Raises:
        ValueError: it would have more than MAX_MEGAPIXELS.
    """
    check_scale(scale)
    height, width = (side * scale for side in photo.size)
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise UserError(f"would become {width}x{height}, more than {MAX_MEGAPIXELS:.0f} megapixels; "
                        "use a smaller scale")
    metadata = with_size(photo.metadata, width, height, scale)
    enlarged = replace(photo, image=photo.blank_image(height, width), metadata=metadata, jpeg=None)
    source = PixelAccess(*photo.size, photo.read, enlarged.write_all, photo.dtype)

    def write_with_alpha(part: Region, pixels: np.ndarray) -> None:
        alpha = upscaled_part(source._replace(read=lambda side: photo.read_all(side)[..., -1]), part, scale)
        levels = np.clip(np.rint(alpha), 0, np.iinfo(photo.dtype).max).astype(photo.dtype)
        enlarged.write_all(part, np.dstack([pixels, levels]))

    whole = _enlarged(source, scale)
    restore_tiles(whole._replace(write=write_with_alpha) if photo.has_alpha else whole, model, options, on_progress)
    return enlarged


def _enlarged(source: PixelAccess, scale: int) -> PixelAccess:
    """The bicubically enlarged photo; its parts are computed from the source when read."""
    read = partial(upscaled_part, source, scale=scale)
    return source._replace(height=source.height * scale, width=source.width * scale, read=read)


def upscaled_part(source: PixelAccess, part: Region, scale: int) -> np.ndarray:
    """A part of the photo enlarged by Pillow's bicubic: (h, w) or (h, w, 3), float32, neither rounded nor clipped.

    Equal to that part of the whole photo enlarged at once.
    """
    # Pillow resizes a box of whole source pixels and uses SUPPORT pixels around it, so these are read as well.
    lengths = source.height, source.width
    inner = [(side.start // scale, -(-side.stop // scale)) for side in part]
    outer = [(max(0, start - SUPPORT), min(length, stop + SUPPORT))
             for (start, stop), length in zip(inner, lengths, strict=True)]
    pixels = source.read((slice(*outer[0]), slice(*outer[1])))
    (top, bottom), (left, right) = ((start - first, stop - first)
                                    for (start, stop), (first, _) in zip(inner, outer, strict=True))
    size = (right - left) * scale, (bottom - top) * scale
    bands = [
        np.asarray(Image.fromarray(band.astype(np.float32))
                   .resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
        for band in np.moveaxis(np.atleast_3d(pixels), -1, 0)
    ]
    rows, columns = (slice(side.start - start * scale, side.stop - start * scale)
                     for side, (start, _) in zip(part, inner, strict=True))
    whole = np.stack([band[rows, columns] for band in bands], -1)
    return whole.reshape(*whole.shape[:2], *pixels.shape[2:])
