"""Which files photos are restored into: files, folders and patterns -> (photo, its target), none over a source."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from srcnn.photos.reading import KINDS, SUFFIXES, find_photos

RESULT_SUFFIX = re.compile("_restored|_x[234]")  # of the commands' own choice


@dataclass(frozen=True)
class Found:
    """Photos with the folder that their place below `out` counts from, and how many other files lay in folders."""

    photos: dict[Path, Path]
    num_others: int = 0


def find_sources(sources: Iterable[str | Path], exclude: Path | None = None) -> Found:
    """The photos that files, folders (with everything below them, but for `exclude`) and patterns mean, each once.

    Raises:
        FileNotFoundError: no such file or folder, nothing of that pattern, no photo in a folder or below it.
    """
    photos: dict[Path, Path] = {}
    num_others = 0
    sources = list(sources)
    for source in sources:
        for path in _matches(str(source)):
            excluded = exclude is not None and path.resolve() == exclude.resolve()
            if excluded and len(sources) > 1 and path.is_dir():
                continue  # of `srcnn restore * -o out`, what an earlier run made
            if path.is_dir():
                found, others = find_photos(path, None if excluded else exclude)
                if not found:
                    raise FileNotFoundError(f"{path}: no photo (JPEG, PNG, WebP, TIFF, BMP) in this folder or below it")
                num_others += len(others)
            else:
                found, path = [path], path.parent
            for photo in found:
                photos.setdefault(photo, path)
    return Found(photos, num_others)


def _matches(source: str) -> list[Path]:
    if not source:
        raise FileNotFoundError('"": no such photo or folder; is a variable empty?')
    if Path(source).exists():
        return [Path(source)]
    if not glob.has_magic(source):
        raise FileNotFoundError(f"{source}: no such photo or folder")
    found = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    if files := [path for path in found if path.is_dir() or path.suffix.lower() in SUFFIXES]:
        return files
    raise FileNotFoundError(f"{source}: no photo or folder of such a name")


def output_paths(
    sources: str | Path | Iterable[str | Path], out: Path | None, format_suffix: str = "", name_suffix: str = ""
) -> tuple[dict[Path, Path], int]:
    """Which file each photo is restored into, and how many other files lay in the folders.

    Args:
        sources: photos, folders, patterns.
        out: a folder, below which those of a folder keep their structure; of a single photo also a file; None: beside
            each photo, under another name.
        format_suffix: ".png", ".jpg": the format; "": as each photo's.
        name_suffix: put at the end of each name, before the format.

    Raises:
        FileNotFoundError: as `find_sources`.
        ValueError: an output would be a source photo, or two photos would become the same file.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if out is None and not name_suffix:
        raise ValueError("beside the photos, the restored ones need another name: give --suffix, or a folder with -o")
    found = find_sources(sources, exclude=out)
    targets: dict[Path, Path] = {}
    for path, root in found.photos.items():
        name = path.stem + name_suffix + (format_suffix or path.suffix)
        targets[path] = (out / path.relative_to(root) if out else path).with_name(name)
    if out and _is_file_name(out, sources):
        if format_suffix and KINDS[out.suffix.lower()] != KINDS[format_suffix]:
            raise ValueError(f"{out}: another format than the one asked for, {format_suffix}")
        targets = dict.fromkeys(targets, out)
    num_others = found.num_others
    if out is None and RESULT_SUFFIX.fullmatch(name_suffix):
        # What an earlier run left beside the photos is no photo to restore, unless it was named itself.
        named = {Path(source).resolve() for source in sources if Path(source).is_file()}
        made = {target.resolve() for target in targets.values()} - named
        kept = {path: target for path, target in targets.items() if path.resolve() not in made}
        num_others += len(targets) - len(kept)
        targets = kept
    _check(targets)
    return targets, num_others


def _is_file_name(out: Path, sources: list[str | Path]) -> bool:
    """Whether `out` means the file that a single photo is to become."""
    return len(sources) == 1 and Path(sources[0]).is_file() and out.suffix.lower() in SUFFIXES and not out.is_dir()


def _check(targets: dict[Path, Path]) -> None:
    sources = {path.resolve() for path in targets}
    taken: dict[Path, Path] = {}
    for path, target in targets.items():
        if target.resolve() in sources:
            raise ValueError(f"{target}: would overwrite a source photo; "
                             "give another --suffix, or another folder with -o")
        if target in taken:
            raise ValueError(f"{path} and {taken[target]} would both become {target}; restore them apart")
        taken[target] = path
