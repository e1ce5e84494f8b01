"""A map-style dataset: random access to the samples of a split, in a folder or an object store.

npy tiles in a folder lie at multiples of the stride, so one system call reads both tiles of a pair into the batch.
Everything else (object stores, png, foreign shards) is read in ranges of neighbouring samples, which the index gives,
and decoded. Every sample is checked against its hash. If shards hold clean tiles only, these are returned as the
degraded ones too.
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

from srcnn.data.index import READ_ATTEMPTS, IndexReader, entry_problem, hash_bytes
from srcnn.data.manifest import (
    BLOCK_BYTES,
    MEMBERS,
    REPAIR_HINT,
    ShardError,
    check_file_size,
    decode_picture,
    decode_tile,
    encode_npy_header,
    read_manifest,
)
from srcnn.data.photo_list import read_jpeg_qualities
from srcnn.photos.jpeg_quality import conditions_of_qualities
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import OpenFile
from srcnn.runtime.object_store import AccessConfig, ReadFailed
from srcnn.runtime.storage import Folder, open_storage

NUM_CHECKED_SHARDS = 64  # whose first sample is checked when a dataset in a folder is opened
Allocate = Callable[[tuple[int, ...]], np.ndarray]  # makes a uint8 array of a shape
logger = logging.getLogger(__name__)


class SparseCache:
    """A cache of remote bytes on a local disk, shared without locks by all processes of the machine.

    One sparse file holds the first `num_bytes` of all shards, each byte at its own offset. Processes may overwrite each
    other, as the bytes at an offset are always the same. Nothing is evicted: when everything is read once per epoch, no
    eviction policy has more hits. The caller checks hashes, so holes and damaged ranges count as misses.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path.expanduser()
        self.num_bytes = num_bytes
        self._file: OpenFile | None = None
        self._is_disabled = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)  # a link could lead anywhere
        except OSError as error:
            self._disable(error)

    def read(self, start: int, stop: int) -> bytes | None:
        """The bytes there, unchecked; None beyond the limit or the end of the file."""
        file = self._file
        if file is None or stop > self.num_bytes:
            return None
        try:
            content = file.pread(stop - start, start)
        except OSError as error:
            self._disable(error)
            return None
        return content if len(content) == stop - start else None

    def write(self, start: int, content: Any) -> None:
        """Stores the bytes if they lie below the limit. A full or failing disk disables the cache with a warning."""
        file = self._file
        if file is None or start + len(content) > self.num_bytes:
            return
        try:
            written = os.pwrite(file.fd, content, start)
            if written < len(content):  # trying the rest raises the reason
                os.pwrite(file.fd, memoryview(content)[written:], start + written)
        except OSError as error:
            self._disable(error)

    def _disable(self, error: OSError) -> None:
        if not self._is_disabled:  # one warning, though several threads may fail at the same time
            logger.warning("%s: cannot be used as a cache, reading without it: %s", self.path, error)
        self._file, self._is_disabled = None, True


class PairBuffer:
    """Arrays for the pairs of a batch, reused from batch to batch.

    Attributes:
        clean, degraded: uint8 (N, H, W) or (N, H, W, 3); the same array if `num_members` is 1.
        tiles: for each pair, writable memoryviews of its one or two tiles. Copying to a memoryview keeps the GIL; for
            threads that do little else, acquiring it again would cost more.
    """

    def __init__(
        self, num_pairs: int, tile_shape: tuple[int, ...], allocate: Allocate | None = None, num_members: int = 2
    ) -> None:
        shape = (num_pairs, *tile_shape)
        members = [allocate(shape) if allocate else np.empty(shape, np.uint8) for _ in range(num_members)]
        self.clean, self.degraded = members[0], members[-1]
        self.tiles = [tuple(memoryview(tile.reshape(-1)) for tile in pair) for pair in zip(*members, strict=True)]


