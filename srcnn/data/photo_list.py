"""The photos of a split: photos.jsonl beside its manifest, a line for each photo and each refused one, shard by shard.

It is read line by line and never whole: ten million photos are 3 GB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from srcnn.data.manifest import Manifest, PhotoRecord, Refused, ShardError
from srcnn.runtime.object_store import ObjectStore
from srcnn.runtime.storage import Folder
from srcnn.runtime.untrusted import InvalidInput, check_record

PHOTOS = "photos.jsonl"
CHUNK_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 20
_PHOTO_KEYS = tuple(field.name for field in dataclasses.fields(PhotoRecord))
_REFUSED_KEYS = tuple(field.name for field in dataclasses.fields(Refused))


def encode(entry: PhotoRecord | Refused) -> bytes:
    """The line of a photo."""
    keys = _PHOTO_KEYS if isinstance(entry, PhotoRecord) else _REFUSED_KEYS
    text = json.dumps({key: getattr(entry, key) for key in keys}, ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"  # a name that is no UTF-8 is lone surrogates here


def decode(line: bytes) -> PhotoRecord | Refused:
    """Raises InvalidInput where it is no such line, or names what lies outside of its folder."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"damaged: {error}") from error
    kind = Refused if isinstance(content, dict) and "reason" in content else PhotoRecord
    check_record(kind, content)
    name = content["name"]
    if name[:1] == "/" or "\0" in name or ".." in name.split("/"):
        raise InvalidInput(f"photo {name!r:.99} leads out of the folder")
    return kind(**content)


def read_listing(
    storage: Folder | ObjectStore, manifest: Manifest, check_hash: bool = True
) -> Iterator[PhotoRecord | Refused]:
    """All photos of a split, and those refused; nothing for shards made elsewhere.

    Raises:
        ShardError: not the list that the manifest names; at its end if only its hash tells.
    """
    if manifest.photos is None:
        return
    where = f"{storage.location}/{manifest.photos.name}"
    shards = {shard.name for shard in manifest.shards}
    digest = hashlib.sha256()
    try:
        for line in _lines(storage, manifest.photos.name, manifest.photos.bytes):
            digest.update(line)
            entry = decode(line)
            if entry.shard not in shards and not (isinstance(entry, Refused) and entry.shard == ""):
                raise InvalidInput(f"damaged: a photo is in {entry.shard!r:.99}, which is no shard")
            yield entry
    except OSError as error:
        raise ShardError(f"{where}: cannot be read: {error}; copy it again") from error
    except InvalidInput as error:
        raise ShardError(f"{where}: {error}") from error
    if check_hash and digest.hexdigest() != manifest.photos.sha256:
        raise ShardError(f"{where}: not the list the manifest names; copy both again")


def photos_in(storage: Folder | ObjectStore, manifest: Manifest) -> Iterator[PhotoRecord]:
    """Those of them that are in the shards."""
    return (entry for entry in read_listing(storage, manifest) if isinstance(entry, PhotoRecord))


def refused_in(storage: Folder | ObjectStore, manifest: Manifest) -> Iterator[Refused]:
    """Those that are not; without reading where there is none."""
    listed = read_listing(storage, manifest) if manifest.photos and manifest.photos.num_refused else iter(())
    return (entry for entry in listed if isinstance(entry, Refused))


def qualities_of_samples(storage: Folder | ObjectStore, manifest: Manifest) -> np.ndarray | None:
    """The JPEG quality that each sample's photo was saved with, uint8 (num_samples,), 0 where it was not; None where no
    photo was, or none is listed.

    Raises:
        ShardError: as `read_listing`, or a photo with another quality, or more samples, than can be.
    """
    if manifest.is_clean_only:
        return None
    starts, before = {}, 0
    for shard in manifest.shards:
        starts[shard.name] = before
        before += shard.num_samples
    qualities = np.zeros(before, np.uint8)
    for photo in photos_in(storage, manifest):
        start = starts[photo.shard] + photo.first_sample
        if not 1 <= (photo.quality or 1) <= 100 or start + photo.num_samples > before:
            raise ShardError(f"{storage.location}: damaged: photo {photo.name!r:.99}, quality {photo.quality}")
        qualities[start : start + photo.num_samples] = photo.quality or 0
    return qualities if qualities.any() else None


def _lines(storage: Folder | ObjectStore, name: str, num_bytes: int) -> Iterator[bytes]:
    rest = b""
    for start in range(0, num_bytes, CHUNK_BYTES):
        rest += bytes(storage.read_range(name, start, min(num_bytes, start + CHUNK_BYTES), num_bytes))
        *whole, rest = rest.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidInput(f"a line of more than {MAX_LINE_BYTES} bytes")
        yield from (line + b"\n" for line in whole)
    if rest:
        raise InvalidInput("ends within a line")
