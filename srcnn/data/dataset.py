"""Random access to the pairs of one split, wherever its shards lie.

Shards of npy tiles in a folder are read by arithmetic: one call of the system puts both tiles of a pair straight into
the batch. Everything else (object stores, png, foreign shards) is read as ranges of neighbouring samples
with the help of the index, checked against its hashes, and unpacked. Where shards hold clean tiles alone, these stand
for the degraded ones too.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from srcnn.data.index import READ_ATTEMPTS, IndexReader, hash_of, row_problem
from srcnn.data.manifest import (
    BLOCK_BYTES,
    MANIFEST,
    MEMBERS,
    Manifest,
    ShardError,
    check_shard_size,
    decode_picture,
    decode_tile,
    encode_npy_header,
)
from srcnn.data.photo_list import qualities_of_samples
from srcnn.photos.jpeg_quality import conditions_of_qualities
from srcnn.runtime.files import OpenFile
from srcnn.runtime.object_store import AccessConfig, ObjectStore, ReadFailed
from srcnn.runtime.storage import Folder, open_storage
from srcnn.runtime.untrusted import MAX_MANIFEST_BYTES

logger = logging.getLogger(__name__)


class SparseCache:
    """A cache on a local disk for ranges of remote files, shared by the processes of a machine without locks.

    It keeps what was read of a long sequence of bytes at the same offset of one sparse file, up to a limit. The content
    at an offset is always the same, so processes may write it over each other; what lies beyond the limit is never kept
    (over whole passes through everything, no way of evicting keeps more); and whoever reads checks what comes against
    hashes, so that a hole, a half-written or a damaged range counts as absent.

    Attributes:
        num_bytes: the limit.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path.expanduser()
        self.num_bytes = num_bytes
        self._file: OpenFile | None = None
        self._lock, self._given_up = threading.Lock(), False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)  # nothing is written elsewhere
        except OSError as error:
            self._give_up(error)

    def read(self, start: int, stop: int) -> bytes | None:
        """What lies there, unchecked; None beyond the limit or the end of the file."""
        file = self._file
        if file is None or stop > self.num_bytes:
            return None
        try:
            content = file.pread(stop - start, start)
        except OSError as error:
            self._give_up(error)
            return None
        return content if len(content) == stop - start else None

    def write(self, start: int, content: Any) -> None:
        """Keeps it if it lies below the limit. A full or failing disk ends the keeping with a warning."""
        file = self._file
        if file is None or start + len(content) > self.num_bytes:
            return
        try:
            written = os.pwrite(file.fd, content, start)
            if written < len(content):  # the next attempt says why
                os.pwrite(file.fd, memoryview(content)[written:], start + written)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            self._file, first = None, not self._given_up
            self._given_up = True
        if first:
            logger.warning("%s: not used as a cache: %s", self.path, error)


NUM_PROBES = 64
REPAIR_HINT = "copy it again or make the shards anew"


Allocate = Callable[[tuple[int, ...]], np.ndarray]  # makes uint8 arrays of a shape


class PairBuffer:
    """Arrays for the pairs of a batch, to be filled again and again.

    Attributes:
        clean, degraded: uint8 (N, H, W) or (N, H, W, 3); one and the same where `num_members` is 1.
        tiles: for each pair, the bytes of its two tiles (or of the one), writable. These are memoryviews, which are
            copied to without giving up Python's lock: for threads that do little else it costs more to get it back.
    """

    def __init__(
        self, num_pairs: int, tile_shape: tuple[int, ...], allocate: Allocate | None = None, num_members: int = 2
    ) -> None:
        shape = (num_pairs, *tile_shape)
        members = [allocate(shape) if allocate else np.empty(shape, np.uint8) for _ in range(num_members)]
        self.clean, self.degraded = members[0], members[-1]
        self.tiles = [tuple(memoryview(tile.reshape(-1)) for tile in pair) for pair in zip(*members, strict=True)]


