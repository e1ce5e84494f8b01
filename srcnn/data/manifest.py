"""The shard contract: what a shard is, and the manifest beside the shards.

A shard is a plain USTAR tar any WebDataset reader opens: members `KEY.clean.npy` and `KEY.degraded.npy` (or
`.png`), KEY ten digits; encoded and decoded here, for the writer and the reader. Samples that are degraded while
training have the clean member only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, features

from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_json
from srcnn.runtime.untrusted import (
    MAX_COUNT,
    MAX_MANIFEST_BYTES,
    MAX_PICTURE_PIXELS,
    MAX_TILE_SIDE,
    InvalidInput,
    check_name,
    npy_pixels,
    open_picture,
    open_regular,
    parse_json,
    record,
)

BLOCK_BYTES = 512  # tar's unit: one header, and what a member's bytes are padded to
MEMBERS = {encoding: (f"clean.{encoding}", f"degraded.{encoding}") for encoding in ("npy", "png")}
FOREIGN_FORMATS = ("PNG", "JPEG", "WEBP")
TileEncoding = Literal["npy", "png"]
Encoding = Literal["npy", "png", "any"]  # any: pictures made elsewhere, of any size, to be cut to tiles


def key(sample: int) -> str:
    """Ten digits: the number of the sample in its split. No dot, whatever the photo is called."""
    return f"{sample:010d}"


def encode_tile(tile: np.ndarray, encoding: TileEncoding) -> bytes:
    """uint8 tile (H, W) or (H, W, 3) -> the bytes of a member."""
    if encoding == "npy":
        return encode_npy_header(tile.shape) + tile.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=64)
def encode_npy_header(shape: tuple[int, ...], dtype: str = "'|u1'") -> bytes:
    """The header of an npy file, format 1.0, as NumPy writes it: by hand, since another version of NumPy may pad it
    otherwise, and all strides and the bytes of shards hang on it. `dtype` is its description as a Python literal.
    """
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(len(text) + 11) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def decode_tile(content: bytes | memoryview, encoding: Encoding, tile_shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a member -> uint8 tile. Raises ValueError at any other shape or kind, before it is decoded."""
    if encoding == "npy":
        tile = npy_pixels(content)
        if tile.shape != tile_shape:
            raise ValueError(f"a tile of shape {tile.shape}, the manifest says {tile_shape}")
        return tile
    with open_picture(content, ("PNG",), MAX_TILE_SIDE**2) as image:
        if (*image.size[::-1], *tile_shape[2:]) != tile_shape or image.mode != ("RGB" if tile_shape[2:] else "L"):
            raise ValueError(f"a tile of {image.size} pixels, {image.mode}; the manifest says {tile_shape}")
        return np.asarray(image)


