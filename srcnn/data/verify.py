"""Verifies every byte of a set of shards against its manifests and indexes, and names each problem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srcnn.data.index import IndexReader, entry_problem, hash_bytes
from srcnn.data.manifest import MANIFEST, PLAN, REPAIR_HINT, SPLITS, Manifest, Shard, ShardError, read_manifest
from srcnn.data.photo_list import read_photo_records
from srcnn.runtime.object_store import AccessConfig
from srcnn.runtime.storage import Folder, Storage, join, open_storage
from srcnn.runtime.untrusted import read_json

CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class FileCheck:
    """The result for one file; `problem` is "" if there is none."""

    name: str
    problem: str = ""


def verify_shards(location: str | Path, access: AccessConfig | None = None) -> Iterator[FileCheck]:
    """Verifies a split, or all splits below a folder or URL, file by file.

    Raises:
        FileNotFoundError: there is no manifest.
        ShardError: a manifest cannot be read.
    """
    found: list[tuple[Storage, Manifest]] = []
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


def _verify_split(storage: Storage, manifest: Manifest) -> Iterator[FileCheck]:
    yield FileCheck(join(storage.location, MANIFEST), _plan_problem(storage, manifest))
    if manifest.photos:
        yield FileCheck(join(storage.location, manifest.photos.name), _photo_list_problem(storage, manifest))
    index, problem = None, ""
    try:
        index = IndexReader(storage, manifest)
        for number in range(len(manifest.shards)):
            index.shard_entries(number)
    except (OSError, ShardError) as error:
        index, problem = None, str(error)
    yield FileCheck(join(storage.location, manifest.index.name), problem)
    for number, (shard, first_sample) in enumerate(zip(manifest.shards, manifest.first_samples.tolist())):
        entries = index.shard_entries(number) if index else None
        problem = _shard_problem(storage, manifest, shard, entries, first_sample)
        yield FileCheck(join(storage.location, shard.name), problem)
    if isinstance(storage, Folder):
        known = {shard.name for shard in manifest.shards}
        for path in sorted(storage.path.glob("*.tar")):
            if path.name not in known:
                yield FileCheck(str(path), "is not in the manifest; remove it, or make or index the shards again")


def _plan_problem(storage: Storage, manifest: Manifest) -> str:
    """How the manifest's config differs from that of the plan beside the splits, if there is one."""
    plan = storage.path.parent / PLAN if isinstance(storage, Folder) else None
    if plan is None or not plan.is_file():
        return ""
    content, config = read_json(plan), manifest.config
    planned = content.get("config") if isinstance(content, dict) else None
    if not isinstance(planned, dict):
        return f"cannot be compared with {plan}, which is damaged; make the shards again"
    changed = [key for key in planned | config if planned.get(key) != config.get(key)]
    if not changed:
        return ""
    values = ", ".join(f"{key}: {config.get(key)} here, {planned.get(key)} there" for key in changed)
    return f"has another config than {plan} ({values}); make the shards again"


def _photo_list_problem(storage: Storage, manifest: Manifest) -> str:
    surplus = {shard.name: shard.num_samples for shard in manifest.shards}
    try:
        for photo in read_photo_records(storage, manifest):
            surplus[photo.shard] -= photo.num_samples
    except (OSError, ShardError) as error:
        return str(error)
    for name, difference in surplus.items():
        if difference:
            counts = f"for {name} the manifest counts {difference:+d} samples more than this list"
            return f"{counts}; make the shards again"
    return ""


def _shard_problem(
    storage: Storage, manifest: Manifest, shard: Shard, entries: np.ndarray | None, first_sample: int
) -> str:
    """What is wrong with a shard; `entries` is None if the index cannot be used."""
    if isinstance(storage, Folder):
        if problem := _size_problem(storage.path / shard.name, shard, entries, first_sample):
            return problem
    digest = hashlib.sha256()
    try:
        for start in range(0, shard.bytes, CHUNK_BYTES):
            stop = min(shard.bytes, start + CHUNK_BYTES)
            digest.update(storage.read_range(shard.name, start, stop, shard.bytes))
    except OSError as error:
        return str(error)
    sha256 = digest.hexdigest()
    in_index = "" if entries is None else entry_problem(entries, manifest, shard)
    if sha256 == shard.sha256:
        return f"does not fit the index: a sample {in_index}; make the shards again" if in_index else ""
    others = [other.name for other in manifest.shards if other.sha256 == sha256]
    if others:
        return f"has the content of {others[0]}; rename or copy them again"
    damaged = [] if entries is None or in_index else _damaged_samples(storage, shard, entries)
    if entries is not None and len(damaged) == len(entries):
        return "is another shard, of other photos or another config; copy the right one or make the shards again"
    if not damaged:
        return "is damaged (outside of its samples); copy it again"
    numbers = ", ".join(str(first_sample + number) for number in damaged[:10])
    return f"is damaged (samples {numbers}{', ...' if len(damaged) > 10 else ''} of the split); copy it again"


def _size_problem(path: Path, shard: Shard, entries: np.ndarray | None, first_sample: int) -> str:
    if not path.is_file():
        return f"is missing; {REPAIR_HINT}"
    size = path.stat().st_size
    if size == shard.bytes:
        return ""
    lost = ""
    if entries is not None and (cut := np.flatnonzero(entries["start"].astype(float) + entries["bytes"] > size)).size:
        lost = f" and lacks all samples from {first_sample + cut[0]} of the split on"
    return f"has {size} bytes{lost}; the manifest says {shard.bytes} bytes. Copy it again"


def _damaged_samples(storage: Storage, shard: Shard, entries: np.ndarray) -> list[int]:
    """The numbers within the shard of the samples whose hash is not the one in the index."""
    spans = zip(entries["start"].tolist(), entries["bytes"].tolist(), strict=True)
    contents = (storage.read_range(shard.name, start, start + size, shard.bytes) for start, size in spans)
    return [number for number, content in enumerate(contents) if hash_bytes(content) != entries["hash"][number]]
