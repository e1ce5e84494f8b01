"""Every byte of a set of shards against its manifest and index; each thing that is wrong is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srcnn.data.dataset import read_manifest
from srcnn.data.index import IndexReader, hash_of, row_problem
from srcnn.data.manifest import MANIFEST, PLAN, SPLITS, Manifest, Shard, ShardError
from srcnn.data.photo_list import photos_in
from srcnn.runtime.object_store import AccessConfig, ObjectStore
from srcnn.runtime.storage import Folder, join, open_storage
from srcnn.runtime.untrusted import read_json

CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Checked:
    """One file that was looked at; `problem` is "" where it is as it should be."""

    name: str
    problem: str = ""


def verify_shards(location: str | Path, access: AccessConfig | None = None) -> Iterator[Checked]:
    """Checks a split, or all splits below a folder or URL, file by file.

    Raises:
        FileNotFoundError: no manifest there.
        ShardError: a manifest that cannot be read.
    """
    found: list[tuple[Folder | ObjectStore, Manifest]] = []
    for folder in (str(location), *(join(location, split) for split in SPLITS)):
        storage = open_storage(folder, access)
        try:
            found.append((storage, read_manifest(storage)))
        except FileNotFoundError as error:
            if not found and folder == join(location, SPLITS[-1]):
                raise FileNotFoundError(f"{open_storage(location, access).location}: {error}") from None
    for storage, manifest in found:
        try:
            yield from _verify_split(storage, manifest)
        finally:
            storage.close()


def _verify_split(storage: Folder | ObjectStore, manifest: Manifest) -> Iterator[Checked]:
    yield Checked(join(storage.location, MANIFEST), _manifest_problem(storage, manifest))
    if manifest.photos:
        yield Checked(join(storage.location, manifest.photos.name), _photo_list_problem(storage, manifest))
    index, problem = None, ""
    try:
        index = IndexReader(storage, manifest)
        for number in range(len(manifest.shards)):
            index.of_shard(number)
    except (OSError, ShardError) as error:
        index, problem = None, str(error)
    yield Checked(join(storage.location, manifest.index.name), problem)
    first = 0
    for number, shard in enumerate(manifest.shards):
        rows = index.of_shard(number) if index else None
        yield Checked(join(storage.location, shard.name), _shard_problem(storage, manifest, shard, rows, first))
        first += shard.num_samples
    if isinstance(storage, Folder):
        known = {shard.name for shard in manifest.shards}
        for path in sorted(storage.path.glob("*.tar")):
            if path.name not in known:
                yield Checked(str(path), "is in no manifest; remove it, or make or index the shards anew")


def _manifest_problem(storage: Folder | ObjectStore, manifest: Manifest) -> str:
    """What in a manifest contradicts itself, or the plan that its shards were made by."""
    plan = storage.path.parent / PLAN if isinstance(storage, Folder) else None
    if plan is not None and plan.is_file():
        content, here = read_json(plan), manifest.config
        planned = content.get("config") if isinstance(content, dict) else None
        if not isinstance(planned, dict):
            return f"cannot be compared with {plan}, which is damaged; make the shards anew"
        changed = [key for key in planned | here if planned.get(key) != here.get(key)]
        if changed:
            values = ", ".join(f"{key}: {planned.get(key)} there, {here.get(key)} here" for key in changed)
            return f"is of another config than {plan} ({values}); make the shards anew"
    return ""


def _photo_list_problem(storage: Folder | ObjectStore, manifest: Manifest) -> str:
    pairs = {shard.name: shard.num_samples for shard in manifest.shards}
    try:
        for photo in photos_in(storage, manifest):
            pairs[photo.shard] -= photo.num_samples
    except (OSError, ShardError) as error:
        return str(error)
    for name, difference in pairs.items():
        if difference:
            counts = f"the manifest says that {name} has {difference:+d} pairs more than its photos gave"
            return f"{counts}; make the shards anew"
    return ""


def _shard_problem(
    storage: Folder | ObjectStore, manifest: Manifest, shard: Shard, rows: np.ndarray | None, first: int
) -> str:
    if isinstance(storage, Folder) and (problem := _size_problem(storage.path / shard.name, shard, rows, first)):
        return problem
    digest = hashlib.sha256()
    try:
        for start in range(0, shard.bytes, CHUNK_BYTES):
            stop = min(shard.bytes, start + CHUNK_BYTES)
            digest.update(storage.read_range(shard.name, start, stop, shard.bytes))
    except OSError as error:
        return str(error)
    found = digest.hexdigest()
    if found == shard.sha256:
        problem = "" if rows is None else row_problem(rows, manifest, shard)
        return f"has not as many pairs as the manifest says, or a pair {problem}" if problem else ""
    others = [other.name for other in manifest.shards if other.sha256 == found]
    if others:
        return f"holds what {others[0]} should hold; the names are swapped"
    damaged = [] if rows is None or row_problem(rows, manifest, shard) else _damaged(storage, shard, rows)
    if rows is not None and len(damaged) == len(rows):
        return "is another shard, of other photos or another config; copy the right one or make the shards anew"
    where = ", ".join(str(first + number) for number in damaged[:10]) + (", ..." if len(damaged) > 10 else "")
    return f"is damaged ({f'pairs {where} of the split' if damaged else 'outside its pairs'}); copy it again"


def _size_problem(path: Path, shard: Shard, rows: np.ndarray | None, first: int) -> str:
    if not path.is_file():
        return "is missing; copy it again or make the shards anew"
    size = path.stat().st_size
    if size == shard.bytes:
        return ""
    lost = np.empty(0, int) if rows is None else np.flatnonzero(rows["start"].astype(float) + rows["bytes"] > size)
    lacks = f" and lacks what follows from pair {first + lost[0]} of the split on" if len(lost) else ""
    return f"has {size} bytes{lacks}, the manifest says {shard.bytes} bytes; copy it again"


def _damaged(storage: Folder | ObjectStore, shard: Shard, rows: np.ndarray) -> list[int]:
    """The samples of a shard whose bytes are not as the index says."""
    contents = (storage.read_range(shard.name, row[0], row[0] + row[1], shard.bytes) for row in rows.tolist())
    return [number for number, content in enumerate(contents) if hash_of(content) != rows["hash"][number]]
