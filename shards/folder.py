"""The output folder: who works in it, what was begun, which shards are finished, the manifests at the end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from shards import plan
from shards.plan import ShardsConfig, ShardTask
from shards.pool import ShardsFailed
from srcnn import files, sample
from srcnn.config import plain
from srcnn.index import ROW, encode_index, index_tar, write_index
from srcnn.members import MEMBERS, npy_stride
from srcnn.sample import PLAN, SPLITS, IndexFile, Manifest, PhotoRecord, Refused, Shard
from srcnn.untrusted import read_json, record


@dataclass(frozen=True)
class ShardResult:
    """What is known of a finished shard; kept beside it as NUMBER.json until the manifest is written."""

    shard: Shard
    photos: tuple[PhotoRecord, ...]
    refused: tuple[Refused, ...]


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Keeps other shard makers out of the folder; raises ShardsFailed where one is at work there already."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ShardsFailed(f"{out}: another process is making shards there; wait for it") from error
    except OSError:
        pass  # a network disk that knows no locks on folders
    try:
        yield
    finally:
        os.close(handle)


def claim(out: Path, config: ShardsConfig, tasks: list[ShardTask]) -> None:
    """Notes in `out` what is made there, or checks that it is what was begun there, and clears away what a
    killed run left half-written.

    Raises:
        ShardsFailed: the folder holds shards of another config, of other photos, or none of ours.
    """
    identity = plain(config.identity())
    content = {"config": identity, "plan_sha256": plan.plan_hash(tasks), "num_shards": len(tasks)}
    versions = {"versions": sample.writer_versions()}
    cure = "choose another OUT, or remove this folder to make them anew"
    if (out / PLAN).is_file():
        begun = read_json(out / PLAN)
        if not isinstance(begun, dict) or not isinstance(begun.get("config"), dict):
            raise ShardsFailed(f"{out / PLAN}: damaged; {cure}")
        before = plan.LATER_KEYS | begun["config"]
        now = plan.LATER_KEYS | identity
        if before != now:
            changed = [key for key in now if before.get(key) != now[key]]
            told = ", ".join(f"{key}: {before.get(key)} there, {now[key]} now" for key in changed)
            raise ShardsFailed(f"{out}: holds shards made with another config ({told}); {cure}")
        if begun | content != begun:
            raise ShardsFailed(f"{out}: holds shards of other photos than those found now; {cure}")
    elif any(not path.name.startswith(files.TEMPORARY_PREFIX) for path in out.iterdir()):
        raise ShardsFailed(f"{out}: is not empty and holds no shards of ours; choose another OUT")
    else:
        files.write_json(out / PLAN, content | versions)
    for folder in (out, *(out / split for split in SPLITS)):
        folder.mkdir(exist_ok=True)
        for path in folder.glob(f"{files.TEMPORARY_PREFIX}*"):
            path.unlink()


def check_versions(out: Path) -> None:
    """Raises ShardsFailed where the shards there were made by another Pillow or JPEG library: pixels would differ."""
    begun, now = read_json(out / PLAN).get("versions"), sample.writer_versions()
    if begun != now:
        cure = "install those again, or remove this folder to make all shards anew"
        raise ShardsFailed(f"{out}: its finished shards were made with {begun}, here is {now}; {cure}")


def write_record(path: Path, result: ShardResult) -> None:
    """Keeps the result beside its shard `path` until the manifest is written."""
    files.write_json(path.with_suffix(".json"), asdict(result))


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Keeps the index of the shard `path` beside it until that of the split is written."""
    with files.atomic_file(_rows_path(path)) as file:
        file.write(encode_index(rows))


def _rows_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npy")


def finished_shards(out: Path, tasks: Iterable[ShardTask]) -> dict[ShardTask, ShardResult]:
    """The shards that lie under their final name, as long as they were when they were finished."""
    known = {split: _known_from_manifest(out / split) for split in SPLITS}
    finished = {}
    for task in tasks:
        path = out / task.split / task.name
        record = path.with_suffix(".json")
        result = _read_record(record) if record.is_file() else known[task.split].get(task.name)
        if result and path.is_file() and path.stat().st_size == result.shard.bytes:
            finished[task] = result
    return finished


def _read_record(path: Path) -> ShardResult:
    content = read_json(path)
    try:
        photos = tuple(record(PhotoRecord, photo) for photo in content["photos"])
        refused = tuple(record(Refused, item) for item in content["refused"])
        return ShardResult(record(Shard, content["shard"]), photos, refused)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardsFailed(f"{path}: damaged ({error}); remove it and its shard") from error


def _known_from_manifest(folder: Path) -> dict[str, ShardResult]:
    """By shard name; a manifest does not say in which shard a refused photo was, so each gets them all."""
    if not (folder / sample.MANIFEST).is_file():
        return {}
    manifest = Manifest.read(folder, check_shards=False)
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
    folder = Path(config.out) / split
    mine = [task for task in tasks if task.split == split]
    finished = finished_shards(Path(config.out), mine)
    results = [finished[task] for task in mine]
    planned = {source.name for task in mine for source in task.sources}
    late = {item for result in results for item in result.refused if item.name in planned}
    early = {item for item in refused if item.split == split}
    shards = tuple(result.shard for result in results)
    there = Manifest.read(folder, check_shards=False) if (folder / sample.MANIFEST).is_file() else None
    index_there = there is not None and (folder / there.index.name).is_file()
    manifest = Manifest(
        split=split,
        tile_shape=config.tile_shape,
        encoding=config.encoding,
        members=MEMBERS[config.encoding],
        stride=npy_stride(config.tile_shape) if config.encoding == "npy" else None,
        config=plain(config.identity()),
        index=there.index if there and index_there and there.shards == shards else finish_index(folder, config, shards),
        shards=shards,
        photos=tuple(photo for result in results for photo in result.photos),
        refused=tuple(sorted(early | late, key=lambda item: item.name)),
        versions=sample.writer_versions(),
    )
    if there and replace(manifest, versions=there.versions) == there:
        manifest = there
    else:
        manifest.write(folder)
    for task in mine:
        (folder / task.name).with_suffix(".json").unlink(missing_ok=True)
        _rows_path(folder / task.name).unlink(missing_ok=True)
    return manifest


def finish_index(folder: Path, config: ShardsConfig, shards: tuple[Shard, ...]) -> IndexFile:
    """Writes the split's index out of those kept beside the shards; a shard without one is read again."""
    rows = [np.empty(0, ROW)]
    for shard in shards:
        kept = _rows_path(folder / shard.name)
        if kept.is_file():
            rows.append(np.load(kept, allow_pickle=False))
        else:
            rows.append(index_tar(folder / shard.name, MEMBERS[config.encoding])[0])
    return write_index(folder, np.concatenate(rows))
