"""The checks of `srcnn doctor` on shards: complete, fit for the training, no photo in both splits, room for a cache."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from srcnn.commands.doctor_machine import Finding, note, ok, pluralize, problem
from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import MANIFEST, PLAN, REPAIR_HINT, Manifest, Shard, ShardError, check_file_size, read_manifest
from srcnn.data.photo_list import read_photo_records, read_refused
from srcnn.data.verify import verify_shards
from srcnn.runtime.files import TEMPORARY_PREFIX
from srcnn.runtime.object_store import ObjectStore, ReadFailed
from srcnn.runtime.storage import Folder, Storage, is_url, join, open_storage
from srcnn.training.config import TrainConfig
from srcnn.training.setup import check_samples, open_split

MAX_REQUESTS = 1024  # shards of a split on a server whose size is checked
MAX_SHOWN = 10  # problems, or photos, of one kind
PLAUSIBLE_PSNR = (15.0, 50.0)  # dB of degraded tiles: others are hardly meant


class Split(NamedTuple):
    """The manifest and the dataset of a split, None where they cannot be opened, and the problems found meanwhile."""

    manifest: Manifest | None
    dataset: ShardDataset | None
    problems: list[Finding]


def inspect_split(config: TrainConfig, split: str, verify: bool) -> Split:
    """Opens a split as a training does, and checks the size of every shard, or with `verify` every byte."""
    location = join(config.shards, split)
    manifest, problems = None, []
    try:
        storage = open_storage(location, config.stream.access)
        manifest = read_manifest(storage)
        damages = _damages(config, split) if verify else _size_problems(storage, manifest)
        problems = [problem(text, "" if REPAIR_HINT in text else REPAIR_HINT) for text in damages]
        check_samples(config, split, manifest, storage.location)  # needs no shard: `open_split` does it last
        return Split(manifest, open_split(config, split), problems)
    except (OSError, ValueError) as error:
        if not (problems and isinstance(error, (ShardError, ReadFailed))):  # those were found above already
            problems.append(problem(str(error), _opening_hint(config.shards, split, error)))
    return Split(manifest, None, problems)


def _opening_hint(shards: str, split: str, error: Exception) -> str:
    """What to do about an error of opening a split; "" where its message says it."""
    if not is_url(shards) and Path(shards, PLAN).is_file() and not Path(shards, split, MANIFEST).is_file():
        return "making these shards was interrupted: run the same command again"
    if isinstance(error, ReadFailed):
        return "check the address, that the server runs, and the credentials in the environment"
    return "" if isinstance(error, (ShardError, FileNotFoundError)) else "make shards that fit, or change the settings"


def _damages(config: TrainConfig, split: str) -> Iterator[str]:
    files = verify_shards(join(config.shards, split), config.stream.access)
    for file in tqdm(files, f"{split}: files read", disable=None, leave=False):
        if file.problem:
            yield f"{file.name}: {file.problem}"


def _size_problems(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Shards that are missing or of another size; on a server, MAX_REQUESTS evenly spaced ones are checked."""
    step, num_threads = 1, 1
    if isinstance(storage, ObjectStore):
        step, num_threads = max(1, math.ceil(len(manifest.shards) / MAX_REQUESTS)), storage.access.num_connections
    with ThreadPoolExecutor(num_threads) as pool:
        yield from filter(None, pool.map(partial(_size_problem, storage), manifest.shards[::step]))


def _size_problem(storage: Storage, shard: Shard) -> str:
    try:
        if isinstance(storage, Folder):
            check_file_size(storage.path / shard.name, shard)
        else:
            storage.read_range(shard.name, 0, 1, shard.bytes)
    except (OSError, ShardError) as error:
        return str(error)
    return ""


