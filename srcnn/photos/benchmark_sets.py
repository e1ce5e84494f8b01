"""The sets of clean photos that published scores are measured on: where they come from, and whether a photo is of one.

Photos are known by a hash of their pixels, so that copies in another format count, and no picture that was resized,
cropped or compressed does. Nothing is downloaded: most of the photographs have no stated licence.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from srcnn.photos.reading import SUFFIXES, PhotoRefused, find_photos, read_photo
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file
from srcnn.runtime.untrusted import read_json

SETS = Path(__file__).with_name("benchmark_sets.json")
MAX_FILE_BYTES, MAX_FILES = 64 << 20, 100_000  # of an archive
MAX_MEGAPIXELS = 16.0  # a benchmark's photo has less than one


@dataclass(frozen=True)
class BenchmarkSet:
    """A set of clean photos.

    Args:
        name: of the folder, as model cards have it.
        about: what it is, in a clause.
        source: where it can be had.
        terms: of its use.
        photos: `pixel_hash` of each, by file name.
    """

    name: str
    about: str
    source: str
    terms: str
    photos: dict[str, str]


@lru_cache
def benchmark_sets() -> dict[str, BenchmarkSet]:
    """The known sets by name."""
    return {name: BenchmarkSet(name, **values) for name, values in read_json(SETS).items()}


def find_set(name: str) -> BenchmarkSet:
    """Raises UserError, with the names there are, if there is no such set."""
    if name not in benchmark_sets():
        raise UserError(f"{name}: no such test set; there are {', '.join(benchmark_sets())}")
    return benchmark_sets()[name]


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of shape and levels of a photo, uint8 (H, W) or (H, W, 3)."""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def forms_of(pixels: np.ndarray) -> list[np.ndarray]:
    """A photo; if it is greyscale, both as (H, W) and as (H, W, 3): a set may have either, and Y of RGB is another."""
    if pixels.ndim == 2:
        return [pixels, np.stack([pixels] * 3, axis=-1)]
    return [pixels, np.ascontiguousarray(pixels[..., 0])] if (pixels == pixels[..., :1]).all() else [pixels]


def photos_of(source: Path) -> Iterator[tuple[str, Path | bytes]]:
    """The photos in a folder or ZIP archive, with everything below: their names there, and their paths or contents.

    Photos in an archive that are larger than those of any set are left out.

    Raises:
        FileNotFoundError: there is neither.
        UserError: a file that is no readable ZIP archive, or one of more files than a set of photos has.
    """
    if source.is_dir():
        yield from ((path.relative_to(source).as_posix(), path) for path in find_photos(source)[0])
        return
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or ZIP archive")
    if not stat.S_ISREG(source.stat().st_mode) or not zipfile.is_zipfile(source):
        raise UserError(f"{source}: expected a folder or a ZIP archive; unpack other archives first")
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if Path(member.filename).suffix.lower() in SUFFIXES
                       and member.file_size <= MAX_FILE_BYTES]  # no more than that is then decompressed
            if len(members) > MAX_FILES:
                raise UserError(f"{source}: {len(members)} photos, at most {MAX_FILES} are read; unpack it first")
            for member in members:
                yield member.filename, archive.read(member)
    except UserError:
        raise
    except Exception as error:  # zipfile's and those of its decompressors, which have no class in common
        raise UserError(f"{source}: cannot be read as a ZIP archive: {error}; unpack it first") from error


def prepare(wanted: BenchmarkSet, source: Path, out: Path) -> list[str]:
    """Writes those photos of a set that are in a folder or ZIP archive into the folder `out`, as PNGs of the names that
    the set has; what is there already is kept. Returns the names of those that `out` then still lacks.

    Raises:
        UserError, FileNotFoundError: as `photos_of`; or a file of `out` has such a name and other pixels.
    """
    names = {pixels: name for name, pixels in wanted.photos.items()}
    missing = check(wanted, out)[0] if out.is_dir() else list(wanted.photos)
    for _, photo in photos_of(source):
        if not missing:
            break
        try:
            forms = forms_of(read_photo(photo, MAX_MEGAPIXELS))
        except PhotoRefused:  # not what a photo of a set looks like: one that is wanted stays missing
            continue
        found = [(name, pixels) for pixels in forms if (name := names.get(pixel_hash(pixels))) in missing]
        for name, pixels in found[:1]:
            out.mkdir(parents=True, exist_ok=True)
            with atomic_file(out / name) as file:
                Image.fromarray(pixels).save(file, "PNG")
            missing.remove(name)
    return missing


def check(wanted: BenchmarkSet, folder: Path) -> tuple[list[str], list[str]]:
    """Compares a folder with a set: (names of its photos that are missing, names of photos that are not of the set).

    Raises:
        FileNotFoundError: no such folder.
        UserError: a photo has a name of the set, and other pixels or none that can be read.
    """
    missing, others = dict(wanted.photos), []
    for name, photo in photos_of(folder):
        if name not in wanted.photos:
            others.append(name)
        elif pixel_hash(read_photo(photo, MAX_MEGAPIXELS)) != missing.pop(name):
            raise UserError(f"{folder / name}: not the photo {name} of {wanted.name}: its pixels differ; remove it")
    return list(missing), others
