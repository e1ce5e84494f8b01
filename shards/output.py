"""The output folder: what was begun in it, which shards are finished, the manifests at the end."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from shards import plan
from shards.plan import ShardsConfig, ShardTask
from shards.tar import index_tar
from shards.workers import ShardsFailed, Workers
from srcnn.data.index import INDEX, IndexReader, encode_index, index_entry, index_header
from srcnn.data.manifest import (
    MANIFEST,
    PLAN,
    SPLITS,
    IndexFile,
    Manifest,
    PhotoRecord,
    PhotosFile,
    Refused,
    Shard,
    ShardError,
    npy_stride,
    writer_versions,
)
from srcnn.data.photo_list import PHOTOS, encode, read_listing, refused_in
from srcnn.runtime import files
from srcnn.runtime.settings import plain
from srcnn.runtime.storage import Storage, join, open_writable
from srcnn.runtime.untrusted import parse_json, record

FOLDERS = ("", *SPLITS)
NUM_READERS = 16


@dataclass(frozen=True)
class ShardResult:
    """What is known of a finished shard; kept beside it as NUMBER.json until the manifest is written."""

    shard: Shard
    photos: tuple[PhotoRecord, ...]
    refused: tuple[Refused, ...]


def reserve_output(out: Storage, config: ShardsConfig, tasks: list[ShardTask]) -> None:
    """Notes in `out` what is made there, or checks that it is what was begun there, and removes unfinished files.

    Raises:
        ShardsFailed: the folder holds shards of another config, of other photos, or other files.
    """
    identity = plain(config.identity())
    content = {"config": identity, "plan_sha256": plan.plan_hash(tasks), "num_shards": len(tasks)}
    advice = "choose another OUT, or remove this folder to make them anew"
    names = out.names()
    if PLAN in names:
        begun = _read_json(out, PLAN)
        if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
            raise ShardsFailed(f"{join(out.location, PLAN)}: damaged; {advice}")
        before, now = plan.comparable(begun["config"]), plan.comparable(identity)
        if before != now:
            changes = ", ".join(f"{key}: {before.get(key)} in the folder, {now[key]} now"
                                for key in now if before.get(key) != now[key])
            raise ShardsFailed(f"{out.location}: holds shards made with another config ({changes}); {advice}")
        if any(begun.get(key) != content[key] for key in ("plan_sha256", "num_shards")):
            raise ShardsFailed(f"{out.location}: holds shards of other photos than those found now; {advice}")
    elif any(not name.startswith((files.TEMPORARY_PREFIX, files.LOCK)) for name in names):
        raise ShardsFailed(f"{out.location}: is not empty and holds no shards of ours; choose another OUT")
    else:
        _write_json(out, PLAN, content | {"versions": writer_versions()})
    out.prepare(FOLDERS)


def check_versions(out: Storage) -> None:
    """Raises ShardsFailed where the shards there were made by another Pillow or JPEG library: pixels would differ."""
    begun, now = _read_json(out, PLAN).get("versions"), writer_versions()
    if begun != now:
        advice = "install those again, or remove this folder to make all shards anew"
        raise ShardsFailed(f"{out.location}: its finished shards were made with {begun}, here is {now}; {advice}")


def _read_json(storage: Storage, name: str) -> Any:
    try:
        return parse_json(storage.read(name))
    except ValueError as error:
        raise ShardsFailed(f"{join(storage.location, name)}: damaged: {error}") from error


def _write_json(storage: Storage, name: str, content: Any) -> None:
    with storage.create(name) as file:
        file.write(files.to_json(content))


def write_result(folder: Storage, result: ShardResult, rows: np.ndarray) -> None:
    """Keeps a shard's rows of the index and its result beside it until the manifest of the split is written."""
    with folder.create(_index_name(result.shard.name)) as file:
        file.write(encode_index(rows))
    _write_json(folder, _result_name(result.shard.name), asdict(result))


def _result_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.json"


def _index_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.npy"


def finished_shards(config: ShardsConfig, tasks: Iterable[ShardTask]) -> set[ShardTask]:
    """The shards that lie under their final name, as long as they were when they were finished."""
    finished = set()
    for split in SPLITS:
        folder = open_writable(join(config.out, split))
        existing, sizes = existing_manifest(folder), folder.sizes()
        listed = {shard.name: shard for shard in existing.shards} if existing else {}
        present = [task for task in tasks if task.split == split and task.name in sizes]
        for task, result in zip(present, _read_results(folder, present, sizes), strict=True):
            shard = result.shard if result else listed.get(task.name)
            if shard and sizes[task.name] == shard.bytes:
                finished.add(task)
    return finished


def existing_manifest(folder: Storage) -> Manifest | None:
    if MANIFEST not in folder.sizes():
        return None
    return Manifest.parse(folder.read(MANIFEST).decode(errors="surrogateescape"), join(folder.location, MANIFEST))


def _read_results(folder: Storage, tasks: Sequence[ShardTask], names: Container[str]) -> Iterator[ShardResult | None]:
    """What is kept beside each shard, None where nothing is; several are read at once, as a store takes its time."""

    def read(task: ShardTask) -> ShardResult | None:
        name = _result_name(task.name)
        return _read_result(folder, name) if name in names else None

    with ThreadPoolExecutor(NUM_READERS) as threads:
        yield from Workers(NUM_READERS, threads).start(read, tasks)


