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

from srcnn.commands.doctor_machine import Finding, note, ok, pluralize, problem
from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import MANIFEST, PLAN, REPAIR_HINT, Manifest, Shard, ShardError, check_file_size, read_manifest
from srcnn.data.photo_list import read_photo_records, read_refused
from srcnn.data.verify import verify_shards
from srcnn.runtime.files import TEMPORARY_PREFIX
from srcnn.runtime.object_store import ObjectStore, ReadFailed
from srcnn.runtime.storage import Folder, is_url, join, open_storage
from srcnn.training.config import TrainConfig
from srcnn.training.state import check_samples, open_split

MAX_REQUESTS = 1024  # shards of a split on a server that are asked for
MAX_SHOWN = 10  # problems, or photos, of one kind
PLAUSIBLE_PSNR = (15.0, 50.0)  # dB of degraded tiles: below, the two are hardly of one photo, above, they hardly differ


class Split(NamedTuple):
    """What there is of a split, and what is wrong with it."""

    manifest: Manifest | None
    reader: ShardDataset | None
    problems: list[Finding]


def inspect_split(config: TrainConfig, split: str, verify: bool) -> Split:
    """Opens a split as a training does, and looks at every shard: at its size, or with `verify` at every byte."""
    location = join(config.shards, split)
    manifest, problems = None, []
    try:
        storage = open_storage(location, config.stream.access)
        manifest = read_manifest(storage)
        if verify:
            checked = verify_shards(location, config.stream.access)
            bar = tqdm(checked, f"{split}: files read", disable=None, leave=False)
            problems = [problem(f"{file.name}: {file.problem}") for file in bar if file.problem]
        else:
            problems = [problem(text, "" if REPAIR_HINT in text else REPAIR_HINT)
                        for text in _size_problems(storage, manifest)]
        check_samples(config, split, manifest, storage.location)  # which `open_split` does last
        return Split(manifest, open_split(config, split), problems)
    except (OSError, ValueError) as error:
        if not (problems and isinstance(error, (ShardError, ReadFailed))):  # what it says of a shard was just found
            problems.append(problem(str(error), _hint(config.shards, split, error)))
    return Split(manifest, None, problems)


def _hint(shards: str, split: str, error: Exception) -> str:
    """What helps against an error of opening, where that does not say it."""
    if not is_url(shards) and Path(shards, PLAN).is_file() and not Path(shards, split, MANIFEST).is_file():
        return "the making of these shards was interrupted: the same command goes on with it"
    if isinstance(error, ReadFailed):
        return "look whether the server is there, the address right, and the credentials in the environment"
    return "" if isinstance(error, (ShardError, FileNotFoundError)) else "make shards that fit, or change the settings"


def _size_problems(storage: Folder | ObjectStore, manifest: Manifest) -> Iterator[str]:
    """What is missing or of another size; of very many shards on a server some are asked for."""
    num_asked = len(manifest.shards) if isinstance(storage, Folder) else min(MAX_REQUESTS, len(manifest.shards))
    numbers = np.linspace(0, len(manifest.shards) - 1, num_asked).astype(int).tolist()
    num_threads = 1 if isinstance(storage, Folder) else storage.access.num_connections
    with ThreadPoolExecutor(num_threads) as pool:
        yield from filter(None, pool.map(partial(_size_problem, storage), (manifest.shards[i] for i in numbers)))


def _size_problem(storage: Folder | ObjectStore, shard: Shard) -> str:
    try:
        if isinstance(storage, Folder):
            check_file_size(storage.path / shard.name, shard)
        else:
            storage.read_range(shard.name, 0, 1, shard.bytes)
    except (OSError, ShardError) as error:
        return str(error)
    return ""


def check_split(config: TrainConfig, name: str, split: Split) -> Iterator[Finding]:
    """A split by itself: what is wrong with its shards, what is in them, which photos were refused."""
    yield from split.problems[:MAX_SHOWN]
    if len(split.problems) > MAX_SHOWN:
        yield problem(f"{name}: {len(split.problems) - MAX_SHOWN} more of this kind")
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
            yield note(f"{name}: degraded tiles have {psnr:.2f} dB", f"is that meant? See {config.shards}/{name}.png")
    if not split.problems:
        yield ok(content)
    if not is_url(config.shards) and any(Path(config.shards, name).glob(f"{TEMPORARY_PREFIX}*")):
        yield note(f"{name}: half-written files lie beside the shards",
                   "shards are being made, or were not to the end: the same command clears up")
    if manifest.photos:
        try:
            for first in islice(read_refused(_open(config, name), manifest), 1):
                number = pluralize(manifest.photos.num_refused, "photo")
                yield note(f"{name}: {number} refused when the shards were made; {first.name}: {first.reason}")
        except (OSError, ShardError) as error:
            yield problem(str(error))


def _open(config: TrainConfig, split: str) -> Folder | ObjectStore:
    return open_storage(join(config.shards, split), config.stream.access)


def check_cache(config: TrainConfig, splits: Mapping[str, Split], machines: int) -> Iterator[Finding]:
    """A cache that cannot be kept, or not whole, makes a training slow, and is no reason for it to stop.

    With kept lanes each of `machines` keeps a part of these splits that is its own; its limit counts from their start.
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
        yield note(f"stream.access.cache {cache}: cannot be written", "choose another, or shards are read from far")
    elif free < needed:
        yield note(f"stream.access.cache {cache}: {free / 1e9:.1f} GB free for {needed / 1e9:.1f} GB of shards",
                   "free some space, or choose another disk")
    elif max(sizes, default=0) > limit:
        yield note(f"stream.access.cache keeps the first {limit / 1e9:g} GB of {max(sizes) / 1e9:.3g} GB of shards",
                   f"raise stream.access.cache_gigabytes; {1 / machines:.0%} of that is taken on each machine")


def check_apart(config: TrainConfig, splits: Mapping[str, Split]) -> Iterator[Finding]:
    """What is in both splits, and whether they were made alike."""
    manifests = {name: split.manifest for name, split in splits.items() if split.manifest}
    if len(manifests) < 2:
        return
    (train_name, train), (val_name, val) = manifests.items()
    names = {photo.sha256: photo.name for photo in read_photo_records(_open(config, val_name), val)}
    train_photos = read_photo_records(_open(config, train_name), train)
    common = sorted({names[photo.sha256] for photo in train_photos if photo.sha256 in names})
    hint = "make the shards anew, with a validation folder that shares no photo with the other"
    if common:
        shown = ", ".join(common[:MAX_SHOWN]) + (", ..." if len(common) > MAX_SHOWN else "")
        yield problem(f"in both splits: {pluralize(len(common), 'photo')}: {shown}", hint)
    elif copies := {shard.sha256 for shard in train.shards} & {shard.sha256 for shard in val.shards}:
        yield problem(f"in both splits: {pluralize(len(copies), 'shard')}", hint)
    elif train.photos and val.photos:
        yield ok("no photo is in both splits")
    else:
        yield note("whether a photo is in both splits is not known: these shards were made elsewhere")
    changed = [key for ours, theirs in ((train.config, val.config), (train.versions, val.versions))
               for key in ours | theirs if ours.get(key) != theirs.get(key)]
    if changed:
        yield note(f"the splits were not made alike: they differ in {', '.join(changed)}",
                   "make both in one go, or know that validation measures something else")
