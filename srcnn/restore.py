"""Photos restored by a network: tile by tile with a halo, as if in one piece; colour by its luma."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from srcnn.model import SRCNN, full_precision
from srcnn.photo import JPEG_SUFFIXES, Photo, image_to_arrays, photos_below, read_photo, write_photo
from srcnn.tiles import windows

TILE_PIXELS = {"cpu": 192, "cuda": 1024}  # the activations of a tile stay in a CPU's cache, or fill a GPU
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG's Y and Pillow's L
PhotoT = TypeVar("PhotoT", np.ndarray, Image.Image, Photo)


def restore(photo: PhotoT, model: SRCNN, tile_pixels: int = 0) -> PhotoT:
    """A damaged photo -> the restored one of the same kind and size.

    Args:
        photo: a Pillow image, a `Photo`, or uint8 pixels (H, W) or (H, W, 3) RGB; any size from 1x1.
        model: on the device that is to do the work. With one channel it restores the luma (BT.601, full range) and
            the chroma stays as it is; with three it restores RGB.
        tile_pixels: side of the tiles that go through the network; 0 chooses by the device.
    """
    if isinstance(photo, Photo):
        return replace(photo, pixels=restore_pixels(photo.pixels, model, tile_pixels))
    if isinstance(photo, Image.Image):
        pixels, alpha, _ = image_to_arrays(photo)
        restored = Image.fromarray(restore_pixels(pixels, model, tile_pixels))
        if alpha is not None:
            restored.putalpha(Image.fromarray(alpha))
        restored.info.update(photo.info)
        return restored
    return restore_pixels(photo, model, tile_pixels)


def restore_pixels(pixels: np.ndarray, model: SRCNN, tile_pixels: int = 0) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) -> the same shape, restored, clipped and rounded to uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"expected uint8 (H, W) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
    if model.config.channels == 3 and pixels.ndim == 2:
        raise ValueError("this network restores RGB; the photo is greyscale: use one trained on luma")
    tile_pixels = tile_pixels or TILE_PIXELS.get(next(model.parameters()).device.type, 512)
    restored = np.empty_like(pixels)
    height, width = pixels.shape[:2]
    for window in windows(height, width, tile_pixels, halo=model.receptive_radius):
        source = pixels[window.source]
        if pixels.ndim == 2 or model.config.channels == 3:
            tile = run_network(source / np.float32(255), model) * 255
        else:
            # Replacing Y in YCbCr and going back to RGB adds the same difference to R, G and B.
            luma = source @ (LUMA_WEIGHTS / 255)
            tile = source + (run_network(luma, model) - luma)[..., None] * 255
        restored[window.target] = np.clip(np.rint(tile[window.inner]), 0, 255).astype(np.uint8)
    return restored


@torch.inference_mode()
def run_network(pixels: np.ndarray, model: SRCNN) -> np.ndarray:
    """float32 (H, W) or (H, W, 3) in [0, 1] -> the network's output, same shape, not clipped."""
    height, width = pixels.shape[:2]
    missing = [(0, max(0, model.min_pixels - height)), (0, max(0, model.min_pixels - width)), (0, 0)]
    channels = np.moveaxis(np.pad(np.atleast_3d(pixels), missing, mode="edge"), -1, 0)
    tensor = torch.from_numpy(np.ascontiguousarray(channels)[None]).to(next(model.parameters()).device)
    with full_precision():
        restored = model(tensor.contiguous(memory_format=torch.channels_last))[0].float().cpu().numpy()
    return np.moveaxis(restored, 0, -1)[:height, :width].reshape(pixels.shape)


def restore_file(path: Path, target: Path, model: SRCNN, quality: int = 95) -> Photo:
    """Restores one photo file into another, with its metadata; returns the photo as it was read, and notes on what
    could not be kept.

    Raises:
        PhotoRefused: the photo cannot be read.
    """
    photo = read_photo(path)
    write_photo(target, restore(photo, model), quality)
    if photo.alpha is not None and target.suffix.lower() in JPEG_SUFFIXES:
        return replace(photo, notes=(*photo.notes, "transparency laid over white"))
    return photo


def output_paths(source: Path, out: Path, suffix: str = "") -> dict[Path, Path]:
    """Which file each photo is restored into: a photo file, or every photo below a folder (its structure kept).

    A file keeps its name and format unless `suffix` (".png", ".jpg") says another.

    Raises:
        FileNotFoundError: no such photo, or no photo below the folder.
        ValueError: an output would be a source photo, or two photos would become the same file.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such photo or folder")
    earlier_output = None if out.resolve() == source.resolve() else out
    photos = photos_below(source, exclude=earlier_output) if source.is_dir() else [source]
    root = source if source.is_dir() else source.parent
    targets = {path: out / path.relative_to(root).with_suffix(suffix or path.suffix) for path in photos}
    sources = {path.resolve() for path in photos}
    taken: dict[Path, Path] = {}
    for path, target in targets.items():
        if target.resolve() in sources:
            raise ValueError(f"{target}: would overwrite a source photo; give another folder with -o")
        if target in taken:
            raise ValueError(f"{path} and {taken[target]} would both become {target}; restore them apart")
        taken[target] = path
    return targets
