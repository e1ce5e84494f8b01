"""The shard contract: what a shard is, and the manifest beside the shards.

A shard is a plain USTAR tar any WebDataset reader opens: members `KEY.clean.npy` and `KEY.degraded.npy` (or
`.png`), KEY ten digits; `srcnn.members` encodes and decodes them. Samples that are degraded while training have the
clean member only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import features

from srcnn.errors import UserError
from srcnn.files import write_json
from srcnn.members import BLOCK_BYTES, Encoding, npy_stride
from srcnn.untrusted import (
    MAX_COUNT,
    MAX_MANIFEST_BYTES,
    MAX_TILE_SIDE,
    OutOfBounds,
    check_name,
    open_regular,
    parse_json,
    record,
)

FORMAT = "srcnn-shards"
VERSION = 3  # 2: with an index; 3: photos in a file of their own, the index checked shard by shard
MANIFEST = "manifest.json"
PLAN = "plan.json"  # beside the splits: what was begun there
SPLITS = ("train", "val")


class ShardError(UserError):
    """Shards or a manifest that do not hold what they should; the message names the file and the cure."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a split: `name` inside the split's folder, `num_samples` pairs; the hash of its rows of the
    index.
    """

    name: str
    bytes: int
    sha256: str
    num_samples: int
    index_sha256: str


@dataclass(frozen=True)
class IndexFile:
    """The split's index beside its manifest, see `srcnn.index`."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PhotosFile:
    """The list of the split's photos beside its manifest, see `srcnn.listing`."""

    name: str
    bytes: int
    sha256: str
    num_photos: int
    num_refused: int


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """Where a photo went: its pairs lie one after the other in a shard, from its pair `first_sample` on.

    Sizes are in pixels after resizing; `degraded_psnr` is the mean over the photo's tiles, in dB.
    """

    name: str
    sha256: str
    width: int
    height: int
    quality: int | None
    shard: str
    first_sample: int
    num_samples: int
    degraded_psnr: float


@dataclass(frozen=True)
class Refused:
    """A photo that is not in the shards, why, and the split it would have been in; the shard in whose making that
    showed, "" if before.
    """

    name: str
    reason: str
    split: str
    shard: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a split's shards hold. One JSON file beside them, of some 200 bytes a shard whatever the number of photos.

    Attributes:
        tile_shape: (H, W), or (H, W, 3) in RGB mode; pixels.
        members: names after a sample's key, of the clean and of the degraded picture; or of the clean one alone.
        stride: bytes from sample to sample in every shard; None where samples vary in size.
        config: the settings that decide what the pairs are (resize, degradation, split, ...).
        photos: where the photos are listed; None for shards made elsewhere.
        degraded_psnr: mean PSNR over all degraded tiles, dB: what a network has to beat; 0 where there are none or it
            is not known.
    """

    split: str
    tile_shape: tuple[int, ...]
    encoding: Encoding
    members: tuple[str, ...]
    stride: int | None
    config: dict[str, Any]
    index: IndexFile
    shards: tuple[Shard, ...]
    photos: PhotosFile | None
    degraded_psnr: float
    versions: dict[str, str]

    @property
    def is_clean_only(self) -> bool:
        """Whether its samples are clean tiles, to be degraded while training."""
        return len(self.members) == 1

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    def hash(self) -> str:
        """sha256 over what the samples are: the shards' hashes in order, tile shape and encoding."""
        identity = [[shard.sha256 for shard in self.shards], list(self.tile_shape), self.encoding]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        content = {"format": FORMAT, "version": VERSION, "num_samples": self.num_samples}
        return content | dataclasses.asdict(self)

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.to_json())

    @staticmethod
    def read(folder: Path, check_shards: bool = True) -> Manifest:
        """Reads and checks `folder`/manifest.json, and with `check_shards` that these are there and whole in size.

        Raises:
            FileNotFoundError: no manifest there.
            ShardError: not a manifest of this version, or a shard missing or of another size.
        """
        path = folder / MANIFEST
        if not path.is_file():
            cure = f"make them with: make shards PHOTOS=dir OUT={folder.parent}"
            others = ", or for shards made elsewhere: python -m shards index" if any(folder.glob("*.tar")) else ""
            raise FileNotFoundError(f"{path}: no shards here; {cure}{others}")
        try:
            with open_regular(path, MAX_MANIFEST_BYTES) as file:
                content = file.read().decode(errors="surrogateescape")
        except OutOfBounds as error:
            raise ShardError(f"{path}: {error}") from error
        manifest = Manifest.parse(content, str(path))
        for shard in manifest.shards if check_shards else ():
            check_shard_size(folder / shard.name, shard)
        return manifest

    @staticmethod
    def parse(content: str | bytes, where: str) -> Manifest:
        """The manifest in a JSON text. Raises ShardError where it is none of this version."""
        try:
            return _manifest_from_json(where, parse_json(content))
        except ValueError as error:
            raise error if isinstance(error, ShardError) else ShardError(f"{where}: damaged: {error}") from error


