"""The shard contract: what a sample is called and how it is stored, and the manifest beside the shards.

A shard is a plain USTAR tar any WebDataset reader opens: members `KEY.clean.npy` and `KEY.degraded.npy` (or
`.png`), KEY ten digits. Encoding and decoding stand side by side here; both the writer and the reader use
this module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, features

from srcnn.files import write_json

FORMAT = "srcnn-shards"
VERSION = 2  # 2: with an index
MANIFEST = "manifest.json"
PLAN = "plan.json"  # beside the splits: what was begun there
SPLITS = ("train", "val")
BLOCK_BYTES = 512  # tar's unit: one header, and what a member's bytes are padded to
MEMBERS = {encoding: (f"clean.{encoding}", f"degraded.{encoding}") for encoding in ("npy", "png")}
FOREIGN_FORMATS = ("PNG", "JPEG", "WEBP")
TileEncoding = Literal["npy", "png"]
Encoding = Literal["npy", "png", "any"]  # any: pictures made elsewhere, of any size, to be cut to tiles


class ShardError(ValueError):
    """Shards or a manifest that do not hold what they should; the message names the file and the cure."""


def key(sample: int) -> str:
    """Ten digits: the number of the sample in its split. No dot, whatever the photo is called."""
    return f"{sample:010d}"


def encode_tile(tile: np.ndarray, encoding: TileEncoding) -> bytes:
    """uint8 tile (H, W) or (H, W, 3) -> the bytes of a member."""
    if encoding == "npy":
        return _npy_header(tile.shape) + tile.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _npy_header(tile_shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": tile_shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def decode_tile(content: bytes | memoryview, encoding: Encoding) -> np.ndarray:
    """The bytes of a member -> uint8 tile. Pickled arrays are refused."""
    if encoding == "npy":
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.asarray(image)


def decode_picture(content: bytes | memoryview, channels: int) -> np.ndarray:
    """The bytes of a foreign member (npy, PNG, JPEG or WebP, 8 bits) -> uint8 (H, W), or (H, W, 3) for 3 channels.

    Colour becomes grey as Pillow's "L" does it (ITU-R BT.601); grey becomes three equal channels.

    Raises:
        ValueError: another format, another type of number, a shape that is no picture.
    """
    if content[:6] == b"\x93NUMPY":
        pixels = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise ValueError(f"an array of {pixels.dtype}, {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
        image = Image.fromarray(pixels)
    else:
        image = Image.open(io.BytesIO(content), formats=FOREIGN_FORMATS)
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a picture of mode {image.mode}; expected 8-bit grey or RGB")
    return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def npy_header_bytes(tile_shape: tuple[int, ...]) -> int:
    """Length of the npy header before the pixels of a tile (128 for all tiles of a usual size)."""
    return len(_npy_header(tuple(tile_shape)))


def npy_stride(tile_shape: tuple[int, ...]) -> int:
    """Bytes from one npy sample to the next in a shard: (header + content padded to 512) twice."""
    content = npy_header_bytes(tile_shape) + int(np.prod(tile_shape))
    return 2 * (BLOCK_BYTES + -(-content // BLOCK_BYTES) * BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a split: `name` inside the split's folder, `num_samples` pairs."""

    name: str
    bytes: int
    sha256: str
    num_samples: int


@dataclass(frozen=True)
class IndexFile:
    """The split's index beside its manifest, see `srcnn.index`."""

    name: str
    bytes: int
    sha256: str


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
    """A photo that is not in the shards, why, and the split it would have been in."""

    name: str
    reason: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """What a split's shards hold. One JSON file beside them.

    Attributes:
        tile_shape: (H, W), or (H, W, 3) in RGB mode; pixels.
        members: names after a sample's key, of the clean and of the degraded picture.
        stride: bytes from sample to sample in every shard; None where samples vary in size.
        config: the settings that decide what the pairs are (resize, degradation, split, ...).
    """

    split: str
    tile_shape: tuple[int, ...]
    encoding: Encoding
    members: tuple[str, str]
    stride: int | None
    config: dict[str, Any]
    index: IndexFile
    shards: tuple[Shard, ...]
    photos: tuple[PhotoRecord, ...]
    refused: tuple[Refused, ...]
    versions: dict[str, str]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def degraded_psnr(self) -> float:
        """Mean PSNR over all degraded tiles, dB: what a network has to beat."""
        total = sum(photo.degraded_psnr * photo.num_samples for photo in self.photos)
        return total / max(1, self.num_samples)

    def hash(self) -> str:
        """sha256 over what the samples are: the shards' hashes in order, tile shape and encoding."""
        identity = [[shard.sha256 for shard in self.shards], list(self.tile_shape), self.encoding]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "version": VERSION, "num_samples": self.num_samples}
        write_json(folder / MANIFEST, content | dataclasses.asdict(self))

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
        manifest = Manifest.parse(path.read_text(encoding="utf-8", errors="surrogateescape"), str(path))
        for shard in manifest.shards if check_shards else ():
            check_shard_size(folder / shard.name, shard)
        return manifest

    @staticmethod
    def parse(content: str | bytes, where: str) -> Manifest:
        """The manifest in a JSON text. Raises ShardError where it is none of this version."""
        try:
            return _manifest_from_json(where, json.loads(content, object_hook=_compact))
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


PHOTO_KEYS = tuple(field.name for field in dataclasses.fields(PhotoRecord))
_PHOTO_KEYS = frozenset(PHOTO_KEYS)


def _compact(item: dict[str, Any]) -> Any:
    """Photos as soon as they are parsed: a large set has hundreds of thousands, and dicts take five times as much."""
    if item.keys() != _PHOTO_KEYS:
        return item
    return PhotoRecord(**(item | {"shard": sys.intern(item["shard"])}))


def _manifest_from_json(path: str, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShardError(f'{path}: not a shard manifest ("format" is not "{FORMAT}")')
    if content.get("version") != VERSION:
        cure = "make the shards anew with it"
        raise ShardError(f"{path}: version {content.get('version')}, this program reads version {VERSION}; {cure}")
    try:
        manifest = Manifest(
            split=content["split"],
            tile_shape=tuple(content["tile_shape"]),
            encoding=content["encoding"],
            members=tuple(content["members"]),
            stride=content["stride"],
            config=content["config"],
            index=IndexFile(**content["index"]),
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            photos=tuple(content["photos"]),
            refused=tuple(Refused(**refused) for refused in content["refused"]),
            versions=content["versions"],
        )
    except (KeyError, TypeError) as error:
        raise ShardError(f"{path}: damaged: {error}") from error
    if not all(isinstance(photo, PhotoRecord) for photo in manifest.photos):
        raise ShardError(f"{path}: damaged: a photo without all of {', '.join(PHOTO_KEYS)}")
    for name in (manifest.index.name, *(shard.name for shard in manifest.shards)):
        if Path(name).name != name:
            raise ShardError(f"{path}: shard name {name!r} leads out of the folder")
    if manifest.encoding == "npy" and manifest.stride != npy_stride(manifest.tile_shape):
        raise ShardError(
            f"{path}: stride {manifest.stride} does not fit tiles of shape {manifest.tile_shape}"
        )
    return manifest


def writer_versions() -> dict[str, str]:
    """Versions of what decides the degraded pixels: Pillow and its JPEG library."""
    turbo = features.version("libjpeg_turbo")
    return {
        "pillow": str(features.version("pil")),
        "libjpeg": f"turbo {turbo}" if turbo else str(features.version("jpg")),
    }
