"""Whether the shards of a training are all there and fit it, and its two splits each other. For `srcnn doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from srcnn.doctor_machine import Finding, counted, note, ok, problem
from srcnn.files import TEMPORARY_PREFIX
from srcnn.listing import photos_in, refused_in
from srcnn.reader import CURE, ShardReader, read_manifest
from srcnn.run import TrainConfig, check_samples, open_split
from srcnn.sample import MANIFEST, PLAN, Manifest, Shard, ShardError, check_shard_size
from srcnn.storage import AccessConfig, Folder, ObjectStore, ReadFailed, is_url, join, open_storage
from srcnn.verify import verify_shards

MOST_ASKED_FOR = 1024  # shards of a split on a server
SHOWN = 10  # problems, or photos, of one kind
PLAUSIBLE_PSNR = (15.0, 50.0)  # dB of degraded tiles: below, the two are hardly of one photo, above, they hardly differ


class Split(NamedTuple):
    """What there is of a split, and what is wrong with it."""

    manifest: Manifest | None
    reader: ShardReader | None
    problems: list[Finding]


def look_at(config: TrainConfig, split: str, verify: bool) -> Split:
    """Opens a split as a training does, and looks at every shard: at its size, or with `verify` at every byte."""
    place = join(config.shards, split)
    manifest, problems = None, []
    try:
        storage = open_storage(place, config.stream.access)
        manifest = read_manifest(storage)
        if verify:
            checked = verify_shards(place, config.stream.access)
            bar = tqdm(checked, f"{split}: files read", disable=None, leave=False)
            problems = [problem(f"{file.name}: {file.problem}") for file in bar if file.problem]
        else:
            problems = [problem(text, "" if CURE in text else CURE) for text in _sizes(storage, manifest)]
        check_samples(config, split, manifest, storage.location)  # which `open_split` does last
        return Split(manifest, open_split(config, split), problems)
    except (OSError, ValueError) as error:
        of_shards = isinstance(error, (ShardError, ReadFailed))
        if not (problems and of_shards):  # what it says of a shard was just found
            problems.append(problem(str(error), _cure(config.shards, split, error)))
    return Split(manifest, None, problems)


def _cure(shards: str, split: str, error: Exception) -> str:
    """What helps against an error of opening, where that does not say it."""
    if not is_url(shards) and Path(shards, PLAN).is_file() and not Path(shards, split, MANIFEST).is_file():
        return "the making of these shards was interrupted: the same command goes on with it"
    if isinstance(error, ReadFailed):
        return "look whether the server is there, the address right, and the credentials in the environment"
    return "" if isinstance(error, (ShardError, FileNotFoundError)) else "make shards that fit, or change the settings"


def _sizes(storage: Folder | ObjectStore, manifest: Manifest) -> Iterator[str]:
    """What is missing or of another size."""
    if isinstance(storage, Folder):
        yield from filter(None, (_size_in(storage, shard) for shard in manifest.shards))
        return
    num_asked = min(MOST_ASKED_FOR, len(manifest.shards))
    numbers = np.linspace(0, len(manifest.shards) - 1, num_asked).astype(int).tolist()
    with ThreadPoolExecutor(storage.access.num_connections) as pool:
        yield from filter(None, pool.map(partial(_size_at, storage), (manifest.shards[number] for number in numbers)))


def _size_in(folder: Folder, shard: Shard) -> str:
    try:
        check_shard_size(folder.path / shard.name, shard)
    except (OSError, ShardError) as error:
        return str(error)
    return ""


def _size_at(store: ObjectStore, shard: Shard) -> str:
    try:
        store.read_range(shard.name, 0, 1, shard.bytes)
    except OSError as error:
        return str(error)
    return ""


def check_splits(config: TrainConfig, splits: Mapping[str, Split], machines: int = 1) -> Iterator[Finding]:
    """Each split by itself, then the two beside each other, and the disk that keeps them where they are far away."""
    shards, manifests = config.shards, [split.manifest for split in splits.values() if split.manifest]
    for name, split in splits.items():
        yield from split.problems[:SHOWN]
        if len(split.problems) > SHOWN:
            yield problem(f"{name}: {len(split.problems) - SHOWN} more of this kind")
        if split.manifest:
            yield from _check_content(shards, name, split.manifest, not split.problems)
            yield from _telling(_check_refused(config, name, split.manifest))
    if len(manifests) == 2:
        yield from _telling(_check_apart(config, splits))
    if config.stream.access.cache and is_url(shards):
        sizes = [sum(shard.bytes for shard in each.shards) for each in manifests]
        yield from _check_cache(config.stream.access, sizes, machines if config.stream.lanes == "kept" else 1)


def _check_cache(access: AccessConfig, sizes: list[int], machines: int) -> Iterator[Finding]:
    """A cache that cannot be kept, or not whole, makes a training slow, and is no reason for it to stop.

    Each of `machines` keeps a part of these splits that is its own; its limit is a place in the split.
    """
    cache = Path(access.cache).expanduser().absolute()
    existing = next(place for place in (cache, *cache.parents) if place.exists())
    limit = access.cache_gigabytes * 1e9
    free, needed = shutil.disk_usage(existing).free, sum(min(size, limit) for size in sizes) / machines
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield note(f"stream.access.cache {cache}: cannot be written", "choose another, or shards are read from far")
    elif free < needed:
        told = f"stream.access.cache {cache}: {free / 1e9:.1f} GB free for {needed / 1e9:.1f} GB of shards"
        yield note(told, "free some space, or choose another disk")
    elif max(sizes, default=0) > limit:
        told = f"stream.access.cache keeps the first {limit / 1e9:g} GB of {max(sizes) / 1e9:.3g} GB of shards"
        yield note(told, f"raise stream.access.cache_gigabytes; {1 / machines:.0%} of that is taken on each machine")


def _check_content(shards: str, name: str, manifest: Manifest, is_whole: bool) -> Iterator[Finding]:
    shape, num_shards = "x".join(map(str, manifest.tile_shape)), counted(len(manifest.shards), "shard")
    kind = "clean tile" if manifest.is_clean_only else "pair"
    told = f"{name}: {counted(manifest.num_samples, kind)} of {shape} pixels in {num_shards}"
    if manifest.photos:
        told += f", of {counted(manifest.photos.num_photos, 'photo')}"
    if manifest.photos and not manifest.is_clean_only:
        psnr = manifest.degraded_psnr
        told += f"; degraded to {psnr:.2f} dB"
        if not PLAUSIBLE_PSNR[0] < psnr < PLAUSIBLE_PSNR[1]:
            yield note(f"{name}: degraded tiles have {psnr:.2f} dB", f"are they what you want? {shards}/{name}.png")
    if is_whole:
        yield ok(told)
    if not is_url(shards) and any(Path(shards, name).glob(f"{TEMPORARY_PREFIX}*")):
        told = f"{name}: half-written files lie beside the shards"
        yield note(told, "shards are being made, or were not to the end: the same command clears up")


def _telling(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The same, and as a problem why there are no more: a list of photos that cannot be read, or is another's."""
    try:
        yield from findings
    except (OSError, ShardError) as error:
        yield problem(str(error))


