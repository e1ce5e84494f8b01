"""Restored photos: as in one piece, colour by its luma; arrays, images, files, and folders side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from srcnn.apply import Pixels, Progress, restore_tiles
from srcnn.canvas import Canvas, direct_image, read_canvas, save_canvas
from srcnn.model import SRCNN
from srcnn.photo import Photo, PhotoRefused, open_image, photos_below
from srcnn.threads import in_order, lone_threads

# Of photos restored side by side, together: 400 MB as Pillow holds RGB.
MEGAPIXELS_IN_FLIGHT = 96.0
SIDE_BY_SIDE_MEGAPIXELS = 16.0  # larger ones one after the other, all cores on the tiles of one
PhotoT = TypeVar("PhotoT", np.ndarray, Image.Image, Photo)


def restore(
    photo: PhotoT,
    model: SRCNN,
    tile_pixels: int = 0,
    *,
    exact: bool = False,
    in_place: bool = False,
    on_progress: Progress | None = None,
) -> PhotoT:
    """A damaged photo -> the restored one of the same kind and size.

    Args:
        photo: a Pillow image, a `Photo`, or uint8 pixels (H, W) or (H, W, 3) RGB; any size from 1x1.
        model: on the device that is to do the work. With one channel it restores the luma (BT.601, full range) and
            the chroma stays as it is; with three it restores RGB.
        tile_pixels: side of the tiles that go through the network; 0 chooses by the device.
        exact: float32 throughout; else bfloat16 where the device computes it itself, several times as fast and within
            0.01 dB.
        in_place: change the photo itself and return it, without a second copy of its pixels.
        on_progress: called with the tiles done and their number.
    """
    if isinstance(photo, Photo):
        return replace(photo, pixels=restore(photo.pixels, model, tile_pixels, exact=exact, in_place=in_place,
                                             on_progress=on_progress))
    if isinstance(photo, Image.Image):
        image, _ = direct_image(photo)
        if in_place and image is not photo:
            raise ValueError(f"a Pillow image of mode {photo.mode} cannot be restored in place; convert it to RGB")
        if image is photo and not in_place:
            image = photo.copy()
        restore_canvas(Canvas(image, {}), model, tile_pixels, exact, on_progress)
        image.info.update(photo.info)
        return image
    return restore_pixels(photo, model, tile_pixels, exact=exact, in_place=in_place, on_progress=on_progress)


def restore_pixels(
    pixels: np.ndarray,
    model: SRCNN,
    tile_pixels: int = 0,
    *,
    exact: bool = False,
    in_place: bool = False,
    on_progress: Progress | None = None,
) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) -> the same shape, restored, clipped and rounded to uint8; see `restore`."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"expected uint8 (H, W) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
    check_channels(model, pixels.ndim == 2)
    if in_place and not pixels.flags.writeable:
        raise ValueError("these pixels are read-only and cannot be restored in place")
    restored = pixels if in_place else np.empty_like(pixels)
    height, width = pixels.shape[:2]
    whole = Pixels(height, width, lambda part: pixels[part].copy(), restored.__setitem__)
    restore_tiles(whole, model, tile_pixels, exact, on_progress)
    return restored


def restore_canvas(
    canvas: Canvas, model: SRCNN, tile_pixels: int = 0, exact: bool = False, on_progress: Progress | None = None
) -> None:
    """Restores a Pillow image in place."""
    check_channels(model, canvas.image.mode in ("L", "LA"))
    whole = Pixels(canvas.image.height, canvas.image.width, canvas.read, canvas.write)
    restore_tiles(whole, model, tile_pixels, exact, on_progress)


def check_channels(model: SRCNN, grey: bool) -> None:
    if model.config.channels == 3 and grey:
        raise ValueError("this network restores RGB; the photo is greyscale: use one trained on luma")


def restore_file(
    path: Path,
    target: Path,
    model: SRCNN,
    quality: int = 95,
    *,
    exact: bool = False,
    on_progress: Progress | None = None,
) -> tuple[str, ...]:
    """Restores one photo file into another, with its metadata; returns notes on what could not be kept.

    Raises:
        PhotoRefused: the photo cannot be read.
    """
    canvas = read_canvas(path)
    restore_canvas(canvas, model, exact=exact, on_progress=on_progress)
    return (*canvas.notes, *save_canvas(target, canvas, quality))


class Outcome(NamedTuple):
    """What became of one photo: written to `target`, with notes on what could not be kept; or why it was refused."""

    source: Path
    target: Path
    notes: tuple[str, ...] = ()
    refused: str = ""


def attempt(work: Callable[[Path, Path], tuple[str, ...]], source: Path, target: Path) -> Outcome:
    """`work(source, target)`, its folder made; a photo that cannot be read or written is an outcome.

    A full disk and the like are not: their OSError is raised.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Outcome(source, target, work(source, target))
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        name = "" if str(source) in str(error) else f"{source}: "
        return Outcome(source, target, refused=f"{name}{error}")


def restore_files(
    targets: Mapping[Path, Path],
    model: SRCNN,
    quality: int = 95,
    *,
    exact: bool = False,
    on_progress: Callable[[Path, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Restores each file into its target; outcomes in the order of `targets`.

    Small photos go side by side, each on one core from decoding to encoding, which take as long as the network; large
    ones one after the other, for which `on_progress` is called with the file, the tiles done and their number.
    """
    num_cores = torch.get_num_threads()
    num_threads = num_cores + 1 if num_cores > 1 else 1  # one more: who waits for the disk needs no core
    most = min(SIDE_BY_SIDE_MEGAPIXELS, MEGAPIXELS_IN_FLIGHT / num_threads) if len(targets) >= num_cores > 1 else 0.0

    def restore_one(item: tuple[Path, Path], alone: bool = False) -> Outcome:
        progress = partial(on_progress, item[0]) if on_progress and alone else None
        return attempt(partial(restore_file, model=model, quality=quality, exact=exact, on_progress=progress), *item)

    with lone_threads(num_threads) as pool:
        for small, group in groupby(targets.items(), lambda item: megapixels(item[0]) <= most):
            if small:
                yield from in_order(pool, restore_one, group, ahead=num_threads)
            else:
                yield from (restore_one(item, alone=True) for item in group)


def megapixels(path: Path) -> float:
    """By the header; 0 of what is no photo, for the reader to say why."""
    try:
        with open_image(path) as image:
            return image.width * image.height / 1e6
    except PhotoRefused:
        return 0.0


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


class CallableModule(ModuleType):
    """`srcnn.restore` is this module as soon as anything has imported it, also where the function was meant."""

    __call__ = staticmethod(restore)


sys.modules[__name__].__class__ = CallableModule
