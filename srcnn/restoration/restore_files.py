"""Restores or enlarges photo files into other files, several in parallel."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from srcnn.models.base import Network
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import KINDS, PhotoRefused, open_image
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import access_to_file
from srcnn.restoration.tiled_inference import Progress, RestoreOptions
from srcnn.restoration.upscale import upscale_photo_file
from srcnn.runtime.errors import is_out_of_memory
from srcnn.runtime.files import atomic_file, remove_unfinished
from srcnn.runtime.parallel import in_order, single_threaded_pool
from srcnn.runtime.untrusted import MAX_PHOTO_BYTES, open_regular

MEGAPIXELS_IN_FLIGHT = 96.0  # of photos processed in parallel, together: 400 MB, as Pillow stores RGB
PARALLEL_MEGAPIXELS = 16.0  # larger photos are processed one after the other, with all cores on the tiles of one
COPIED = "copied as it is"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # of the output, which meet every further photo
REMEDIES = {
    errno.ENAMETOOLONG: "; shorten the name of the photo, or give a folder with -o or a shorter --suffix",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; give another folder with -o"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space, or give another folder with -o"),
}
Work = Callable[[Path, Path, Progress | None], tuple[str, ...]]


# (upper bound of the quality before restoring, quality of the JPEG written): the lowest of 95, 97 and 98 that loses at
# most 0.05 dB more than 100 does (python -m benchmarks.damages --quality N).
JPEG_QUALITIES = ((15, 95), (25, 97), (100, 98))


@dataclass(frozen=True)
class RestoreFile:
    """Restores photo files.

    Args:
        restorer: finds and undoes the damage of each photo.
        quality: of the JPEG and WebP files written, 1..100; None: chosen by the damage, and lossless WebP stays so.
        allow_truncated: whether of photos that are cut off what is there is restored.
    """

    restorer: JpegRestorer
    quality: int | None = None
    allow_truncated: bool = False

    def __call__(self, path: Path, target: Path, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Restores one photo file into another, with its metadata; returns notes on what was done and not kept.

        A photo that is left alone is copied byte for byte, with its modification time, or only converted where the
        target has another format.

        Raises:
            PhotoRefused: the photo cannot be read.
        """
        photo = read_photo_file(path, allow_truncated=self.allow_truncated)
        treatment = self.restorer(access_to_file(photo), photo.jpeg, on_progress=on_progress)
        kind = KINDS.get(target.suffix.lower())
        if not treatment.was_restored and kind == photo.kind and not photo.is_completed:
            _copy(path, target)
            return (*treatment.notes, COPIED)
        quality = self.quality
        if quality is None and kind == "JPEG" and treatment.damage is not None:
            quality = jpeg_quality_for(treatment.damage.quality)
        done = () if treatment.was_restored else ("converted only",)
        return (*treatment.notes, *done, *photo.notes, *write_photo_file(target, photo, quality))


def jpeg_quality_for(damage_quality: int) -> int:
    """The quality at which to save a photo as JPEG that was restored from a JPEG of `damage_quality`."""
    return next(quality for bound, quality in JPEG_QUALITIES if damage_quality <= bound)


def _copy(path: Path, target: Path) -> None:
    """Copies a file with its modification time."""
    with open_regular(path, MAX_PHOTO_BYTES) as source, atomic_file(target) as file:
        shutil.copyfileobj(source, file)
        file.flush()  # as writing later would change the time again
        status = os.fstat(source.fileno())
        with suppress(OSError, TypeError):  # a disk that has no times, or Windows, which does not take a descriptor
            os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


