"""Pure planning: photos -> (split, shard, photo). No reading, no writing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from srcnn.data.manifest import MEMBERS, SPLITS, Refused, TileEncoding
from srcnn.photos.degradation import Degradation
from srcnn.photos.reading import MAX_MEGAPIXELS, Resize
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS, grid, starts_to_cover
from srcnn.runtime.untrusted import MAX_TILE_SIDE

# Keys that say where and how fast, not what: shards made with other values of these are the same shards.
WHERE_AND_HOW = (
    "photos",
    "pairs",
    "val",
    "out",
    "num_workers",
    "executor",
    "allow_refused",
    "num_sheet_pairs",
    "max_megapixels",
)
# Keys that came later, with the value that older shards have; at this value they are left out of what is noted.
LATER_KEYS = {"decode": "exact", "contents": "pairs"}
MAX_JPEG_SIDE = 65500  # pixels; JPEG_MAX_DIMENSION of libjpeg


@dataclass(frozen=True)
class ShardsConfig:
    """Settings of shard making.

    Args:
        photos: folder of clean photos, or its s3, gs or az address; read with everything below it.
        pairs: instead of photos: folder of pictures twice as wide as high, left clean, right degraded.
        val: folder of the validation photos (or pairs); empty: split `photos` by the hash of their content.
        out: folder (or address) the shards go to, in out/train and out/val.
        folders: folder below `photos` -> its own resize rule; when given, only these folders are read.
        resize: "1024x1024" (width x height), "long:1024" (long side), "max:1024" (the same, but no photo is enlarged),
            "x0.5" (factor) or "none".
        decode: "exact", or "reduced": a JPEG that is large enough is decoded at a half, a quarter or an eighth of its
            size before it is resized; twice as fast, its clean pictures some 45 dB from the exact ones.
        contents: what training samples are: "pairs" of tiles, or "clean" tiles, to be degraded while training
            (docs/degradations.md), which overlap so that no edge is left out. Validation samples are pairs always.
        degradation: how the clean photo is degraded.
        color: "luma" stores Pillow's L, "rgb" all three channels.
        tile_pixels: side of a tile; a multiple of 8, so that tiles lie on the JPEG block grid.
        val_fraction: share of the photos that go to validation when `val` is empty.
        encoding: "npy" (fast to read) or "png" (smaller, for archives and slow links).
        samples_per_shard: pairs after which a new shard begins; a photo lies in one shard.
        max_megapixels: larger photos are refused.
        num_workers: processes; 0 takes one for each core.
        executor: instead of processes of this machine: the workers of a Dask scheduler, tcp://host:8786.
        allow_refused: exit with status 0 even if some photos were refused.
        num_sheet_pairs: random pairs drawn on the contact sheet of each split.
    """

    photos: str = ""
    pairs: str = ""
    val: str = ""
    out: str = "data/shards"
    folders: dict[str, str] = field(default_factory=dict)
    resize: str = "1024x1024"
    decode: Literal["exact", "reduced"] = "exact"
    contents: Literal["pairs", "clean"] = "pairs"
    degradation: Degradation = field(default_factory=Degradation)
    color: Literal["luma", "rgb"] = "luma"
    tile_pixels: int = 128
    val_fraction: float = 0.2
    encoding: TileEncoding = "npy"
    samples_per_shard: int = 1024
    max_megapixels: float = MAX_MEGAPIXELS
    num_workers: int = 0
    executor: str = ""
    allow_refused: bool = False
    num_sheet_pairs: int = 24

    def __post_init__(self) -> None:
        if bool(self.photos) == bool(self.pairs):
            raise ValueError("give either photos (folder of clean photos) or pairs (folder of pair pictures)")
        if self.pairs and self.contents == "clean":
            raise ValueError("contents clean: is for photos; pairs are degraded already")
        if not JPEG_BLOCK_PIXELS <= self.tile_pixels <= MAX_TILE_SIDE or self.tile_pixels % JPEG_BLOCK_PIXELS:
            raise ValueError(f"tile_pixels {self.tile_pixels}: expected a multiple of {JPEG_BLOCK_PIXELS} up to "
                             f"{MAX_TILE_SIDE}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction {self.val_fraction}: expected 0 <= fraction < 1")
        if self.samples_per_shard < 1 or self.num_workers < 0:
            raise ValueError("samples_per_shard starts at 1 and num_workers at 0")
        if self.num_sheet_pairs < 0 or self.max_megapixels <= 0:
            raise ValueError("num_sheet_pairs starts at 0, max_megapixels above 0")
        for rule in (self.resize, *self.folders.values()):
            Resize.parse(rule)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        side = (self.tile_pixels, self.tile_pixels)
        return side if self.color == "luma" else (*side, 3)

    def members(self, split: str) -> tuple[str, ...]:
        """Names after the key of the members of a split's samples."""
        both = MEMBERS[self.encoding]
        return both[:1] if self.is_clean_only(split) else both

    def is_clean_only(self, split: str) -> bool:
        """Whether a split's samples are clean tiles alone."""
        return self.contents == "clean" and split == "train"

    def identity(self) -> dict[str, Any]:
        """The keys that decide what the pairs are; shards are kept and completed only where these are equal."""
        values = dataclasses.asdict(self)
        for key in [*WHERE_AND_HOW, *(key for key, before in LATER_KEYS.items() if values[key] == before)]:
            del values[key]
        kind, split = "pairs" if self.pairs else "photos", "folders" if self.val else "hash"
        return values | {"kind": kind, "split": split}

    def resize_rule(self, name: str) -> Resize:
        """The rule for the photo of this relative name: of the longest of `folders` around it, or `resize`."""
        matches = [folder for folder in self.folders if PurePosixPath(name).is_relative_to(folder)]
        return Resize.parse(self.folders[max(matches, key=len)] if matches else self.resize)

    def num_samples(self, source: Source) -> int:
        """How many samples of its split a photo will give."""
        if self.pairs:
            return int((source.width, source.height) == (2 * self.tile_pixels, self.tile_pixels))
        sides = self.clean_size(source)
        if self.is_clean_only(source.split):
            return math.prod(len(starts_to_cover(side, self.tile_pixels)) for side in sides)
        return math.prod(grid(*sides[::-1], self.tile_pixels))

    def clean_size(self, source: Source) -> tuple[int, int]:
        """(width, height) after resizing and cutting to a multiple of the scale."""
        return _clean_size(self.resize_rule(source.name), self.degradation.scale, source.width, source.height)