def check_split(config: TrainConfig, name: str, split: Split) -> Iterator[Finding]:
    """The problems of one split, its content, and whether that is plausible."""
    yield from split.problems[:MAX_SHOWN]
    if len(split.problems) > MAX_SHOWN:
        yield problem(f"{name}: {len(split.problems) - MAX_SHOWN} more problems of its shards")
    if (manifest := split.manifest) is None:
        return
    kind, shape = "clean tile" if manifest.is_clean_only else "pair", "x".join(map(str, manifest.tile_shape))
    content = (f"{name}: {pluralize(manifest.num_samples, kind)} of {shape} pixels in "
               f"{pluralize(len(manifest.shards), 'shard')}")
    if manifest.photos:
        content += f", of {pluralize(manifest.photos.num_photos, 'photo')}"
    if manifest.photos and not manifest.is_clean_only:
        psnr = manifest.degraded_psnr
        content += f"; degraded to {psnr:.2f} dB"
        if not PLAUSIBLE_PSNR[0] < psnr < PLAUSIBLE_PSNR[1]:
            yield note(f"{name}: the degraded tiles have an unusual PSNR, {psnr:.2f} dB",
                       f"look at {config.shards}/{name}.png")
    if not split.problems:
        yield ok(content)
    if not is_url(config.shards) and any(Path(config.shards, name).glob(f"{TEMPORARY_PREFIX}*")):
        yield note(f"{name}: temporary files lie beside the shards",
                   "making shards is under way, or was interrupted: the same command removes them")


def check_refused(config: TrainConfig, splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Photos that are in no shard because they could not be read, and those that have the damage of an earlier JPEG."""
    for name, split in splits.items():
        if split.manifest and split.manifest.photos:
            for first in read_refused(_open(config, name), split.manifest):
                number = pluralize(split.manifest.photos.num_refused, "photo")
                yield note(f"{name}: {number} refused when the shards were made; {first.name}: {first.reason}")
                break
            if num_poor := split.manifest.photos.num_poor:
                yield note(f"{name}: {pluralize(num_poor, 'photo')} had the damage of a coarse JPEG before",
                           "see original_quality in photos.jsonl; take better originals, or reduce them further")


def _open(config: TrainConfig, split: str) -> Storage:
    return open_storage(join(config.shards, split), config.stream.access)


def check_cache(config: TrainConfig, splits: Mapping[str, Split], machines: int) -> Iterator[Finding]:
    """Whether the cache can hold the shards. One that cannot makes a training slow, but does not stop it.

    With kept lanes, each of `machines` reads its own part of a split; the cache's limit is a position in the split.
    """
    access = config.stream.access
    if not (access.cache and is_url(config.shards)):
        return
    machines = machines if config.stream.lanes == "kept" else 1
    sizes = [sum(shard.bytes for shard in split.manifest.shards) for split in splits.values() if split.manifest]
    cache = Path(access.cache).expanduser().absolute()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    limit = access.cache_gigabytes * 1e9
    free, needed = shutil.disk_usage(existing).free, sum(min(size, limit) for size in sizes) / machines
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield note(f"stream.access.cache {cache}: cannot be written; shards are read from the server every epoch",
                   "choose another folder")
    elif free < needed:
        yield note(f"stream.access.cache {cache}: {free / 1e9:.1f} GB free for {needed / 1e9:.1f} GB of shards",
                   "free some space, or choose another disk")
    elif max(sizes, default=0) > limit:
        yield note(f"stream.access.cache keeps the first {limit / 1e9:g} GB of {max(sizes) / 1e9:.3g} GB of shards",
                   f"raise stream.access.cache_gigabytes; {1 / machines:.0%} of that is used on each machine")


def check_both_splits(config: TrainConfig, splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Whether a photo is in both splits, and whether both were made with the same settings."""
    manifests = {name: split.manifest for name, split in splits.items() if split.manifest}
    if len(manifests) < 2:
        return
    (train_name, train), (val_name, val) = manifests.items()
    names = {photo.sha256: photo.name for photo in read_photo_records(_open(config, val_name), val)}
    train_photos = read_photo_records(_open(config, train_name), train)
    common = sorted({names[photo.sha256] for photo in train_photos if photo.sha256 in names})
    hint = "make the shards again, with validation photos that are not among the training photos"
    if common:
        shown = ", ".join(common[:MAX_SHOWN]) + (", ..." if len(common) > MAX_SHOWN else "")
        yield problem(f"{pluralize(len(common), 'photo')} in both splits: {shown}", hint)
    elif copies := {shard.sha256 for shard in train.shards} & {shard.sha256 for shard in val.shards}:
        yield problem(f"{pluralize(len(copies), 'shard')} in both splits", hint)
    elif train.photos and val.photos:
        yield ok("no photo is in both splits")
    else:
        yield note("these shards do not list their photos: one may be in both splits")
    different = [key for ours, theirs in ((train.config, val.config), (train.versions, val.versions))
                 for key in ours | theirs if ours.get(key) != theirs.get(key)]
    if different:
        yield note(f"the splits were made with different settings: {', '.join(different)}",
                   "make both with one command, unless validation is to measure something else")