def decode_picture(content: bytes | memoryview, channels: int) -> np.ndarray:
    """The bytes of a foreign member (npy, PNG, JPEG or WebP, 8 bits) -> uint8 (H, W), or (H, W, 3) for 3 channels.

    Colour becomes grey as Pillow's "L" does it (ITU-R BT.601); grey becomes three equal channels.

    Raises:
        ValueError: another format, another type of number, a shape that is no picture.
    """
    if content[:6] == b"\x93NUMPY":
        pixels = npy_pixels(content)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if not pixels.size or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise ValueError(f"an array of {pixels.dtype}, {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
        return np.asarray(Image.fromarray(pixels).convert("RGB" if channels == 3 else "L"))
    with open_picture(content, FOREIGN_FORMATS, MAX_PICTURE_PIXELS) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a picture of mode {image.mode}; expected 8-bit grey or RGB")
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def npy_stride(tile_shape: tuple[int, ...], num_members: int = 2) -> int:
    """Bytes from one npy sample to the next in a shard: header + content padded to 512, for each member."""
    content = len(encode_npy_header(tuple(tile_shape))) + int(np.prod(tile_shape))
    return num_members * (BLOCK_BYTES + -(-content // BLOCK_BYTES) * BLOCK_BYTES)


FORMAT = "srcnn-shards"
VERSION = 3  # 2: with an index; 3: photos in a file of their own, the index checked shard by shard
MANIFEST = "manifest.json"
PLAN = "plan.json"  # beside the splits: what was begun there
SPLITS = ("train", "val")


class ShardError(UserError):
    """Shards or a manifest that do not hold what they should; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a split: `name` inside the split's folder, `num_samples` pairs; the hash of its index rows."""

    name: str
    bytes: int
    sha256: str
    num_samples: int
    index_sha256: str


@dataclass(frozen=True)
class IndexFile:
    """The split's index beside its manifest, see `srcnn.data.index`."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PhotosFile:
    """The list of the split's photos beside its manifest, see `srcnn.data.photo_list`."""

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
            hint = f"make them with: make shards PHOTOS=dir OUT={folder.parent}"
            others = ", or for shards made elsewhere: python -m shards index" if any(folder.glob("*.tar")) else ""
            raise FileNotFoundError(f"{path}: no shards here; {hint}{others}")
        try:
            with open_regular(path, MAX_MANIFEST_BYTES) as file:
                content = file.read().decode(errors="surrogateescape")
        except InvalidInput as error:
            raise ShardError(f"{path}: {error}") from error
        manifest = Manifest.parse(content, str(path))
        for shard in manifest.shards if check_shards else ():
            check_shard_size(folder / shard.name, shard)
        return manifest

    @staticmethod
    def parse(content: str | bytes, where: str) -> Manifest:
        """The manifest in a JSON text. Raises ShardError where it is none of this version."""
        try:
            return _manifest_from_json(parse_json(content))
        except InvalidInput as error:
            raise ShardError(f"{where}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where}: damaged: {str(error)[:99]}") from error


def check_shard_size(path: Path, shard: Shard | IndexFile) -> None:
    """Raises ShardError where the file is missing or not as long as the manifest says."""
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ShardError(
            f"{path}: {found}, the manifest says {shard.bytes} bytes; copy it again or make the shards anew"
        )


def _manifest_from_json(content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInput(f'not a shard manifest ("format" is not "{FORMAT}")')
    if content.get("version") != VERSION:
        found = f"version {content.get('version')}, this program reads version {VERSION}"
        raise InvalidInput(f"{found}; make the shards anew with it")
    if odd := [key for key in ("tile_shape", "members", "shards") if not isinstance(content[key], list)]:
        raise InvalidInput(f"damaged: {', '.join(odd)}: no list")
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
    return manifest


def _check_layout(manifest: Manifest) -> None:
    """Raises InvalidInput where the tiles are of a shape or an encoding that no reader knows."""
    shape, members = manifest.tile_shape, manifest.members
    sides = all(type(side) is int and 0 < side <= MAX_TILE_SIDE for side in shape)
    if not sides or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise InvalidInput(f"tile_shape {str(shape)[:99]}: expected (H, W) or (H, W, 3), up to {MAX_TILE_SIDE}")
    if manifest.encoding not in ("npy", "png", "any"):
        raise InvalidInput(f"encoding {manifest.encoding!r:.99}: expected npy, png or any")
    stride = npy_stride(shape, len(members)) if manifest.encoding == "npy" else None
    if type(manifest.stride) is not type(stride) or manifest.stride != stride:
        raise InvalidInput(f"stride {str(manifest.stride)[:99]} does not fit {manifest.encoding} tiles of {shape}")
    known = (2,) if manifest.encoding == "any" else (1, 2)
    if len(members) not in known or not all(isinstance(part, str) for part in (*members, manifest.split)):
        raise InvalidInput("damaged: split or members are no names")
    if type(manifest.degraded_psnr) not in (int, float) or not math.isfinite(manifest.degraded_psnr):
        raise InvalidInput(f"damaged: degraded_psnr {str(manifest.degraded_psnr)[:99]}")
    if not isinstance(manifest.config, dict) or not isinstance(manifest.versions, dict):
        raise InvalidInput("damaged: config or versions are none")


def _check_contents(manifest: Manifest) -> None:
    """Raises InvalidInput where names lead elsewhere or come twice, or shards are too small for their pairs."""
    beside = [MANIFEST, manifest.index.name, *([manifest.photos.name] if manifest.photos else [])]
    names = {*beside, *(shard.name for shard in manifest.shards)}
    for name in (*names, manifest.split):
        check_name(name)
    if len(names) != len(beside) + len(manifest.shards):
        raise InvalidInput("damaged: a file name comes twice")
    least = manifest.stride or 2 * len(manifest.members) * BLOCK_BYTES
    for shard in manifest.shards:
        if shard.num_samples * least > shard.bytes:
            raise InvalidInput(f"{shard.name}: {shard.num_samples} samples do not fit into {shard.bytes} bytes")
    if sum(shard.bytes for shard in manifest.shards) >= MAX_COUNT:
        raise InvalidInput("damaged: more bytes than there are")


def writer_versions() -> dict[str, str]:
    """Versions of what decides the degraded pixels: Pillow and its JPEG library."""
    turbo = features.version("libjpeg_turbo")
    return {
        "pillow": str(features.version("pil")),
        "libjpeg": f"turbo {turbo}" if turbo else str(features.version("jpg")),
    }