def _check_refused(config: TrainConfig, name: str, manifest: Manifest) -> Iterator[Finding]:
    num_refused = manifest.photos.num_refused if manifest.photos else 0
    for first in islice(refused_in(_open(config, name), manifest), 1):
        told = f"{counted(num_refused, 'photo')} refused when the shards were made"
        yield note(f"{name}: {told}; {first.name}: {first.reason}")


def _open(config: TrainConfig, split: str) -> Folder | ObjectStore:
    return open_storage(join(config.shards, split), config.stream.access)


def _check_apart(config: TrainConfig, splits: Mapping[str, Split]) -> Iterator[Finding]:
    """What is in both splits, and whether they were made alike."""
    (train_name, val_name), (train, val) = splits, [split.manifest for split in splits.values()]
    assert train and val
    names = {photo.sha256: photo.name for photo in photos_in(_open(config, val_name), val)}
    listed = photos_in(_open(config, train_name), train)
    twice = sorted({names[photo.sha256] for photo in listed if photo.sha256 in names})
    cure = "make the shards anew, with a validation folder that shares no photo with the other"
    if twice:
        told = ", ".join(twice[:SHOWN]) + (", ..." if len(twice) > SHOWN else "")
        yield problem(f"in both splits: {counted(len(twice), 'photo')}: {told}", cure)
    elif copies := {shard.sha256 for shard in train.shards} & {shard.sha256 for shard in val.shards}:
        yield problem(f"in both splits: {counted(len(copies), 'shard')}", cure)
    elif train.photos and val.photos:
        yield ok("no photo is in both splits")
    else:
        yield note("whether a photo is in both splits is not known: these shards were made elsewhere")
    changed = [key for key in train.config | val.config if train.config.get(key) != val.config.get(key)]
    changed += [key for key in train.versions | val.versions if train.versions.get(key) != val.versions.get(key)]
    if changed:
        told = f"the splits were not made alike: they differ in {', '.join(changed)}"
        yield note(told, "make both in one go, or know that validation measures something else")
