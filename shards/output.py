"""The output folder of shard making: the plan, finished shards, and the manifest, photo list and index of a split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from shards import plan
from shards.plan import ShardsConfig, ShardTask
from shards.tar import index_tar
from shards.workers import ShardsFailed
from srcnn.data.index import INDEX, IndexReader, encode_index, encode_index_header, index_file
from srcnn.data.manifest import (
    MANIFEST,
    PLAN,
    SPLITS,
    IndexFile,
    Manifest,
    PhotoRecord,
    PhotosFile,
    RefusedRecord,
    Shard,
    ShardError,
    library_versions,
    npy_stride,
    read_manifest,
)
from srcnn.data.photo_list import PHOTOS, encode_line, read_photo_list, read_refused
from srcnn.runtime import files
from srcnn.runtime.parallel import in_order
from srcnn.runtime.settings import plain
from srcnn.runtime.storage import Storage, join, open_writable
from srcnn.runtime.untrusted import parse_json, record

FOLDERS = ("", *SPLITS)
NUM_READERS = 16


@dataclass(frozen=True)
class ShardResult:
    """The record of a finished shard; kept beside it as NUMBER.json until the manifest is written."""

    shard: Shard
    photos: tuple[PhotoRecord, ...]
    refused: tuple[RefusedRecord, ...]


def reserve_output(out: Storage, config: ShardsConfig, tasks: list[ShardTask]) -> None:
    """Writes the plan to `out`, or checks that it matches the plan there, and removes unfinished files.

    Raises:
        ShardsFailed: the folder contains shards of another config or of other photos, or other files.
    """
    identity = plain(config.identity())
    content = {"config": identity, "plan_sha256": plan.plan_hash(tasks), "num_shards": len(tasks)}
    hint = "choose another OUT, or remove this folder to make its shards again"
    names = out.names()
    if PLAN in names:
        existing = _read_json(out, PLAN)
        config_there = existing.get("config") if isinstance(existing, dict) else None
        if not isinstance(config_there, dict) or not isinstance(config_there.get("degradation", {}), dict):
            raise ShardsFailed(f"{join(out.location, PLAN)}: damaged; {hint}")
        before, now = plan.normalize_identity(config_there), plan.normalize_identity(identity)
        if before != now:
            changes = ", ".join(f"{key}: {before.get(key)} in the folder, {now[key]} now"
                                for key in now if before.get(key) != now[key])
            raise ShardsFailed(f"{out.location}: contains shards of another config ({changes}); {hint}")
        if any(existing.get(key) != content[key] for key in ("plan_sha256", "num_shards")):
            raise ShardsFailed(f"{out.location}: contains shards of other photos; {hint}")
    elif any(not name.startswith((files.TEMPORARY_PREFIX, files.LOCK)) for name in names):
        raise ShardsFailed(f"{out.location}: is not empty, and has no shards made by this program; choose another OUT")
    else:
        _write_json(out, PLAN, content | {"versions": library_versions()})
    out.prepare(FOLDERS)


def check_versions(out: Storage) -> None:
    """Raises ShardsFailed if the finished shards were made with other libraries, as the pixels would differ."""
    before, now = _read_json(out, PLAN).get("versions"), library_versions()
    if before != now:
        hint = "install those versions, or remove this folder to make all shards again"
        raise ShardsFailed(f"{out.location}: its finished shards were made with {before}, installed are {now}; {hint}")


def _read_json(storage: Storage, name: str) -> Any:
    try:
        return parse_json(storage.read(name))
    except ValueError as error:
        raise ShardsFailed(f"{join(storage.location, name)}: damaged: {error}") from error


def _write_json(storage: Storage, name: str, content: Any) -> None:
    with storage.create(name) as file:
        file.write(files.to_json(content))


def write_result(folder: Storage, result: ShardResult, entries: np.ndarray) -> None:
    """Writes the index entries and the record of a shard beside it."""
    with folder.create(_index_name(result.shard.name)) as file:
        file.write(encode_index(entries))
    _write_json(folder, _result_name(result.shard.name), asdict(result))


def _result_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.json"


def _index_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.npy"


def finished_shards(config: ShardsConfig, tasks: Iterable[ShardTask]) -> set[ShardTask]:
    """The shards that exist with the size that they had when they were finished."""
    finished = set()
    for split in SPLITS:
        folder = open_writable(join(config.out, split))
        sizes = folder.sizes()
        listed = {shard.name: shard for shard in read_manifest(folder).shards} if MANIFEST in sizes else {}
        present = [task for task in tasks if task.split == split and task.name in sizes]
        for task, result in zip(present, _read_results(folder, present, sizes), strict=True):
            shard = result.shard if result else listed.get(task.name)
            if shard and sizes[task.name] == shard.bytes:
                finished.add(task)
    return finished


def _read_results(folder: Storage, tasks: Sequence[ShardTask], names: Container[str]) -> Iterator[ShardResult | None]:
    """Yields the record beside each shard, or None; several are read at a time, as object stores are slow."""

    def read(task: ShardTask) -> ShardResult | None:
        name = _result_name(task.name)
        return _read_result(folder, name) if name in names else None

    with ThreadPoolExecutor(NUM_READERS) as threads:
        yield from in_order(threads, read, tasks, NUM_READERS)


def _read_result(folder: Storage, name: str) -> ShardResult:
    content = _read_json(folder, name)
    try:
        photos = tuple(record(PhotoRecord, photo) for photo in content["photos"])
        refused = tuple(record(RefusedRecord, item) for item in content["refused"])
        return ShardResult(record(Shard, content["shard"]), photos, refused)
    except (KeyError, TypeError, ValueError) as error:
        path = join(folder.location, name)
        raise ShardsFailed(f"{path}: damaged ({error}); remove it and its shard, and run the command again") from error


def finish_split(config: ShardsConfig, split: str, tasks: list[ShardTask], refused: list[RefusedRecord]) -> Manifest:
    """Writes the manifest, the photo list and the index of a split, unless they are up to date.

    The records of the shards are read one by one, as all of them may not fit into memory. `refused` are the photos that
    were refused before any shard was written.
    """
    folder = open_writable(join(config.out, split))
    tasks = [task for task in tasks if task.split == split]
    refused = sorted((item for item in refused if item.split == split), key=lambda item: item.name)
    names = folder.sizes().keys()
    existing = read_manifest(folder) if MANIFEST in names else None
    records = {name for task in tasks for name in (_result_name(task.name), _index_name(task.name))} & names
    if existing and not records and {existing.index.name, PHOTOS} <= names:
        if _listed_refused(folder, existing) == refused:
            return existing
    shards, photos, degraded_psnr = write_photo_list(folder, _all_results(folder, tasks, existing), refused)
    manifest = Manifest(
        split=split,
        tile_shape=config.tile_shape,
        encoding=config.encoding,
        members=config.members(split),
        stride=npy_stride(config.tile_shape, len(config.members(split))) if config.encoding == "npy" else None,
        config=plain(config.identity()),
        index=write_index(folder, config.members(split), shards, existing),
        shards=shards,
        photos=photos,
        degraded_psnr=degraded_psnr,
        versions=library_versions(),
    )
    if existing and replace(manifest, versions=existing.versions) == existing:
        manifest = existing
    else:
        manifest.write(folder)
    folder.remove(sorted(records))
    return manifest


def _listed_refused(folder: Storage, existing: Manifest) -> list[RefusedRecord] | None:
    """The photos refused before any shard was written, by the photo list; None if that is not the manifest's."""
    try:
        return [item for item in read_refused(folder, existing) if not item.shard]
    except ShardError:
        return None


