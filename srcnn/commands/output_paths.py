"""Finds the photos that a command names, and the file that each is written to."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from srcnn.photos.file_kinds import NAMES, unread_kind
from srcnn.photos.reading import KINDS, SUFFIXES, find_photos, result_suffix
from srcnn.runtime.errors import UserError

DEFAULT_SUFFIX = re.compile("_restored|_x[234]")  # of results beside the photos, where --suffix is not given


class OutputPaths(NamedTuple):
    """The file that each photo is written to, what cannot be processed, and how many other files were in folders.

    `errors` are messages, each for one source or photo.
    """

    targets: dict[Path, Path]
    errors: list[str]
    num_others: int


def find_sources(sources: Iterable[str | Path], exclude: Path | None = None) -> tuple[dict[Path, Path], list[str], int]:
    """Finds the photos of files, of folders with everything below them but `exclude`, and of patterns, each once.

    Returns each photo with the folder that its path in the output folder is relative to; messages on sources that do
    not exist, patterns that match nothing, folders that cannot be listed or have no photo, and images of kinds that are
    not read; and how many files that are no images were found in folders.
    """
    photos: dict[Path, Path] = {}
    errors: list[str] = []
    num_others = 0
    sources = list(sources)
    for source in sources:
        try:
            matches = _matches(str(source))
        except OSError as error:
            errors.append(str(error))
            continue
        for path in matches:
            is_excluded = exclude is not None and os.path.realpath(path) == os.path.realpath(exclude)
            if is_excluded and len(sources) > 1 and path.is_dir():
                continue  # `srcnn restore * -o out` where an earlier run made `out`
            if path.is_dir():
                unlisted: list[OSError] = []
                found, others = find_photos(path, None if is_excluded else exclude, unlisted.append)
                errors += [f"{error.filename}: cannot be listed: {error.strerror}" for error in unlisted]
                unread = [f"{other}: {kind}" for other in others if (kind := unread_kind(other))]
                errors += unread
                if not found and not unlisted and not unread:
                    errors.append(f"{path}: no photo ({NAMES}) in this folder or below it")
                num_others += len(others) - len(unread)
                photos |= {photo: path for photo in found if photo not in photos}
            elif path.suffix.lower() not in SUFFIXES and (kind := unread_kind(path)):
                errors.append(f"{path}: {kind}")
            else:
                photos.setdefault(path, path.parent)
    return photos, errors, num_others


def _matches(source: str) -> list[Path]:
    """The path itself where it exists, also as a broken link; else the photos and folders that match it as a pattern.

    Raises:
        OSError: there is nothing of this name, or the system does not allow it.
    """
    if not source:
        raise FileNotFoundError('"": no such photo or folder; is a variable empty?')
    if os.path.lexists(source):
        return [Path(source)]
    found = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    if matches := [path for path in found
                   if path.is_dir() or path.suffix.lower() in SUFFIXES or unread_kind(path)]:
        return matches
    raise FileNotFoundError(f"{source}: no such photo or folder")


def output_paths(
    sources: str | Path | Iterable[str | Path], out: Path | None, format_suffix: str = "", name_suffix: str = ""
) -> OutputPaths:
    """Finds the file that each photo is written to.

    Photos whose result would replace a source photo, or would be written to the same file as another's, are left out,
    with a message for each.

    Args:
        sources: photos, folders, patterns.
        out: a folder, in which photos found in a folder keep its structure; for a single photo also a file; None:
            beside each photo.
        format_suffix: ".png", ".jpg", ...: the format to write; "": that of each photo, or PNG where that is only read.
        name_suffix: added to each name, before the format.

    Raises:
        ValueError: results beside the photos without another name; `out` is a file, or of another format than asked.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if out is None and not name_suffix:
        raise UserError("results beside their photos need another name: give --suffix, or a folder with -o")
    photos, errors, num_others = find_sources(sources, exclude=out)
    targets: dict[Path, Path] = {}
    for path, root in photos.items():
        name = path.stem + name_suffix + (format_suffix or result_suffix(path))
        targets[path] = (out / path.relative_to(root) if out else path).with_name(name)
    targets = _with_own_names(targets, name_suffix)
    is_one_photo = len(sources) == 1 and os.path.isfile(sources[0])
    if out and is_one_photo and out.suffix.lower() in KINDS and not out.is_dir():
        if format_suffix and KINDS[out.suffix.lower()] != KINDS[format_suffix]:
            raise UserError(f"{out}: the suffix does not fit the format {format_suffix} that --format asks for")
        targets = dict.fromkeys(targets, out)
    elif out and out.is_file():
        raise UserError(f"{out}: is a file; give a folder for the results with -o")
    if out is None and DEFAULT_SUFFIX.fullmatch(name_suffix):
        # Results of an earlier run beside the photos are not restored again, unless they were named themselves.
        named = {os.path.realpath(source) for source in sources if os.path.isfile(source)}
        results = {os.path.realpath(target) for target in targets.values()} - named
        remaining = {path: target for path, target in targets.items() if os.path.realpath(path) not in results}
        num_others += len(targets) - len(remaining)
        targets = remaining
    clashes = _clashes(targets)
    remaining = {path: target for path, target in targets.items() if path not in clashes}
    return OutputPaths(remaining, [*errors, *clashes.values()], num_others)


def _with_own_names(targets: dict[Path, Path], name_suffix: str) -> dict[Path, Path]:
    """The targets; of photos of one name in several formats (a.jpg and a.heic) that would be written to one file, the
    names of the photos with their suffix come before the format: a.jpg.png, a.heic.png.
    """
    names: defaultdict[Path, set[str]] = defaultdict(set)
    for path, target in targets.items():
        names[target].add(path.name)
    return {path: target.with_name(path.name + name_suffix + target.suffix) if len(names[target]) > 1 else target
            for path, target in targets.items()}


def _clashes(targets: dict[Path, Path]) -> dict[Path, str]:
    """A message for each photo whose result would replace a source photo or the result of another."""
    sources = {os.path.realpath(path) for path in targets}
    sources_of: defaultdict[Path, list[Path]] = defaultdict(list)
    for path, target in targets.items():
        sources_of[target].append(path)
    clashes = {}
    for path, target in targets.items():
        others = [other for other in sources_of[target] if other != path]
        if os.path.realpath(target) in sources:
            clashes[path] = f"{path}: {target} would replace a source photo; give another --suffix or -o"
        elif others:
            clashes[path] = (f"{path}: the result of {others[0]} would be written to {target}, too; process them in "
                             "separate commands")
    return clashes