def read_manifest(storage: Folder | ObjectStore) -> Manifest:
    """The manifest of a split; whether the shards are there is not looked at. Raises as `Manifest.read`."""
    if isinstance(storage, Folder):
        return Manifest.read(storage.path, check_shards=False)
    try:
        return Manifest.parse(storage.read(MANIFEST, MAX_MANIFEST_BYTES), f"{storage.location}/{MANIFEST}")
    except FileNotFoundError as error:
        hint = "copy the whole folder that was made there, manifest too"
        raise FileNotFoundError(f"{error}: no shards here; {hint}") from error


class PairDataset(Protocol):
    """What gives pairs by their numbers: `ShardDataset`, or a copy of all its pairs in memory."""

    num_samples: int
    num_members: int
    tile_shape: tuple[int, ...]
    is_local: bool
    in_memory: bool
    needs_crops: bool

    def read(
        self, samples: np.ndarray, buffer: PairBuffer | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ShardDataset.read`."""

    def conditions(self, samples: np.ndarray) -> np.ndarray | None:
        """See `ShardDataset.conditions`."""


class ShardDataset:
    """The pairs of one split's folder or URL by their numbers; safe to use from several threads.

    Attributes:
        location: the folder or URL, without user, password and query; `is_local` tells which.
        num_samples: pairs, at most `max_samples` where that is given.
        num_members: 2, or 1 where the samples are clean tiles alone.
        tile_shape: (H, W) or (H, W, 3).

    Raises:
        FileNotFoundError: no manifest there.
        ShardError: shards that do not match it; from the constructor as far as that is cheap to see, else from `read`.
        ReadFailed: shards that cannot be read.
    """

    in_memory = False

    def __init__(self, location: str | Path, max_samples: int = 0, access: AccessConfig | None = None) -> None:
        access = access or AccessConfig()
        self.storage = open_storage(location, access)
        self.location = self.storage.location
        self.manifest = read_manifest(self.storage)
        if isinstance(self.storage, Folder):
            for shard in self.manifest.shards:
                check_shard_size(self.storage.path / shard.name, shard)
        self.tile_shape, self.num_members = self.manifest.tile_shape, len(self.manifest.members)
        self.num_samples = self.manifest.num_samples
        if max_samples:
            self.num_samples = min(max_samples, self.num_samples)
        if not self.num_samples:
            raise ShardError(f"{self.location}: holds no pairs; make shards of more photos, or give some with --val")
        self._starts = np.cumsum([0, *(shard.num_samples for shard in self.manifest.shards)])
        self._start_list: list[int] = self._starts.tolist()  # quicker for one number
        self._shard_starts = np.cumsum([0, *(shard.bytes for shard in self.manifest.shards)])
        self.is_local = isinstance(self.storage, Folder)
        self.needs_crops = self.manifest.encoding == "any"
        self._qualities: np.ndarray | None = None
        self._index: IndexReader | None = None
        self._index_lock = threading.Lock()
        self._cache: SparseCache | None = None
        if access.cache and not self.is_local:
            path = Path(access.cache, f"{self.manifest.hash()[:16]}.shards")
            self._cache = SparseCache(path, round(access.cache_gigabytes * 1e9))
        if self.manifest.stride is not None:
            start = BLOCK_BYTES + len(encode_npy_header(self.tile_shape))
            tile_bytes = int(np.prod(self.tile_shape))
            starts = range(start, self.manifest.stride, self.manifest.stride // self.num_members)
            self._tile_spans = tuple(slice(first, first + tile_bytes) for first in starts)
        if self.is_local:
            self._probe()

    def _probe(self) -> None:
        """Checks the first pair of some shards, so that swapped shards or those of another manifest are found out."""
        for number in np.unique(np.linspace(0, len(self.manifest.shards) - 1, NUM_PROBES).astype(int)).tolist():
            if self.manifest.shards[number].num_samples:
                self.fetch(self._start_list[number], self._start_list[number] + 1)

    @property
    def index(self) -> IndexReader:
        """The split's index, opened when first needed."""
        with self._index_lock:
            if self._index is None:
                self._index = IndexReader(self.storage, self.manifest)
            return self._index

    def entry(self, sample: int) -> np.ndarray:
        """The sample's entry of the index, a structured scalar."""
        number = bisect_right(self._start_list, sample) - 1
        return self.index.of_shard(number)[sample - self._start_list[number]]

    def read_qualities(self) -> None:
        """Reads how the samples' photos were saved, for `conditions`. Raises ShardError where the list is damaged."""
        self._qualities = qualities_of_samples(self.storage, self.manifest)

    def conditions(self, samples: np.ndarray) -> np.ndarray | None:
        """The second input of a conditioned network for samples (N,): float32 (N, CONDITION_SIZE), the tables of
        their JPEG quality (`jpeg_quality.condition_of`); None where that is not known, or before `read_qualities`.
        """
        if self._qualities is None:
            return None
        degradation = self.manifest.config.get("degradation")
        subsampling = degradation.get("jpeg_subsampling") if isinstance(degradation, dict) else None
        return conditions_of_qualities(subsampling != "4:4:4", len(self.tile_shape) == 2)[self._qualities[samples]]

    def read(
        self, samples: np.ndarray, buffer: PairBuffer | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers (N,) -> (clean, degraded), uint8 (N, *tile_shape), in that order; of clean tiles alone these
        twice.

        Args:
            buffer: what to fill and return; a new one where None.
            crops: (N, 2) in [0, 1), where to cut tiles out of larger pictures (rows, columns); None: the middle.
        """
        buffer = buffer or PairBuffer(len(samples), self.tile_shape, num_members=self.num_members)
        if self.is_local and self.manifest.stride is not None:
            self._read_tiles(samples, buffer)
        elif len(samples):
            breaks = np.flatnonzero(np.diff(samples) != 1) + 1
            for neighbours in np.split(np.arange(len(samples)), breaks):
                first = int(samples[neighbours[0]])
                contents = self.fetch(first, first + len(neighbours))
                for index, content in zip(neighbours.tolist(), contents, strict=True):
                    self.unpack(int(samples[index]), content, buffer, index, None if crops is None else crops[index])
        return buffer.clean, buffer.degraded

    def _read_tiles(self, samples: np.ndarray, buffer: PairBuffer) -> None:
        """Both tiles of each pair straight from the shard into the buffer; headers and padding are hashed only."""
        assert isinstance(self.storage, Folder) and self.manifest.stride is not None
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        offsets = (samples - self._starts[numbers]) * self.manifest.stride
        names = [self.manifest.shards[number].name for number in numbers.tolist()]
        hashes = self.index.hashes(samples, numbers)

        def check(number: int, parts: list[Any]) -> None:
            if hash_of(*parts) != hashes[number]:
                raise self._changed(names[number], int(samples[number]))

        try:
            records = list(zip(names, offsets.tolist(), buffer.tiles))
            self.storage.read_records(records, self._tile_spans, self.manifest.stride, check)
        except ReadFailed as error:
            raise ShardError(f"{error}; {REPAIR_HINT}") from error

    def _changed(self, name: str, sample: int) -> ShardError:
        start, num_bytes = self.entry(sample).item()[:2]
        pair = f"pair {sample} of the split (bytes {start} to {start + num_bytes})"
        problem = "is not as when it was indexed: damaged, or another shard under its name"
        return ShardError(f"{self.location}/{name}: {pair} {problem}; {REPAIR_HINT}")

    def fetch(self, first: int, stop: int) -> list[memoryview]:
        """The bytes of neighbouring samples, each checked against its hash.

        Raises:
            ReadFailed: they cannot be read.
            ShardError: they are not what the index says, also when read again.
        """
        contents: list[memoryview] = []
        while first < stop:
            number = bisect_right(self._start_list, first) - 1
            last = min(stop, self._start_list[number + 1])
            contents += self._fetch_within(number, first, last)
            first = last
        return contents

    def _fetch_within(self, number: int, first: int, stop: int) -> list[memoryview]:
        before, shard = self._start_list[number], self.manifest.shards[number]
        found = self.index.of_shard(number)[first - before : stop - before]
        if problem := row_problem(found, self.manifest, shard):
            which = f"one of the pairs {first} to {stop - 1} of {shard.name} {problem}"
            raise ShardError(f"{self.index.where}: {which}; {REPAIR_HINT}")
        entries = found.tolist()
        start, end = entries[0][0], entries[-1][0] + entries[-1][1]
        in_cache = int(self._shard_starts[number]) + start
        content: Any = self._cache.read(in_cache, in_cache + end - start) if self._cache else None
        if content is not None:
            parts, num_good = _split(content, entries)
            if num_good == len(parts):
                return parts
        for _ in range(READ_ATTEMPTS):
            content = self.storage.read_range(shard.name, start, end, shard.bytes)
            parts, num_good = _split(content, entries)
            if num_good == len(parts):
                if self._cache:
                    self._cache.write(in_cache, content)
                return parts
        raise self._changed(shard.name, first + num_good)

    def unpack(
        self, sample: int, content: memoryview, buffer: PairBuffer, index: int, crop: np.ndarray | None = None
    ) -> None:
        """A sample's bytes, as they came from `fetch`, into a buffer as its pair `index`."""
        if self.manifest.stride is not None:
            for view, span in zip(buffer.tiles[index], self._tile_spans):
                view[:] = content[span]
            return
        _, _, clean, clean_bytes, degraded, degraded_bytes, _ = self.entry(sample).item()
        spans = [(clean, clean_bytes), (degraded, degraded_bytes)][: self.num_members]
        members = [content[start : start + num_bytes] for start, num_bytes in spans]
        try:
            if self.manifest.encoding == "any":
                channels = 3 if len(self.tile_shape) == 3 else 1
                pictures = self._cut([decode_picture(member, channels) for member in members], crop)
            else:
                pictures = [decode_tile(member, self.manifest.encoding, self.tile_shape) for member in members]
            buffer.clean[index], buffer.degraded[index] = pictures[0], pictures[-1]
        except (ValueError, OSError) as error:
            raise ShardError(f"{self.location}: pair {sample} of the split: {error}") from error

    def _cut(self, pictures: list[np.ndarray], crop: np.ndarray | None) -> list[np.ndarray]:
        """The same tile of both pictures."""
        height, width = self.tile_shape[:2]
        shapes = [picture.shape[:2] for picture in pictures]
        spare = shapes[0][0] - height, shapes[0][1] - width
        if shapes[0] != shapes[1] or min(spare) < 0:
            found = f"pictures of {shapes[0]} and {shapes[1]} pixels"
            raise ValueError(f"{found}; expected equal ones, {self.tile_shape[:2]} at least")
        share = (0.5, 0.5) if crop is None else crop
        top, left = (int(part * (more + 1)) for part, more in zip(share, spare, strict=True))
        return [picture[top : top + height, left : left + width] for picture in pictures]

    def close(self) -> None:
        """Closes the files, and lets reads that are failing fail at once; reading goes on as before."""
        self.storage.close()


def _split(content: Any, entries: list[tuple[int, ...]]) -> tuple[list[memoryview], int]:
    """The samples in a range of a shard, and how many of them come before the first that is not as the index says."""
    view, begin = memoryview(content), entries[0][0]
    parts = [view[entry[0] - begin : entry[0] - begin + entry[1]] for entry in entries]
    wrong = (number for number, part in enumerate(parts) if hash_of(part) != entries[number][-1])
    return parts, next(wrong, len(parts))


def webdataset_pipeline(
    urls: str | list[str], members: Sequence[str] = MEMBERS["npy"], channels: int = 1, **options: Any
) -> Any:
    """Pairs of any shards, read in sequence by `webdataset.WebDataset`: no index, no manifest, nothing verified.

    Args:
        urls: as webdataset takes them, such as `data/train/{000000..000009}.tar`. It runs what follows `pipe:` in a
            shell: pass it no addresses of strangers.
        members: names after the key, of the clean and of the degraded picture (npy, PNG, JPEG or WebP of 8 bits).
        channels: 1 or 3; grey and colour become the other.
        options: of `WebDataset`, such as `shardshuffle` (False unless given) and `nodesplitter`.

    Returns:
        A `WebDataset` of (clean, degraded), uint8 (H, W) or (H, W, 3), to go on with as `.shuffle(1000).batched(64)`.

    Raises (while it is read):
        ValueError: a picture of another kind. KeyError: a sample without one of the members.
    """
    import webdataset  # loads torch, which reading by number does without

    def decode(sample: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return tuple(decode_picture(sample[member], channels) for member in members)

    return webdataset.WebDataset(urls, **({"shardshuffle": False} | options)).map(decode)