def _all_results(folder: Storage, tasks: Sequence[ShardTask], existing: Manifest | None) -> Iterator[ShardResult]:
    """Yields the record of each shard: the one beside it, or else from the manifest and its photo list."""
    listed = _listed_results(folder, existing) if existing else iter(())
    for task, result in zip(tasks, _read_results(folder, tasks, folder.sizes()), strict=True):
        while result is None or result.shard.name != task.name:
            result = next(listed, None)
            if result is None:
                raise ShardsFailed(f"{folder.location}: {PHOTOS} lacks the photos of {task.name}; remove that "
                                   "shard and run the command again")
        yield result


def _listed_results(folder: Storage, existing: Manifest) -> Iterator[ShardResult]:
    """Yields the record of each shard in the photo list, in its order.

    The list may be newer than the manifest, if the process was killed between writing the two; for the shards in both
    they agree.
    """
    shards = {shard.name: shard for shard in existing.shards}
    if existing.photos and (num_bytes := folder.sizes().get(existing.photos.name)):
        existing = replace(existing, photos=replace(existing.photos, bytes=num_bytes))
    for name, entries in groupby(read_photo_list(folder, existing, check_hash=False), key=lambda entry: entry.shard):
        if name:
            both = list(entries)
            photos = tuple(entry for entry in both if isinstance(entry, PhotoRecord))
            yield ShardResult(shards[name], photos, tuple(entry for entry in both if isinstance(entry, RefusedRecord)))