def _read_result(folder: Storage, name: str) -> ShardResult:
    content = _read_json(folder, name)
    try:
        photos = tuple(record(PhotoRecord, photo) for photo in content["photos"])
        refused = tuple(record(Refused, item) for item in content["refused"])
        return ShardResult(record(Shard, content["shard"]), photos, refused)
    except (KeyError, TypeError, ValueError) as error:
        path = join(folder.location, name)
        raise ShardsFailed(f"{path}: damaged ({error}); remove it and its shard, and start again") from error


def finish_split(config: ShardsConfig, split: str, tasks: list[ShardTask], refused: list[Refused]) -> Manifest:
    """Gathers what is known of the split's shards into its manifest, its list of photos and its index, unless these
    say the same already; shard by shard, so that they may be larger than the memory.
    """
    folder = open_writable(join(config.out, split))
    tasks = [task for task in tasks if task.split == split]
    early = sorted((item for item in refused if item.split == split), key=lambda item: item.name)
    existing, names = existing_manifest(folder), folder.sizes().keys()
    kept = {name for task in tasks for name in (_result_name(task.name), _index_name(task.name))} & names
    is_whole = existing is not None and not kept and {existing.index.name, PHOTOS} <= names
    if existing and is_whole and _refused_early(folder, existing) == early:
        return existing
    shards, photos, degraded_psnr = write_listing(folder, _all_results(folder, tasks, existing), early)
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
        versions=writer_versions(),
    )
    if existing and replace(manifest, versions=existing.versions) == existing:
        manifest = existing
    else:
        _write_json(folder, MANIFEST, manifest.to_json())
    folder.remove(sorted(kept))
    return manifest


def _refused_early(folder: Storage, existing: Manifest) -> list[Refused] | None:
    """Those that the list names as refused before any shard was made; None where it is not the manifest's."""
    try:
        return [item for item in refused_in(folder, existing) if not item.shard]
    except ShardError:
        return None


def _all_results(folder: Storage, tasks: Sequence[ShardTask], existing: Manifest | None) -> Iterator[ShardResult]:
    """What is known of each shard: kept beside it, or else from the manifest and its list, which has their order."""
    listed = _listed_results(folder, existing) if existing else iter(())
    for task, result in zip(tasks, _read_results(folder, tasks, folder.sizes()), strict=True):
        while result is None or result.shard.name != task.name:
            result = next(listed, None)
            if result is None:
                raise ShardsFailed(f"{folder.location}: {PHOTOS} lacks what is in {task.name}; remove that shard, and "
                                   "start again to make it anew")
        yield result


def _listed_results(folder: Storage, existing: Manifest) -> Iterator[ShardResult]:
    """By shard, what the list has. It may be newer than the manifest, if a kill came between the two: what it says of
    the same shards is the same.
    """
    shards = {shard.name: shard for shard in existing.shards}
    if existing.photos and (num_bytes := folder.sizes().get(existing.photos.name)):
        existing = replace(existing, photos=replace(existing.photos, bytes=num_bytes))
    for name, entries in groupby(read_listing(folder, existing, check_hash=False), key=lambda entry: entry.shard):
        if name:
            both = list(entries)
            photos = tuple(entry for entry in both if isinstance(entry, PhotoRecord))
            yield ShardResult(shards[name], photos, tuple(entry for entry in both if isinstance(entry, Refused)))


def write_listing(
    folder: Storage, results: Iterable[ShardResult], early: Sequence[Refused]
) -> tuple[tuple[Shard, ...], PhotosFile, float]:
    """Writes the split's list of photos; gives its shards, the list's entry in the manifest, and the mean PSNR of all
    degraded tiles, dB.
    """
    shards: list[Shard] = []
    counts, psnr_sum, digest = Counter[type](), 0.0, hashlib.sha256()
    with folder.create(PHOTOS) as file:

        def write(entries: Iterable[PhotoRecord | Refused]) -> None:
            for entry in entries:
                line = encode(entry)
                digest.update(line)
                file.write(line)
                counts[type(entry)] += 1

        for result in results:
            shards.append(result.shard)
            write((*result.photos, *result.refused))
            psnr_sum += sum(photo.degraded_psnr * photo.num_samples for photo in result.photos)
        write(early)
        num_bytes = file.tell()
    photos = PhotosFile(PHOTOS, num_bytes, digest.hexdigest(), counts[PhotoRecord], counts[Refused])
    return tuple(shards), photos, psnr_sum / max(1, sum(shard.num_samples for shard in shards))


def write_index(
    folder: Storage, members: tuple[str, ...], shards: tuple[Shard, ...], existing: Manifest | None
) -> IndexFile:
    """Writes the split's index of the rows kept beside the shards or in the existing index; a shard that has none is
    scanned again. Leaves an index alone that has them all.
    """
    names = folder.sizes()
    num_samples = sum(shard.num_samples for shard in shards)
    indexed = _existing_rows(folder, existing)
    if existing and indexed and existing.shards == shards:
        return index_entry(num_samples)
    numbers = {shard: number for number, shard in enumerate(existing.shards)} if existing else {}
    with folder.create(INDEX) as file:
        file.write(index_header(num_samples))
        for shard in shards:
            kept = _index_name(shard.name)
            if kept in names:
                rows = np.load(io.BytesIO(folder.read(kept)), allow_pickle=False)
            elif indexed and shard in numbers:
                rows = indexed.of_shard(numbers[shard])
            else:
                with folder.local_copy(shard.name) as path:
                    rows = index_tar(path, members)[0]
            file.write(rows.tobytes())
    return index_entry(num_samples)


def _existing_rows(folder: Storage, existing: Manifest | None) -> IndexReader | None:
    try:
        return IndexReader(folder, existing) if existing else None
    except ShardError:
        return None
