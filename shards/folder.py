"""The output folder: who works in it, what was begun, which shards are finished, the manifests at the end."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shards import plan
from shards.places import Place, place
from shards.plan import ShardsConfig, ShardTask
from shards.pool import ShardsFailed
from srcnn import files, sample
from srcnn.config import plain
from srcnn.index import INDEX, ROW, encode_index, index_entry, index_tar
from srcnn.members import MEMBERS, npy_stride
from srcnn.sample import PLAN, SPLITS, IndexFile, Manifest, PhotoRecord, Refused, Shard
from srcnn.storage import join
from srcnn.untrusted import parse_json, record

FOLDERS = ("", *SPLITS)


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
        before = plan.LATER_KEYS | begun["config"]
        now = plan.LATER_KEYS | identity
        if before != now:
            changed = [key for key in now if before.get(key) != now[key]]
            told = ", ".join(f"{key}: {before.get(key)} there, {now[key]} now" for key in changed)
            raise ShardsFailed(f"{out.location}: holds shards made with another config ({told}); {cure}")
        if begun | content != begun:
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


def finished_shards(out: Place, tasks: Iterable[ShardTask]) -> dict[ShardTask, ShardResult]:
    """The shards that lie under their final name, as long as they were when they were finished."""
    known, sizes = {}, {}
    for split in SPLITS:
        sizes[split] = out.sizes(split)
        known[split] = _known_from_manifest(manifest_there(out, split))
    finished = {}
    for task in tasks:
        there, record = sizes[task.split], _record_name(task.name)
        if task.name not in there:
            continue
        result = _read_record(out, f"{task.split}/{record}") if record in there else known[task.split].get(task.name)
        if result and there[task.name] == result.shard.bytes:
            finished[task] = result
    return finished


def manifest_there(out: Place, split: str) -> Manifest | None:
    name = f"{split}/{sample.MANIFEST}"
    if sample.MANIFEST not in out.sizes(split):
        return None
    return Manifest.parse(out.read(name).decode(errors="surrogateescape"), join(out.location, name))


def _read_record(out: Place, name: str) -> ShardResult:
    content = _read_json(out, name)
    try:
        photos = tuple(record(PhotoRecord, photo) for photo in content["photos"])
        refused = tuple(record(Refused, item) for item in content["refused"])
        return ShardResult(record(Shard, content["shard"]), photos, refused)
    except (KeyError, TypeError, ValueError) as error:
        where = join(out.location, name)
        raise ShardsFailed(f"{where}: damaged ({error}); remove it and its shard") from error


def _known_from_manifest(manifest: Manifest | None) -> dict[str, ShardResult]:
    """By shard name; a manifest does not say in which shard a refused photo was, so each gets them all."""
    if manifest is None:
        return {}
    photos: dict[str, list[PhotoRecord]] = {shard.name: [] for shard in manifest.shards}
    for photo in manifest.photos:
        photos[photo.shard].append(photo)
    return {
        shard.name: ShardResult(shard, tuple(photos[shard.name]), manifest.refused)
        for shard in manifest.shards
    }


def finish_split(
    config: ShardsConfig, split: str, tasks: list[ShardTask], refused: list[Refused]
) -> Manifest:
    """Gathers what is known of the split's shards into its manifest, unless that says the same already."""
    out = place(config.out)
    mine = [task for task in tasks if task.split == split]
    finished = finished_shards(out, mine)
    results = [finished[task] for task in mine]
    planned = {source.name for task in mine for source in task.sources}
    late = {item for result in results for item in result.refused if item.name in planned}
    early = {item for item in refused if item.split == split}
    shards = tuple(result.shard for result in results)
    there, names = manifest_there(out, split), out.sizes(split)
    manifest = Manifest(
        split=split,
        tile_shape=config.tile_shape,
        encoding=config.encoding,
        members=MEMBERS[config.encoding],
        stride=npy_stride(config.tile_shape) if config.encoding == "npy" else None,
        config=plain(config.identity()),
        index=there.index if there and there.index.name in names and there.shards == shards
        else finish_index(out, config, split, shards),
        shards=shards,
        photos=tuple(photo for result in results for photo in result.photos),
        refused=tuple(sorted(early | late, key=lambda item: item.name)),
        versions=sample.writer_versions(),
    )
    if there and replace(manifest, versions=there.versions) == there:
        manifest = there
    else:
        _write_json(out, f"{split}/{sample.MANIFEST}", manifest.to_json())
    beside = {name for task in mine for name in (_record_name(task.name), _rows_name(task.name))}
    out.remove(f"{split}/{name}" for name in sorted(beside & names.keys()))
    return manifest


def finish_index(out: Place, config: ShardsConfig, split: str, shards: tuple[Shard, ...]) -> IndexFile:
    """Writes the split's index out of those kept beside the shards; a shard without one is read again."""
    rows, names = [np.empty(0, ROW)], out.sizes(split)
    for shard in shards:
        if _rows_name(shard.name) in names:
            rows.append(np.load(io.BytesIO(out.read(f"{split}/{_rows_name(shard.name)}")), allow_pickle=False))
        else:
            with out.local_copy(f"{split}/{shard.name}") as path:
                rows.append(index_tar(path, MEMBERS[config.encoding])[0])
    content = encode_index(np.concatenate(rows))
    with out.create(f"{split}/{INDEX}") as file:
        file.write(content)
    return index_entry(content)