def write_photo_list(
    folder: Storage, results: Iterable[ShardResult], refused: Sequence[RefusedRecord]
) -> tuple[tuple[Shard, ...], PhotosFile, float]:
    """Writes the photo list of a split.

    Returns:
        The shards, the manifest's record of the list, and the mean PSNR of all degraded tiles in dB.
    """
    shards: list[Shard] = []
    num_photos, num_refused, num_poor, psnr_sum, digest = 0, len(refused), 0, 0.0, hashlib.sha256()
    with folder.create(PHOTOS) as file:
        for result in results:
            shards.append(result.shard)
            num_photos += len(result.photos)
            num_refused += len(result.refused)
            num_poor += sum(map(plan.is_poor, result.photos))
            psnr_sum += sum(photo.degraded_psnr * photo.num_samples for photo in result.photos)
            lines = b"".join([*map(encode_line, result.photos), *map(encode_line, result.refused)])
            digest.update(lines)
            file.write(lines)
        lines = b"".join(map(encode_line, refused))
        digest.update(lines)
        file.write(lines)
        num_bytes = file.tell()
    photos = PhotosFile(PHOTOS, num_bytes, digest.hexdigest(), num_photos, num_refused, num_poor)
    return tuple(shards), photos, psnr_sum / max(1, sum(shard.num_samples for shard in shards))


def write_index(
    folder: Storage, members: tuple[str, ...], shards: tuple[Shard, ...], existing: Manifest | None
) -> IndexFile:
    """Writes the index of a split, unless the existing one is complete.

    The entries of a shard come from the file beside it or from the existing index; otherwise the shard is scanned.
    """
    names = folder.sizes()
    num_samples = sum(shard.num_samples for shard in shards)
    try:
        existing_index = IndexReader(folder, existing) if existing else None
    except ShardError:
        existing_index = None
    if existing and existing_index and existing.shards == shards:
        return index_file(num_samples)
    numbers = {shard: number for number, shard in enumerate(existing.shards)} if existing else {}
    with folder.create(INDEX) as file:
        file.write(encode_index_header(num_samples))
        for shard in shards:
            if _index_name(shard.name) in names:
                content = folder.read(_index_name(shard.name))
                entries = np.load(io.BytesIO(content), allow_pickle=False)
            elif existing_index and shard in numbers:
                entries = existing_index.shard_entries(numbers[shard])
            else:
                with folder.local_copy(shard.name) as path:
                    entries = index_tar(path, members)
            file.write(entries.tobytes())
    return index_file(num_samples)
