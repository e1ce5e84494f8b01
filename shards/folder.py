"""The output folder: who works in it, what was begun, which shards are finished, the manifests at the end."""

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

from shards import plan, pool
from shards.places import Place, place
from shards.plan import ShardsConfig, ShardTask
from shards.pool import ShardsFailed
from shards.tar import index_tar
from srcnn import files, sample
from srcnn.config import plain
from srcnn.index import INDEX, encode_index, index_entry, index_header
from srcnn.listing import PHOTOS, encode, read_listing, refused_in
from srcnn.members import npy_stride
from srcnn.rows import Rows
from srcnn.sample import PLAN, SPLITS, IndexFile, Manifest, PhotoRecord, PhotosFile, Refused, Shard, ShardError
from srcnn.storage import join, open_storage
from srcnn.untrusted import parse_json, record

FOLDERS = ("", *SPLITS)
NUM_READERS = 16


@dataclass(frozen=True)
class ShardResult:
    """What is known of a finished shard; kept beside it as NUMBER.json until the manifest is written."""

    shard: Shard
    photos: tuple[PhotoRecord, ...]
    refused: tuple[Refused, ...]


def claim(out: Place, config: ShardsConfig, tasks: list[ShardTask]) -> None:
    """Notes in `out` what is made there, or checks that it is what was begun there, and clears away what a
    killed run left half-written.

    Raises:
        ShardsFailed: the folder holds shards of another config, of other photos, or none of ours.
    """
    identity = plain(config.identity())
    content = {"config": identity, "plan_sha256": plan.plan_hash(tasks), "num_shards": len(tasks)}
    versions = {"versions": sample.writer_versions()}
    cure = "choose another OUT, or remove this folder to make them anew"
    there = out.names()
    if PLAN in there:
        begun = _read_json(out, PLAN)
        if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
            raise ShardsFailed(f"{join(out.location, PLAN)}: damaged; {cure}")
        before, now = plan.comparable(begun["config"]), plan.comparable(identity)
        if before != now:
            changed = [key for key in now if before.get(key) != now[key]]
            told = ", ".join(f"{key}: {before.get(key)} there, {now[key]} now" for key in changed)
            raise ShardsFailed(f"{out.location}: holds shards made with another config ({told}); {cure}")
        if any(begun.get(key) != content[key] for key in ("plan_sha256", "num_shards")):
            raise ShardsFailed(f"{out.location}: holds shards of other photos than those found now; {cure}")
    elif any(not name.startswith(files.TEMPORARY_PREFIX) for name in there):
        raise ShardsFailed(f"{out.location}: is not empty and holds no shards of ours; choose another OUT")
    else:
        _write_json(out, PLAN, content | versions)
    out.clear(FOLDERS)


def check_versions(out: Place) -> None:
    """Raises ShardsFailed where the shards there were made by another Pillow or JPEG library: pixels would differ."""
    begun, now = _read_json(out, PLAN).get("versions"), sample.writer_versions()
    if begun != now:
        cure = "install those again, or remove this folder to make all shards anew"
        raise ShardsFailed(f"{out.location}: its finished shards were made with {begun}, here is {now}; {cure}")


def _read_json(out: Place, name: str) -> Any:
    try:
        return parse_json(out.read(name))
    except ValueError as error:
        raise ShardsFailed(f"{join(out.location, name)}: damaged: {error}") from error


def _write_json(out: Place, name: str, content: Any) -> None:
    with out.create(name) as file:
        file.write(files.to_json(content))


def write_record(out: Place, shard: str, result: ShardResult) -> None:
    """Keeps the result beside its shard until the manifest is written."""
    _write_json(out, _record_name(shard), asdict(result))


def write_rows(out: Place, shard: str, rows: np.ndarray) -> None:
    """Keeps the index of a shard beside it until that of the split is written."""
    with out.create(_rows_name(shard)) as file:
        file.write(encode_index(rows))


def _record_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.json"


def _rows_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.npy"


def finished_shards(out: Place, tasks: Iterable[ShardTask]) -> dict[ShardTask, Shard]:
    """The shards that lie under their final name, as long as they were when they were finished."""
    finished = {}
    for split in SPLITS:
        there, sizes = manifest_there(out, split), out.sizes(split)
        listed = {shard.name: shard for shard in there.shards} if there else {}
        mine = [task for task in tasks if task.split == split and task.name in sizes]
        for task, result in zip(mine, _records(out, split, mine, sizes), strict=True):
            shard = result.shard if result else listed.get(task.name)
            if shard and sizes[task.name] == shard.bytes:
                finished[task] = shard
    return finished


def manifest_there(out: Place, split: str) -> Manifest | None:
    name = f"{split}/{sample.MANIFEST}"
    if sample.MANIFEST not in out.sizes(split):
        return None
    return Manifest.parse(out.read(name).decode(errors="surrogateescape"), join(out.location, name))


def _records(
    out: Place, split: str, tasks: Sequence[ShardTask], names: Container[str]
) -> Iterator[ShardResult | None]:
    """What is kept beside each shard, None where nothing is; several are read at once, as a store takes its time."""

    def read(task: ShardTask) -> ShardResult | None:
        kept = _record_name(task.name)
        return _read_record(out, f"{split}/{kept}") if kept in names else None

    with ThreadPoolExecutor(NUM_READERS) as threads:
        yield from pool.Workers(NUM_READERS, threads).start(read, tasks)