def check_shard_size(path: Path, shard: Shard | IndexFile) -> None:
    """Raises ShardError where the file is missing or not as long as the manifest says."""
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ShardError(
            f"{path}: {found}, the manifest says {shard.bytes} bytes; copy it again or make the shards anew"
        )


LISTS = ("tile_shape", "members", "shards")


def _manifest_from_json(path: str, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShardError(f'{path}: not a shard manifest ("format" is not "{FORMAT}")')
    if content.get("version") != VERSION:
        cure = "make the shards anew with it"
        raise ShardError(f"{path}: version {content.get('version')}, this program reads version {VERSION}; {cure}")
    try:
        if odd := [name for name in LISTS if not isinstance(content[name], list)]:
            raise OutOfBounds(f"damaged: {', '.join(odd)}: no list")
        manifest = Manifest(
            split=content["split"],
            tile_shape=tuple(content["tile_shape"]),
            encoding=content["encoding"],
            members=tuple(content["members"]),
            stride=content["stride"],
            config=content["config"],
            index=record(IndexFile, content["index"]),
            shards=tuple(record(Shard, shard) for shard in content["shards"]),
            photos=None if content["photos"] is None else record(PhotosFile, content["photos"]),
            degraded_psnr=content["degraded_psnr"],
            versions=content["versions"],
        )
        _check_layout(manifest)
        _check_contents(manifest)
    except (KeyError, TypeError) as error:
        raise ShardError(f"{path}: damaged: {str(error)[:99]}") from error
    except OutOfBounds as error:
        raise ShardError(f"{path}: {error}") from error
    return manifest


def _check_layout(manifest: Manifest) -> None:
    """Raises OutOfBounds where the tiles are of a shape or an encoding that no reader knows."""
    shape, members = manifest.tile_shape, manifest.members
    sides = all(type(side) is int and 0 < side <= MAX_TILE_SIDE for side in shape)
    if not sides or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise OutOfBounds(f"tile_shape {str(shape)[:99]}: expected (H, W) or (H, W, 3), up to {MAX_TILE_SIDE}")
    if manifest.encoding not in ("npy", "png", "any"):
        raise OutOfBounds(f"encoding {manifest.encoding!r:.99}: expected npy, png or any")
    stride = npy_stride(shape, len(members)) if manifest.encoding == "npy" else None
    if type(manifest.stride) is not type(stride) or manifest.stride != stride:
        raise OutOfBounds(f"stride {str(manifest.stride)[:99]} does not fit {manifest.encoding} tiles of shape {shape}")
    known = (2,) if manifest.encoding == "any" else (1, 2)
    if len(members) not in known or not all(isinstance(part, str) for part in (*members, manifest.split)):
        raise OutOfBounds("damaged: split or members are no names")
    if type(manifest.degraded_psnr) not in (int, float) or not math.isfinite(manifest.degraded_psnr):
        raise OutOfBounds(f"damaged: degraded_psnr {str(manifest.degraded_psnr)[:99]}")
    if not isinstance(manifest.config, dict) or not isinstance(manifest.versions, dict):
        raise OutOfBounds("damaged: config or versions are none")


def _check_contents(manifest: Manifest) -> None:
    """Raises OutOfBounds where names lead elsewhere or come twice, or shards are too small for their pairs."""
    beside = [MANIFEST, manifest.index.name, *([manifest.photos.name] if manifest.photos else [])]
    names = {*beside, *(shard.name for shard in manifest.shards)}
    for name in (*names, manifest.split):
        check_name(name)
    if len(names) != len(beside) + len(manifest.shards):
        raise OutOfBounds("damaged: a file name comes twice")
    least = manifest.stride or 2 * len(manifest.members) * BLOCK_BYTES
    for shard in manifest.shards:
        if shard.num_samples * least > shard.bytes:
            raise OutOfBounds(f"{shard.name}: {shard.num_samples} samples do not fit into {shard.bytes} bytes")
    if sum(shard.bytes for shard in manifest.shards) >= MAX_COUNT:
        raise OutOfBounds("damaged: more bytes than there are")


def writer_versions() -> dict[str, str]:
    """Versions of what decides the degraded pixels: Pillow and its JPEG library."""
    turbo = features.version("libjpeg_turbo")
    return {
        "pillow": str(features.version("pil")),
        "libjpeg": f"turbo {turbo}" if turbo else str(features.version("jpg")),
    }