@lru_cache(maxsize=1 << 16)  # asked for several times for each photo, of which many have one size
def _clean_size(rule: Resize, scale: int, width: int, height: int) -> tuple[int, int]:
    width, height = rule.size(width, height)
    return width - width % scale, height - height % scale


def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """`ShardsConfig.identity` as noted by this version or an older one, with the keys of both."""
    degradation = dict(identity.get("degradation", {}))
    degradation.pop("jpeg_optimize", None)  # it changed no pixel
    return {**LATER_KEYS, **identity, "degradation": degradation}


class Source(NamedTuple):  # there may be ten million, and a tuple takes the least time and memory
    """A file that was looked at: `root` and relative `name`; upright pixels; `split` is "" until assigned."""

    root: str
    name: str
    sha256: str
    width: int
    height: int
    split: str = ""


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: the unit of work, independent of all others."""

    split: str
    number: int
    first_sample: int
    sources: tuple[Source, ...] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.number:06d}.tar"


def assign_splits(config: ShardsConfig, sources: Sequence[Source]) -> list[Source]:
    """Fills in `split` where it is "" by the hash of the photo's content, so that adding photos moves none. With two or
    more neither split stays empty: the photo of the lowest hash goes to validation, or that of the highest to training.
    """
    fraction = 0.0 if config.val else config.val_fraction
    assigned = []
    for source in sources:
        by_hash = "val" if int(source.sha256[:16], 16) < fraction * 2**64 else "train"
        assigned.append(source._replace(split=source.split or by_hash))
    if fraction and len({source.split for source in assigned}) == 1:
        hashes = {source.sha256 for source in assigned}
        if len(hashes) > 1:
            moved = {min(hashes): "val", max(hashes): "train"}
            assigned = [source._replace(split=moved.get(source.sha256, source.split)) for source in assigned]
    return assigned


def refuse_unusable(config: ShardsConfig, sources: Sequence[Source]) -> tuple[list[Source], list[Refused]]:
    """Parts the photos that give at least one sample from those that give none, or whose content is in both splits:
    these are refused for training.
    """
    validation = {source.sha256: source.name for source in sources if source.split == "val"}
    usable, refused = [], []
    for source in sources:
        if source.split == "train" and source.sha256 in validation:
            reason = f"the same file as the validation photo {validation[source.sha256]}"
        else:
            reason = _fault_of_size(config, source)
        if reason:
            refused.append(Refused(source.name, reason, source.split))
        else:
            usable.append(source)
    return usable, refused


def _fault_of_size(config: ShardsConfig, source: Source) -> str:
    num_samples = config.num_samples(source)
    if config.pairs:
        size = f"{2 * config.tile_pixels}x{config.tile_pixels}"
        return "" if num_samples else f"{source.width}x{source.height} pixels, a pair picture has {size}"
    width, height = config.clean_size(source)
    if not num_samples:
        return f"too small: {width}x{height} pixels after resizing, a tile has {config.tile_pixels}"
    is_saved = config.degradation.quality_bounds() and not config.is_clean_only(source.split)
    if is_saved and max(width, height) > MAX_JPEG_SIDE:
        return f"{width}x{height} pixels after resizing: JPEG holds {MAX_JPEG_SIDE} at most"
    return ""


def plan_shards(config: ShardsConfig, sources: Sequence[Source]) -> list[ShardTask]:
    """Deals photos, in the order given, to shards of about `samples_per_shard` samples in each split."""
    tasks: list[ShardTask] = []
    for split in SPLITS:
        first_sample = 0
        for number, group in enumerate(_groups(config, (source for source in sources if source.split == split))):
            tasks.append(ShardTask(split, number, first_sample, tuple(group)))
            first_sample += sum(config.num_samples(source) for source in group)
    return tasks


def _groups(config: ShardsConfig, sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Photos of one shard each: as many as fit into `samples_per_shard`, at least one."""
    group: list[Source] = []
    group_samples = 0
    for source in sources:
        num_samples = config.num_samples(source)
        if group and group_samples + num_samples > config.samples_per_shard:
            yield group
            group, group_samples = [], 0
        group.append(source)
        group_samples += num_samples
    if group:
        yield group


def plan_hash(tasks: Iterable[ShardTask]) -> str:
    """sha256 over which content goes where."""
    digest = hashlib.sha256()
    for task in tasks:
        content = [[source.name, source.sha256] for source in task.sources]
        digest.update(json.dumps([task.split, task.number, content]).encode())
    return digest.hexdigest()