def _read_record(out: Place, name: str) -> ShardResult:
    content = _read_json(out, name)
    try:
        photos = tuple(record(PhotoRecord, photo) for photo in content["photos"])
        refused = tuple(record(Refused, item) for item in content["refused"])
        return ShardResult(record(Shard, content["shard"]), photos, refused)
    except (KeyError, TypeError, ValueError) as error:
        where = join(out.location, name)
        raise ShardsFailed(f"{where}: damaged ({error}); remove it and its shard") from error


def finish_split(config: ShardsConfig, split: str, tasks: list[ShardTask], refused: list[Refused]) -> Manifest:
    """Gathers what is known of the split's shards into its manifest, its list of photos and its index, unless these
    say the same already; shard by shard, so that they may be larger than the memory.
    """
    out = place(config.out)
    mine = [task for task in tasks if task.split == split]
    early = sorted((item for item in refused if item.split == split), key=lambda item: item.name)
    there, names = manifest_there(out, split), out.sizes(split)
    beside = {name for task in mine for name in (_record_name(task.name), _rows_name(task.name))} & names.keys()
    is_whole = there is not None and not beside and {there.index.name, PHOTOS} <= names.keys()
    if there and is_whole and _refused_early(out, split, there) == early:
        return there
    shards, photos, degraded_psnr = write_listing(out, split, _results(out, split, mine, there, names), early)
    manifest = Manifest(
        split=split,
        tile_shape=config.tile_shape,
        encoding=config.encoding,
        members=config.members(split),
        stride=npy_stride(config.tile_shape, len(config.members(split))) if config.encoding == "npy" else None,
        config=plain(config.identity()),
        index=write_index(out, config, split, shards, there),
        shards=shards,
        photos=photos,
        degraded_psnr=degraded_psnr,
        versions=sample.writer_versions(),
    )
    if there and replace(manifest, versions=there.versions) == there:
        manifest = there
    else:
        _write_json(out, f"{split}/{sample.MANIFEST}", manifest.to_json())
    out.remove(f"{split}/{name}" for name in sorted(beside))
    return manifest


def _refused_early(out: Place, split: str, there: Manifest) -> list[Refused] | None:
    """Those that the list names as refused before any shard was made; None where it is not the manifest's."""
    try:
        return [item for item in refused_in(open_storage(join(out.location, split)), there) if not item.shard]
    except ShardError:
        return None


def _results(
    out: Place, split: str, tasks: Sequence[ShardTask], there: Manifest | None, names: Container[str]
) -> Iterator[ShardResult]:
    """What is known of each shard: kept beside it, or else from the manifest and its list, which has their order."""
    listed = _listed(out, split, there) if there else iter(())
    for task, result in zip(tasks, _records(out, split, tasks, names), strict=True):
        while result is None or result.shard.name != task.name:
            result = next(listed, None)
            if result is None:
                raise ShardsFailed(f"{join(out.location, split)}: {PHOTOS} lacks what is in {task.name}; remove that "
                                   "shard, and start again to make it anew")
        yield result


def _listed(out: Place, split: str, there: Manifest) -> Iterator[ShardResult]:
    """By shard, what the list has. It may be newer than the manifest, if a kill came between the two: what it says of
    the same shards is the same.
    """
    shards = {shard.name: shard for shard in there.shards}
    if there.photos and (num_bytes := out.sizes(split).get(there.photos.name)):
        there = replace(there, photos=replace(there.photos, bytes=num_bytes))
    listing = read_listing(open_storage(join(out.location, split)), there, check_hash=False)
    for name, entries in groupby(listing, key=lambda entry: entry.shard):
        if name:
            both = list(entries)
            photos = tuple(entry for entry in both if isinstance(entry, PhotoRecord))
            yield ShardResult(shards[name], photos, tuple(entry for entry in both if isinstance(entry, Refused)))


def write_listing(
    out: Place, split: str, results: Iterable[ShardResult], early: Sequence[Refused]
) -> tuple[tuple[Shard, ...], PhotosFile, float]:
    """Writes the split's list of photos; gives its shards, the list's entry in the manifest, and the mean PSNR of all
    degraded tiles, dB.
    """
    shards: list[Shard] = []
    counts, psnr_sum, digest = Counter[type](), 0.0, hashlib.sha256()
    with out.create(f"{split}/{PHOTOS}") as file:

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
    out: Place, config: ShardsConfig, split: str, shards: tuple[Shard, ...], there: Manifest | None
) -> IndexFile:
    """Writes the split's index of the rows kept beside the shards or in the index that is `there`; a shard that has
    none is read again. Leaves an index alone that has them all.
    """
    names = out.sizes(split)
    before = _rows_there(out, split, there) if there and there.index.name in names else None
    if before is None or not there or there.shards != shards:
        numbers = {shard: number for number, shard in enumerate(there.shards)} if before and there else {}
        with out.create(f"{split}/{INDEX}") as file:
            file.write(index_header(sum(shard.num_samples for shard in shards)))
            for shard in shards:
                kept = _rows_name(shard.name)
                if kept in names:
                    rows = np.load(io.BytesIO(out.read(f"{split}/{kept}")), allow_pickle=False)
                elif before and shard in numbers:
                    rows = before.of_shard(numbers[shard])
                else:
                    with out.local_copy(f"{split}/{shard.name}") as path:
                        rows = index_tar(path, config.members(split))[0]
                file.write(rows.tobytes())
    return index_entry(sum(shard.num_samples for shard in shards))


def _rows_there(out: Place, split: str, there: Manifest) -> Rows | None:
    try:
        return Rows(open_storage(join(out.location, split)), there)
    except ShardError:
        return None
