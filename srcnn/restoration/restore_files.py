"""Photo files restored or enlarged into others: one by one or side by side, none lost, none overwritten."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from srcnn.models.base import Network
from srcnn.models.pretrained import WeightSelector
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import KINDS, PhotoRefused, open_image
from srcnn.restoration.restore import restore_canvas
from srcnn.restoration.tiled_inference import Progress, Treatment, out_of_memory
from srcnn.restoration.upscale import upscale_canvas
from srcnn.runtime.files import atomic_file
from srcnn.runtime.parallel import in_order, single_threaded_pool
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, open_regular

# Of photos restored side by side, together: 400 MB as Pillow holds RGB.
MEGAPIXELS_IN_FLIGHT = 96.0
SIDE_BY_SIDE_MEGAPIXELS = 16.0  # larger ones one after the other, all cores on the tiles of one
Work = Callable[[Path, Path, Progress | None], tuple[str, ...]]


@dataclass(frozen=True)
class RestoreFile:
    """How photo files are restored.

    Args:
        networks: one network, or those of which each photo's JPEG quality picks one.
        treatment: but for what each photo's own JPEG tells: how its chroma is smoothed, and the network's condition.
        smooth_chroma: whether it is.
        quality: of JPEG and WebP written, 1..100.
    """

    networks: WeightSelector | Network
    treatment: Treatment = Treatment()
    smooth_chroma: bool = True
    quality: int = 95

    def __call__(self, path: Path, target: Path, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Restores one photo file into another, with its metadata; returns notes: what was done, what was not kept.

        A JPEG that needs nothing is copied as it is.

        Raises:
            PhotoRefused: the photo cannot be read.
        """
        canvas = read_photo_file(path)
        notes = () if canvas.quality is None else (f"JPEG quality {canvas.quality}",)
        if isinstance(self.networks, Network):
            model = self.networks
        elif (name := self.networks.weights_for_quality(canvas.quality)) is None:
            convert = partial(write_photo_file, target, canvas, self.quality)
            return (*notes, "good already", *copy_unchanged(path, target, convert))
        else:
            model = self.networks.load(name)
            notes = (*notes, name) if self.networks.family else notes
        treatment = replace(self.treatment, chroma_quality=canvas.quality if self.smooth_chroma else None,
                            condition=canvas.condition)
        restore_canvas(canvas, model, treatment, on_progress)
        return (*notes, *canvas.notes, *write_photo_file(target, canvas, self.quality))


def copy_unchanged(path: Path, target: Path, convert: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Copies a JPEG that needs nothing, byte for byte; converts it where another format is wanted."""
    if KINDS.get(target.suffix.lower()) != "JPEG":  # only JPEGs tell that they are good, whatever they are called
        return ("converted only", *convert())
    with open_regular(path, MAX_PHOTO_BYTES) as source, atomic_file(target) as file:
        shutil.copyfileobj(source, file)
    return ("copied as it is",)


@dataclass(frozen=True)
class UpscaleFile:
    """How photo files are enlarged: see `srcnn.restoration.upscale.upscale`."""

    model: Network
    scale: int
    treatment: Treatment = Treatment()
    quality: int = 95

    def __call__(self, path: Path, target: Path, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Enlarges one photo file into another, with its metadata; returns notes on what could not be kept.

        Raises:
            PhotoRefused: the photo cannot be read.
            ValueError: the enlarged one would be larger than its format or this program allows.
        """
        canvas = read_photo_file(path)
        enlarged = upscale_canvas(canvas, self.model, self.scale, self.treatment, on_progress)
        return (*enlarged.notes, *write_photo_file(target, enlarged, self.quality))


class Outcome(NamedTuple):
    """What became of one photo: written to `target`, with notes; or why it was skipped or failed."""

    source: Path
    target: Path
    notes: tuple[str, ...] = ()
    skipped: str = ""
    error: str = ""


def process_one(
    work: Work, source: Path, target: Path, overwrite: bool = True, on_progress: Progress | None = None
) -> Outcome:
    """`work(source, target, on_progress)`, its folder made; a photo that cannot be read or written is an outcome.

    A full disk and the like are not: their OSError is raised.
    """
    try:
        if not overwrite and target.exists():
            is_older = source.exists() and target.stat().st_mtime < source.stat().st_mtime
            return Outcome(source, target, skipped="exists, older than the photo" if is_older else "exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        return Outcome(source, target, work(source, target, on_progress))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        is_scarce = out_of_memory(error)
        if isinstance(error, OSError) and error.errno is not None or isinstance(error, RuntimeError) and not is_scarce:
            raise
        name = "" if str(source) in str(error) else f"{source}: "
        return Outcome(source, target, error=f"{name}{'out of memory' if is_scarce else error}")


def work_on_files(
    targets: Mapping[Path, Path],
    work: Work,
    *,
    overwrite: bool = True,
    on_progress: Callable[[Path, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Does the work on each file into its target; outcomes in the order of `targets`.

    Small photos go side by side, each on one core from decoding to encoding, which take as long as the network; large
    ones one after the other, for which `on_progress` is called with the file, the tiles done and their number.
    """
    num_cores = torch.get_num_threads()
    num_threads = num_cores + 1 if num_cores > 1 else 1  # one more: who waits for the disk needs no core
    most = min(SIDE_BY_SIDE_MEGAPIXELS, MEGAPIXELS_IN_FLIGHT / num_threads) if len(targets) >= num_cores > 1 else 0.0

    def work_on_one(item: tuple[Path, Path], alone: bool = False) -> Outcome:
        progress = partial(on_progress, item[0]) if on_progress and alone else None
        return process_one(work, *item, overwrite=overwrite, on_progress=progress)

    with single_threaded_pool(num_threads) as pool:
        for small, group in groupby(targets.items(), lambda item: megapixels(item[0]) <= most):
            if small:
                yield from in_order(pool, work_on_one, group, ahead=num_threads)
            else:
                yield from (work_on_one(item, alone=True) for item in group)


def megapixels(path: Path) -> float:
    """By the header; 0 of what is no photo, for the reader to say why."""
    try:
        with open_image(path) as image:
            return image.width * image.height / 1e6
    except PhotoRefused:
        return 0.0
