"""Finds the photos that a command names, and the file that each is written to."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from srcnn.photos.reading import KINDS, SUFFIXES, find_photos
from srcnn.runtime.errors import UserError

DEFAULT_SUFFIX = re.compile("_restored|_x[234]")  # of results beside the photos, where --suffix is not given


def find_sources(sources: Iterable[str | Path], exclude: Path | None = None) -> tuple[dict[Path, Path], int]:
    """Finds the photos of files, of folders with everything below them but `exclude`, and of patterns, each once.

    Returns each photo with the folder that its path in the output folder is relative to; and how many files that are
    no photos were found in folders.

    Raises:
        FileNotFoundError: a file or folder does not exist, a pattern matches nothing, or a folder has no photo.
    """
    photos: dict[Path, Path] = {}
    num_others = 0
    sources = list(sources)
    for source in sources:
        for path in _matches(str(source)):
            is_excluded = exclude is not None and path.resolve() == exclude.resolve()
            if is_excluded and len(sources) > 1 and path.is_dir():
                continue  # `srcnn restore * -o out` where an earlier run made `out`
            if path.is_dir():
                found, others = find_photos(path, None if is_excluded else exclude)
                if not found:
                    raise FileNotFoundError(f"{path}: no photo (JPEG, PNG, WebP, TIFF, BMP) in this folder or below it")
                num_others += len(others)
                photos |= {photo: path for photo in found if photo not in photos}
            else:
                photos.setdefault(path, path.parent)
    return photos, num_others


def _matches(source: str) -> list[Path]:
    """The path itself where it exists; else the photos and folders that match it as a pattern."""
    if not source:
        raise FileNotFoundError('"": no such photo or folder; is a variable empty?')
    if Path(source).exists():
        return [Path(source)]
    found = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    if matches := [path for path in found if path.is_dir() or path.suffix.lower() in SUFFIXES]:
        return matches
    raise FileNotFoundError(f"{source}: no such photo or folder")


def output_paths(
    sources: str | Path | Iterable[str | Path], out: Path | None, format_suffix: str = "", name_suffix: str = ""
) -> tuple[dict[Path, Path], int]:
    """Returns the file that each photo is written to, and how many files that are no photos were found in folders.

    Args:
        sources: photos, folders, patterns.
        out: a folder, in which photos found in a folder keep its structure; for a single photo also a file; None:
            beside each photo.
        format_suffix: ".png", ".jpg", ...: the format to write; "": that of each photo.
        name_suffix: added to each name, before the format.

    Raises:
        FileNotFoundError: as `find_sources`.
        ValueError: an output would replace a source photo, or two photos would be written to the same file.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if out is None and not name_suffix:
        raise UserError("results beside their photos need another name: give --suffix, or a folder with -o")
    photos, num_others = find_sources(sources, exclude=out)
    targets: dict[Path, Path] = {}
    for path, root in photos.items():
        name = path.stem + name_suffix + (format_suffix or path.suffix)
        targets[path] = (out / path.relative_to(root) if out else path).with_name(name)
    is_one_photo = len(sources) == 1 and Path(sources[0]).is_file()
    if out and is_one_photo and out.suffix.lower() in SUFFIXES and not out.is_dir():
        if format_suffix and KINDS[out.suffix.lower()] != KINDS[format_suffix]:
            raise UserError(f"{out}: the suffix does not fit the format {format_suffix} that --format asks for")
        targets = dict.fromkeys(targets, out)
    if out is None and DEFAULT_SUFFIX.fullmatch(name_suffix):
        # Results of an earlier run beside the photos are not restored again, unless they were named themselves.
        named = {Path(source).resolve() for source in sources if Path(source).is_file()}
        results = {target.resolve() for target in targets.values()} - named
        remaining = {path: target for path, target in targets.items() if path.resolve() not in results}
        num_others += len(targets) - len(remaining)
        targets = remaining
    _check_no_overwrite(targets)
    return targets, num_others


def _check_no_overwrite(targets: dict[Path, Path]) -> None:
    sources = {path.resolve() for path in targets}
    source_of: dict[Path, Path] = {}
    for path, target in targets.items():
        if target.resolve() in sources:
            raise UserError(f"{target}: would replace a source photo; give another --suffix or -o")
        if target in source_of:
            raise UserError(f"{path} and {source_of[target]} would both be written to {target}; process them in "
                             "separate commands")
        source_of[target] = path