class PairDataset(Protocol):
    """A map-style dataset of pairs: `ShardDataset`, or a copy of its samples in memory."""

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
    """The samples of a split in a folder or at a URL; safe to use from several threads.

    Also a map-style dataset for a PyTorch `DataLoader`: sample i is (clean, degraded), uint8 (H, W) or (H, W, 3). A
    pickled dataset is opened anew where it is unpickled.

    Attributes:
        location: the folder or URL, without user, password and query.
        is_local: whether it is a folder.
        num_samples: at most `max_samples`, if that is not 0.
        num_members: 2, or 1 if samples are clean tiles only.
        tile_shape: (H, W) or (H, W, 3).
        needs_crops: whether samples are pictures of several sizes, which are cropped to tiles.

    Raises:
        FileNotFoundError: there is no manifest.
        ShardError: the shards do not match it. The constructor checks sizes and some samples, `read` every sample.
        ReadFailed: the shards cannot be read.
    """

    in_memory = False

    def __init__(self, location: str | Path, max_samples: int = 0, access: AccessConfig | None = None) -> None:
        access = access or AccessConfig()
        self._arguments = location, max_samples, access
        self.storage = open_storage(location, access)
        self.location = self.storage.location
        self.manifest = read_manifest(self.storage)
        if isinstance(self.storage, Folder):
            for shard in self.manifest.shards:
                check_file_size(self.storage.path / shard.name, shard)
        self.tile_shape, self.num_members = self.manifest.tile_shape, len(self.manifest.members)
        self.num_samples = min(max_samples or self.manifest.num_samples, self.manifest.num_samples)
        if not self.num_samples:
            raise ShardError(f"{self.location}: has no samples; make shards of more photos, or give photos with --val")
        self._starts = self.manifest.first_samples
        self._start_list: list[int] = self._starts.tolist()  # bisect is faster on a list
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
        if self.is_local:  # shards that are swapped or of another manifest are found before a training begins
            numbers = np.linspace(0, len(self.manifest.shards) - 1, NUM_CHECKED_SHARDS).astype(int)
            for number in np.unique(numbers).tolist():
                if self.manifest.shards[number].num_samples:
                    self.fetch(self._start_list[number], self._start_list[number] + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments, {"_qualities": self._qualities}

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Reads several samples at once, as a `DataLoader` asks for the samples of a batch."""
        numbers = np.array([range(self.num_samples)[sample] for sample in samples], np.int64)  # or raises IndexError
        return list(zip(*self.read(numbers), strict=True))

    @property
    def index(self) -> IndexReader:
        """The index of the split, opened when it is first needed."""
        with self._index_lock:
            if self._index is None:
                self._index = IndexReader(self.storage, self.manifest)
            return self._index

    def entry(self, sample: int) -> np.ndarray:
        """The index entry of a sample, a scalar of INDEX_DTYPE."""
        number = bisect_right(self._start_list, sample) - 1
        return self.index.shard_entries(number)[sample - self._start_list[number]]

    def read_qualities(self) -> None:
        """Reads the JPEG quality of each sample, for `conditions`. Raises ShardError if the photo list is damaged."""
        self._qualities = read_jpeg_qualities(self.storage, self.manifest)

    def conditions(self, samples: np.ndarray) -> np.ndarray | None:
        """The second input of a conditioned network for samples (N,): the quantization tables of their JPEG quality.

        Returns:
            float32 (N, CONDITION_SIZE), see `jpeg_quality.condition_of`; None if no quality is known, or before
            `read_qualities`.
        """
        if self._qualities is None:
            return None
        degradation = self.manifest.config.get("degradation")
        subsampling = degradation.get("jpeg_subsampling") if isinstance(degradation, dict) else None
        return conditions_of_qualities(subsampling != "4:4:4", len(self.tile_shape) == 2)[self._qualities[samples]]

    def read(
        self, samples: np.ndarray, buffer: PairBuffer | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the samples with these numbers (N,).

        Args:
            buffer: filled and returned; None allocates a new one.
            crops: (N, 2) in [0, 1), positions (row, column) of the crops from larger pictures; None is the centre.

        Returns:
            (clean, degraded), uint8 (N, *tile_shape); the clean tiles twice if there are no others.
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
        """Reads npy tiles from a folder directly into the buffer; headers and padding are only hashed."""
        assert isinstance(self.storage, Folder) and self.manifest.stride is not None
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        offsets = (samples - self._starts[numbers]) * self.manifest.stride
        names = [self.manifest.shards[number].name for number in numbers.tolist()]
        hashes = self.index.hashes(samples, numbers)

        def check(number: int, parts: list[Any]) -> None:
            if hash_bytes(*parts) != hashes[number]:
                raise self._hash_error(names[number], int(samples[number]))

        try:
            records = list(zip(names, offsets.tolist(), buffer.tiles))
            self.storage.read_records(records, self._tile_spans, self.manifest.stride, check)
        except ReadFailed as error:
            raise ShardError(f"{error}; {REPAIR_HINT}") from error

    def _hash_error(self, name: str, sample: int) -> ShardError:
        start, num_bytes = self.entry(sample).item()[:2]
        where = f"{self.location}/{name}: sample {sample} of the split (bytes {start} to {start + num_bytes})"
        return ShardError(f"{where} does not match its hash: the shard is damaged or another one; {REPAIR_HINT}")

    def fetch(self, first: int, stop: int) -> list[memoryview]:
        """Reads the bytes of samples `first` to `stop` - 1, headers included, and checks their hashes.

        Raises:
            ReadFailed: they cannot be read.
            ShardError: they do not match their hashes, also when read again.
        """
        contents: list[memoryview] = []
        while first < stop:
            number = bisect_right(self._start_list, first) - 1
            last = min(stop, self._start_list[number + 1])
            contents += self._fetch_within(number, first, last)
            first = last
        return contents

    def _fetch_within(self, number: int, first: int, stop: int) -> list[memoryview]:
        shard_start, shard = self._start_list[number], self.manifest.shards[number]
        found = self.index.shard_entries(number)[first - shard_start : stop - shard_start]
        if problem := entry_problem(found, self.manifest, shard):
            which = f"one of the samples {first} to {stop - 1}, in {shard.name}, {problem}"
            raise ShardError(f"{self.index.path}: {which}; {REPAIR_HINT}")
        entries = found.tolist()
        start, end = entries[0][0], entries[-1][0] + entries[-1][1]
        cache_start = int(self._shard_starts[number]) + start
        content: Any = self._cache.read(cache_start, cache_start + end - start) if self._cache else None
        if content is not None:
            parts, num_good = _split(content, entries)
            if num_good == len(parts):
                return parts
        for _ in range(READ_ATTEMPTS):
            content = self.storage.read_range(shard.name, start, end, shard.bytes)
            parts, num_good = _split(content, entries)
            if num_good == len(parts):
                if self._cache:
                    self._cache.write(cache_start, content)
                return parts
        raise self._hash_error(shard.name, first + num_good)

    def unpack(
        self, sample: int, content: memoryview, buffer: PairBuffer, index: int, crop: np.ndarray | None = None
    ) -> None:
        """Decodes a sample's bytes from `fetch` into pair `index` of the buffer."""
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
                pictures = self._crop([decode_picture(member, channels) for member in members], crop)
            else:
                pictures = [decode_tile(member, self.manifest.encoding, self.tile_shape) for member in members]
            buffer.clean[index], buffer.degraded[index] = pictures[0], pictures[-1]
        except (ValueError, OSError) as error:
            raise ShardError(f"{self.location}: sample {sample} of the split: {error}") from error

    def _crop(self, pictures: list[np.ndarray], crop: np.ndarray | None) -> list[np.ndarray]:
        """The same tile of both pictures."""
        height, width = self.tile_shape[:2]
        shapes = [picture.shape[:2] for picture in pictures]
        margins = shapes[0][0] - height, shapes[0][1] - width
        if shapes[0] != shapes[1] or min(margins) < 0:
            raise UserError(f"the pictures have shapes {shapes[0]} and {shapes[1]}; expected equal ones, at least "
                             f"{self.tile_shape[:2]}")
        position = (0.5, 0.5) if crop is None else crop
        top, left = (int(share * (margin + 1)) for share, margin in zip(position, margins, strict=True))
        return [picture[top : top + height, left : left + width] for picture in pictures]

    def close(self) -> None:
        """Closes the files and stops the retries of failing reads. The dataset can be read again afterwards."""
        self.storage.close()


def _split(content: Any, entries: list[tuple[int, ...]]) -> tuple[list[memoryview], int]:
    """Splits a range of a shard into its samples; also returns how many come before the first with a wrong hash."""
    view, begin = memoryview(content), entries[0][0]
    parts = [view[entry[0] - begin : entry[0] - begin + entry[1]] for entry in entries]
    damaged = (number for number, part in enumerate(parts) if hash_bytes(part) != entries[number][-1])
    return parts, next(damaged, len(parts))


def webdataset_pipeline(
    urls: str | list[str], members: Sequence[str] = MEMBERS["npy"], channels: int = 1, **options: Any
) -> Any:
    """Pairs of any shards, read in sequence by `webdataset.WebDataset` without index, manifest or verification.

    Args:
        urls: as for webdataset, such as `data/train/{000000..000009}.tar`. webdataset runs `pipe:` URLs in a shell, so
            do not pass URLs from untrusted sources.
        members: file extensions of the clean and the degraded picture (npy, PNG, JPEG or WebP of 8 bits).
        channels: 1 or 3; pictures are converted to it.
        options: of `WebDataset`, such as `shardshuffle` (default False) and `nodesplitter`.

    Returns:
        A `WebDataset` of (clean, degraded), uint8 (H, W) or (H, W, 3), to continue as `.shuffle(1000).batched(64)`.

    Raises (during iteration):
        ValueError: a picture of another kind. KeyError: a sample that lacks one of the members.
    """
    import webdataset  # imports torch, which `ShardDataset` does not need

    def decode(sample: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return tuple(decode_picture(sample[member], channels) for member in members)

    return webdataset.WebDataset(urls, **({"shardshuffle": False} | options)).map(decode)