@dataclass(frozen=True)
class UpscaleFile:
    """Enlarges photo files; see `srcnn.upscale`.

    Args:
        model: for this scale.
        restorer: undoes the damage of each photo first; None: not done.
        quality: of the JPEG and WebP files written, 1..100; None: 95, and lossless WebP stays so.
    """

    model: Network
    scale: int
    restorer: JpegRestorer | None = None
    options: RestoreOptions = RestoreOptions()
    quality: int | None = None
    allow_truncated: bool = False

    def __call__(self, path: Path, target: Path, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Enlarges one photo file into another, with its metadata; returns notes on what was done and not kept.

        Raises:
            PhotoRefused: the photo cannot be read.
            ValueError: the enlarged photo would be larger than its format or this program allows.
        """
        photo = read_photo_file(path, allow_truncated=self.allow_truncated)
        notes: tuple[str, ...] = ()
        if self.restorer is not None:
            treatment = self.restorer(access_to_file(photo), photo.jpeg)
            notes = (*treatment.notes, "restored first") if treatment.was_restored else treatment.notes
        enlarged = upscale_photo_file(photo, self.model, self.scale, self.options, on_progress)
        return (*notes, *enlarged.notes, *write_photo_file(target, enlarged, self.quality))


class Outcome(NamedTuple):
    """The result for one photo: written to `target` with notes, or why it was skipped or failed."""

    target: Path
    notes: tuple[str, ...] = ()
    skipped: str = ""
    error: str = ""


def process_one(work: Work, source: Path, target: Path, overwrite: bool, on_progress: Progress | None) -> Outcome:
    """`work(source, target, on_progress)`, creating the folder of the target. Errors of the photo become an outcome.

    Raises:
        OSError: one of DISK_ERRORS: no further photo could be written.
    """
    try:
        if not overwrite and target.exists():
            is_older = source.exists() and target.stat().st_mtime < source.stat().st_mtime
            return Outcome(target, skipped="exists, older than the photo" if is_older else "exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        return Outcome(target, work(source, target, on_progress))
    except OSError as error:
        if error.errno is None:  # of a decoder or an encoder
            reason = str(error)
        else:
            text = f"{error.strerror}{REMEDIES.get(error.errno, '')}"
            if error.errno in DISK_ERRORS:
                raise OSError(error.errno, text, str(target)) from error
            reason = text if error.filename == str(source) else f"{target}: {text}"  # not a temporary file's name
    except (ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = "out of memory" if is_out_of_memory(error) else str(error)
    return Outcome(target, error=reason if str(source) in reason else f"{source}: {reason}")


def work_on_files(
    targets: Mapping[Path, Path],
    work: Work,
    *,
    overwrite: bool = True,
    on_progress: Callable[[Path, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Applies `work` to each file and its target; yields outcomes in the order of `targets`.

    Small photos are processed in parallel, each on one core, because decoding and encoding take as long as the network;
    large ones one after the other, with `on_progress(file, number of tiles done, number of all tiles)`.
    Unfinished files that a killed run left in the folders of the targets are removed first.
    """
    for folder in {target.parent for target in targets.values()}:
        remove_unfinished(folder)
    num_cores = torch.get_num_threads()
    num_threads = num_cores + 1 if num_cores > 1 else 1  # one more: a thread waiting for the disk needs no core
    most = min(PARALLEL_MEGAPIXELS, MEGAPIXELS_IN_FLIGHT / num_threads) if len(targets) >= num_cores > 1 else 0.0

    def work_on_one(item: tuple[Path, Path], alone: bool = False) -> Outcome:
        progress = partial(on_progress, item[0]) if on_progress and alone else None
        return process_one(work, *item, overwrite, progress)

    with single_threaded_pool(num_threads) as pool:
        for small, group in groupby(targets.items(), lambda item: megapixels(item[0]) <= most):
            if small:
                yield from in_order(pool, work_on_one, group, ahead=num_threads)
            else:
                yield from (work_on_one(item, alone=True) for item in group)


def megapixels(path: Path) -> float:
    """The size in the header; 0 for a file that is not a photo, which fails later with the reason."""
    try:
        with open_image(path) as image:
            return image.width * image.height / 1e6
    except (PhotoRefused, MemoryError):
        return 0.0
