"""The photos of a split: photos.jsonl beside its manifest, with a line for each photo, used or refused, in shard order.

The file is read line by line and never whole: for ten million photos it has 3 GB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from srcnn.data.manifest import Manifest, PhotoRecord, RefusedRecord, ShardError
from srcnn.runtime.storage import Storage
from srcnn.runtime.untrusted import InvalidInput, check_record, parse_json

PHOTOS = "photos.jsonl"
CHUNK_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 20


def encode_line(entry: PhotoRecord | RefusedRecord) -> bytes:
    """The line of a photo, including the newline."""
    text = json.dumps(dataclasses.asdict(entry), ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"  # file names that are not UTF-8 contain lone surrogates


def decode_line(line: bytes) -> PhotoRecord | RefusedRecord:
    """Parses a line. Raises InvalidInput if it is damaged: also by an impossible quality, or a name that leads out of
    the photo's folder.
    """
    try:
        content = parse_json(line)
    except ValueError as error:
        raise InvalidInput(f"damaged: {error}") from error
    kind = RefusedRecord if isinstance(content, dict) and "reason" in content else PhotoRecord
    check_record(kind, content)
    name = content["name"]
    if name[:1] == "/" or "\0" in name or ".." in name.split("/"):
        raise InvalidInput(f"photo {name!r:.99} leads out of the folder")
    if not 1 <= (content.get("quality") or 1) <= 100:
        raise InvalidInput(f"damaged: photo {name!r:.99} has quality {content['quality']}")
    return kind(**content)


def read_photo_list(
    storage: Storage, manifest: Manifest, check_hash: bool = True
) -> Iterator[PhotoRecord | RefusedRecord]:
    """Yields all photos of a split, used and refused; none for foreign shards.

    Raises:
        ShardError: the list is missing, damaged or not the one of the manifest. The hash is compared after the last
            line.
    """
    if manifest.photos is None:
        return
    where = f"{storage.location}/{manifest.photos.name}"
    num_samples = {shard.name: shard.num_samples for shard in manifest.shards}
    digest = hashlib.sha256()
    try:
        for line in _lines(storage, manifest.photos.name, manifest.photos.bytes):
            digest.update(line)
            entry = decode_line(line)
            if entry.shard not in num_samples and not (isinstance(entry, RefusedRecord) and entry.shard == ""):
                raise InvalidInput(f"damaged: photo {entry.name!r:.99} is in the unknown shard {entry.shard!r:.99}")
            if isinstance(entry, PhotoRecord) and entry.first_sample + entry.num_samples > num_samples[entry.shard]:
                raise InvalidInput(f"damaged: photo {entry.name!r:.99} has {entry.num_samples} samples from "
                                   f"{entry.first_sample} on, more than its shard")
            yield entry
    except OSError as error:
        raise ShardError(f"{where}: cannot be read: {error}; copy it again") from error
    except InvalidInput as error:
        raise ShardError(f"{where}: {error}") from error
    if check_hash and digest.hexdigest() != manifest.photos.sha256:
        raise ShardError(f"{where}: its hash is not the one in the manifest; copy both again")


def read_photo_records(storage: Storage, manifest: Manifest) -> Iterator[PhotoRecord]:
    """Yields the photos whose tiles are in the shards."""
    return (entry for entry in read_photo_list(storage, manifest) if isinstance(entry, PhotoRecord))


def read_refused(storage: Storage, manifest: Manifest) -> Iterator[RefusedRecord]:
    """Yields the refused photos; reads nothing if the manifest counts none."""
    if manifest.photos and manifest.photos.num_refused:
        yield from (entry for entry in read_photo_list(storage, manifest) if isinstance(entry, RefusedRecord))


def read_jpeg_qualities(storage: Storage, manifest: Manifest) -> np.ndarray | None:
    """The JPEG quality that degraded each sample, uint8 (num_samples,), 0 where it is not known; None if all are.

    Raises:
        ShardError: as `read_photo_list`.
    """
    if manifest.is_clean_only:
        return None
    starts = dict(zip((shard.name for shard in manifest.shards), manifest.first_samples.tolist()))
    qualities = np.zeros(manifest.num_samples, np.uint8)
    for photo in read_photo_records(storage, manifest):
        start = starts[photo.shard] + photo.first_sample
        qualities[start : start + photo.num_samples] = photo.quality or 0
    return qualities if qualities.any() else None


def _lines(storage: Storage, name: str, num_bytes: int) -> Iterator[bytes]:
    rest = b""
    for start in range(0, num_bytes, CHUNK_BYTES):
        rest += bytes(storage.read_range(name, start, min(num_bytes, start + CHUNK_BYTES), num_bytes))
        *lines, rest = rest.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidInput(f"has a line of more than {MAX_LINE_BYTES} bytes")
        yield from (line + b"\n" for line in lines)
    if rest:
        raise InvalidInput("ends within a line")
