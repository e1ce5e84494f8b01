"""The settings of shard making, and the plan of which photo goes to which split and shard; does no I/O."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from srcnn.data.manifest import MEMBERS, SPLITS, PhotoRecord, RefusedRecord, TileEncoding
from srcnn.photos.degradation import Degradation
from srcnn.photos.jpeg_history import POOR_QUALITY
from srcnn.photos.reading import MAX_MEGAPIXELS, Resize
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS, grid, starts_to_cover
from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import MAX_TILE_SIDE

# Keys that do not change the shards, only where they are and how fast they are made.
KEYS_WITHOUT_EFFECT = ("photos", "pairs", "val", "out", "num_workers", "executor", "allow_refused", "num_sheet_pairs",
                       "max_megapixels", "check_originals")
# Keys that older versions did not have, and the value that corresponds to them; not part of the identity at this value.
ADDED_KEYS = {"decode": "exact", "contents": "pairs"}
MAX_JPEG_SIDE = 65500  # pixels; JPEG_MAX_DIMENSION of libjpeg


@dataclass(frozen=True)
class ShardsConfig:
    """Settings of shard making.

    Args:
        photos: folder of clean photos, or an s3, gs or az URL; subfolders are included.
        pairs: instead of photos: folder of pictures twice as wide as high, left clean, right degraded.
        val: folder of the validation photos (or pairs); if empty, `photos` are split by the hash of their content.
        out: output folder or URL; the shards go to out/train and out/val.
        folders: resize rules of folders below `photos`, by name; if given, only these folders are read.
        resize: "max:1024" (the long side at most), "long:1024" (the long side, smaller photos are enlarged), "x0.5"
            (factor), "none", or "1024x1024" (width x height, other proportions are stretched).
        decode: "exact", or "reduced": a JPEG that is large enough is decoded at a half, a quarter or an eighth of its
            size before it is resized; twice as fast, 44 to 54 dB from the exact pictures.
        contents: training samples are "pairs" of tiles, or "clean" tiles that are degraded during training
            (docs/degradations.md) and overlap so that no edge is left out. Validation samples are always pairs.
        degradation: how the clean photo is degraded.
        color: "luma" (Pillow's mode L) or "rgb".
        tile_pixels: side of a tile; a multiple of 8, so that tiles are aligned with JPEG blocks.
        val_fraction: fraction of the photos used for validation if `val` is empty.
        encoding: "npy" (fast to read) or "png" (smaller, for archives and slow networks).
        samples_per_shard: maximum number of samples per shard, unless a single photo has more.
        max_megapixels: larger photos are refused.
        num_workers: processes; 0: one per core.
        executor: address of a Dask scheduler, tcp://host:8786, whose workers are used instead of processes.
        allow_refused: exit with status 0 even if some photos were refused.
        num_sheet_pairs: number of random samples on the contact sheet of each split.
        check_originals: which photos are looked at for an earlier JPEG in their pixels, to report poor ones: "quick":
            those where 8x8 blocks are seen; "thorough": all, some 0.3 s each. Own tables of JPEGs are always read.
    """

    COMMON: ClassVar[dict[str, tuple[str, ...]]] = {"settings that most shards need": (
        "photos", "val", "out", "resize", "degradation.jpeg_quality", "degradation.scale", "color", "tile_pixels",
        "num_workers", "allow_refused")}
    SUBJECTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "photos": ("pairs", "val_fraction", "folders", "decode", "max_megapixels", "check_originals"),
        "damage": ("contents", "degradation"),
        "shards": ("encoding", "samples_per_shard", "num_sheet_pairs"),
        "workers": ("executor",),
    }

    photos: str = ""
    pairs: str = ""
    val: str = ""
    out: str = "data/shards"
    folders: dict[str, str] = field(default_factory=dict)
    resize: str = "max:1024"
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
    check_originals: Literal["quick", "thorough"] = "quick"

    def __post_init__(self) -> None:
        if bool(self.photos) == bool(self.pairs):
            raise UserError("give either photos (folder of clean photos) or pairs (folder of pair pictures)")
        if self.pairs and self.contents == "clean":
            raise UserError("contents clean: needs photos; pairs are degraded already")
        if self.check_originals == "thorough" and (self.pairs or self.decode == "reduced"):
            raise UserError("check_originals thorough: needs photos that are decoded in full; use --decode exact, and "
                            "photos, not pairs")
        if not JPEG_BLOCK_PIXELS <= self.tile_pixels <= MAX_TILE_SIDE or self.tile_pixels % JPEG_BLOCK_PIXELS:
            raise UserError(f"tile_pixels {self.tile_pixels}: expected a multiple of {JPEG_BLOCK_PIXELS} up to "
                             f"{MAX_TILE_SIDE}")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction {self.val_fraction}: expected 0 <= fraction < 1")
        if self.samples_per_shard < 1 or self.num_workers < 0:
            raise UserError(f"samples_per_shard {self.samples_per_shard}, num_workers {self.num_workers}: expected at "
                             "least 1 and 0")
        if self.num_sheet_pairs < 0 or self.max_megapixels <= 0:
            raise UserError(f"num_sheet_pairs {self.num_sheet_pairs}, max_megapixels {self.max_megapixels}: expected "
                             "at least 0 and more than 0")
        for rule in (self.resize, *self.folders.values()):
            Resize.parse(rule)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        side = (self.tile_pixels, self.tile_pixels)
        return side if self.color == "luma" else (*side, 3)

    def members(self, split: str) -> tuple[str, ...]:
        """The file extensions of the members of a split's samples."""
        both = MEMBERS[self.encoding]
        return both[:1] if self.is_clean_only(split) else both

    def is_clean_only(self, split: str) -> bool:
        """Whether the samples of a split are clean tiles only."""
        return self.contents == "clean" and split == "train"

    def identity(self) -> dict[str, Any]:
        """The settings that determine the samples; an interrupted run continues only if they are equal."""
        values = dataclasses.asdict(self)
        for key in [*KEYS_WITHOUT_EFFECT, *(key for key, old in ADDED_KEYS.items() if values[key] == old)]:
            del values[key]
        kind, split = "pairs" if self.pairs else "photos", "folders" if self.val else "hash"
        return values | {"kind": kind, "split": split}

    def resize_rule(self, name: str) -> Resize:
        """The resize rule of a photo by its relative name: of its innermost folder in `folders`, or `resize`."""
        matches = [folder for folder in self.folders if PurePosixPath(name).is_relative_to(folder)]
        return Resize.parse(self.folders[max(matches, key=len)] if matches else self.resize)

    def num_samples(self, source: Source) -> int:
        """How many samples a photo gives in its split."""
        if self.pairs:
            return int((source.width, source.height) == (2 * self.tile_pixels, self.tile_pixels))
        sides = self.clean_size(source)
        if self.is_clean_only(source.split):
            return math.prod(len(starts_to_cover(side, self.tile_pixels)) for side in sides)
        return math.prod(grid(*sides[::-1], self.tile_pixels))

    def clean_size(self, source: Source) -> tuple[int, int]:
        """(width, height) after resizing and cropping to a multiple of the scale."""
        return _clean_size(self.resize_rule(source.name), self.degradation.scale, source.width, source.height)


@lru_cache(maxsize=1 << 16)  # called several times per photo, and many photos have the same size
def _clean_size(rule: Resize, scale: int, width: int, height: int) -> tuple[int, int]:
    width, height = rule.size(width, height)
    return width - width % scale, height - height % scale


def normalize_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Completes a `ShardsConfig.identity` of this or an older version, so that two of them can be compared."""
    degradation = dict(identity.get("degradation", {}))
    degradation.pop("jpeg_optimize", None)  # it changed no pixel
    return {**ADDED_KEYS, **identity, "degradation": degradation}


class Source(NamedTuple):  # there may be ten million, and a tuple takes little memory
    """A photo: its folder or URL, its name in there, and its upright size in pixels; `split` is "" until assigned."""

    root: str
    name: str
    sha256: str
    width: int
    height: int
    split: str = ""


@dataclass(frozen=True)
class ShardTask:
    """A shard to write, independently of all others."""

    split: str
    number: int
    first_sample: int
    sources: tuple[Source, ...] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.number:06d}.tar"


def assign_splits(config: ShardsConfig, sources: Sequence[Source]) -> list[Source]:
    """Assigns a split to the photos that have none, by the hash of their content, so that adding photos moves none.

    If all photos would be in one split, the one with the lowest hash is used for validation, or the one with the
    highest for training.
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


def select_usable(config: ShardsConfig, sources: Sequence[Source]) -> tuple[list[Source], list[RefusedRecord]]:
    """Separates the photos that can be used from those that are refused.

    Refused are photos that give no sample, and training photos whose content is also in the validation split.
    """
    validation = {source.sha256: source.name for source in sources if source.split == "val"}
    usable, refused = [], []
    for source in sources:
        if source.split == "train" and source.sha256 in validation:
            reason = f"the same file as the validation photo {validation[source.sha256]}"
        else:
            reason = _size_problem(config, source)
        if reason:
            refused.append(RefusedRecord(source.name, reason, source.split))
        else:
            usable.append(source)
    return usable, refused


def _size_problem(config: ShardsConfig, source: Source) -> str:
    num_samples = config.num_samples(source)
    if config.pairs:
        size = f"{2 * config.tile_pixels}x{config.tile_pixels}"
        return "" if num_samples else f"{source.width}x{source.height} pixels; a pair picture has {size}"
    width, height = config.clean_size(source)
    if not num_samples:
        return f"too small: {width}x{height} pixels after resizing, a tile has {config.tile_pixels}"
    is_saved = config.degradation.quality_bounds() and not config.is_clean_only(source.split)
    if is_saved and max(width, height) > MAX_JPEG_SIDE:
        return f"{width}x{height} pixels after resizing: a JPEG can have at most {MAX_JPEG_SIDE} each way"
    return ""


def is_poor(photo: PhotoRecord) -> bool:
    """Whether a photo was a JPEG of a quality below POOR_QUALITY before it was degraded here."""
    return photo.original_quality is not None and photo.original_quality < POOR_QUALITY


class ResizedPhotos(NamedTuple):
    """How many photos resizing made smaller and larger, and how many it gave other proportions; and how many there are.

    `too_small` have less than a tile then: they are refused.
    """

    total: int
    reduced: int
    enlarged: int
    stretched: int
    too_small: int


def count_resized(config: ShardsConfig, sources: Iterable[Source]) -> ResizedPhotos:
    """Counts what the resize rules do to photos; pair pictures are not resized."""
    if config.pairs:
        return ResizedPhotos(0, 0, 0, 0, 0)
    counts = np.zeros(len(ResizedPhotos._fields), int)
    for source in sources:
        before, after = (source.width, source.height), config.resize_rule(source.name).size(source.width, source.height)
        is_enlarged = any(new > old for old, new in zip(before, after, strict=True))
        # A pixel of either side is rounding.
        is_stretched = abs(before[0] * after[1] - before[1] * after[0]) > max(before)
        counts += (1, after != before and not is_enlarged, is_enlarged, is_stretched, not config.num_samples(source))
    return ResizedPhotos(*counts.tolist())


def plan_shards(config: ShardsConfig, sources: Sequence[Source]) -> list[ShardTask]:
    """Assigns the photos of each split, in the given order, to shards of at most `samples_per_shard` samples."""
    tasks: list[ShardTask] = []
    for split in SPLITS:
        groups: list[list[Source]] = []
        first_samples: list[int] = []
        next_sample = 0
        for source in sources:
            if source.split != split:
                continue
            num_samples = config.num_samples(source)
            if not groups or next_sample + num_samples - first_samples[-1] > config.samples_per_shard:
                groups.append([])
                first_samples.append(next_sample)
            groups[-1].append(source)
            next_sample += num_samples
        tasks += (ShardTask(split, number, first_samples[number], tuple(group)) for number, group in enumerate(groups))
    return tasks


def plan_hash(tasks: Iterable[ShardTask]) -> str:
    """The sha256 of which photos go to which shard."""
    digest = hashlib.sha256()
    for task in tasks:
        content = [[source.name, source.sha256] for source in task.sources]
        digest.update(json.dumps([task.split, task.number, content]).encode())
    return digest.hexdigest()
