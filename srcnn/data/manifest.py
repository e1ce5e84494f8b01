"""The shard format: encodes and decodes the members of a sample, and reads and checks the manifest of a split.

A shard is a plain USTAR tar that any WebDataset reader opens. Its members are `KEY.clean.npy` and `KEY.degraded.npy`
(or `.png`), where KEY is ten digits. Samples that are degraded during training have the clean member only.
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

from srcnn.photos.reading import decode, open_image, over_white
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import to_json
from srcnn.runtime.storage import Folder, Storage
from srcnn.runtime.untrusted import (
    MAX_COUNT,
    MAX_MANIFEST_BYTES,
    MAX_PICTURE_PIXELS,
    MAX_TILE_SIDE,
    InvalidInput,
    check_name,
    npy_pixels,
    parse_json,
    record,
)

BLOCK_BYTES = 512  # of a tar: a header is one block, and contents are padded to whole blocks
MEMBERS = {encoding: (f"clean.{encoding}", f"degraded.{encoding}") for encoding in ("npy", "png")}
FOREIGN_FORMATS = ("PNG", "JPEG", "WEBP")
TileEncoding = Literal["npy", "png"]
Encoding = Literal["npy", "png", "any"]  # any: foreign shards, pictures of any size that are cropped when read


def sample_key(sample: int) -> str:
    """The tar key of a sample: its number in its split, in ten digits."""
    return f"{sample:010d}"


def padded_bytes(num_bytes: int) -> int:
    """The size of a member's content in a tar, padding included."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def encode_tile(tile: np.ndarray, encoding: TileEncoding) -> bytes:
    """Encodes a tile, uint8 (H, W) or (H, W, 3), as the content of a tar member."""
    if encoding == "npy":
        return encode_npy_header(tile.shape) + tile.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=64)
def encode_npy_header(shape: tuple[int, ...], dtype: str = "'|u1'") -> bytes:
    """The header of an npy file, format 1.0. `dtype` is the array's `descr` as a Python literal.

    Not written by NumPy, as another version of NumPy may pad it differently, which would change the stride and the
    bytes of shards.
    """
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(len(text) + 11) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def decode_tile(content: bytes | memoryview, encoding: Encoding, tile_shape: tuple[int, ...]) -> np.ndarray:
    """Decodes the content of a member into a uint8 tile of `tile_shape`.

    Raises:
        ValueError: another shape or type; found before the pixels are decoded.
    """
    if encoding == "npy":
        tile = npy_pixels(content)
        if tile.shape != tile_shape:
            raise UserError(f"the tile has shape {tile.shape}; expected {tile_shape} as in the manifest")
        return tile
    with open_image(content, MAX_TILE_SIDE**2 / 1e6, formats=("PNG",)) as image:
        if (*image.size[::-1], *tile_shape[2:]) != tile_shape or image.mode != ("RGB" if tile_shape[2:] else "L"):
            raise UserError(f"the tile has {image.size} pixels, mode {image.mode}; expected {tile_shape} as in the "
                             "manifest")
        return np.asarray(decode(image)[0])


def decode_picture(content: bytes | memoryview, channels: int) -> np.ndarray:
    """Decodes a member of a foreign shard (npy, PNG, JPEG or WebP of 8 bits), as photos are: uint8 (H, W) or (H, W, 3).

    Args:
        channels: 1 or 3. Colour is converted to grey as Pillow's mode L (ITU-R BT.601), grey to three equal channels.

    Raises:
        ValueError: another format, another dtype, or an array that is not a picture.
    """
    if content[:6] == b"\x93NUMPY":
        pixels = npy_pixels(content)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if not pixels.size or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise UserError(f"the array has shape {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
        return np.asarray(Image.fromarray(pixels).convert("RGB" if channels == 3 else "L"))
    with open_image(content, MAX_PICTURE_PIXELS / 1e6, formats=FOREIGN_FORMATS) as image:
        mode, (picture, _) = image.mode, decode(image)
        if not isinstance(picture, Image.Image):
            raise UserError(f"the picture has 16 bits a channel (mode {mode}); expected 8-bit grey or RGB")
        is_opaque = mode in ("LA", "RGBA") and picture.mode in ("L", "RGB")
        if mode not in ("L", "RGB") and not is_opaque:
            raise UserError(f"the picture has mode {mode}; expected 8-bit grey or RGB")
        return np.asarray(over_white(picture).convert("RGB" if channels == 3 else "L"))


def npy_stride(tile_shape: tuple[int, ...], num_members: int = 2) -> int:
    """Bytes from the start of an npy sample to the start of the next one in a shard."""
    content_bytes = len(encode_npy_header(tuple(tile_shape))) + math.prod(tile_shape)
    return num_members * (BLOCK_BYTES + padded_bytes(content_bytes))


FORMAT = "srcnn-shards"
VERSION = 3  # 2: with an index; 3: photos in a file of their own, the index checked shard by shard
MANIFEST = "manifest.json"
PLAN = "plan.json"  # beside the folders of the splits: the config and photos that the shards are made of
SPLITS = ("train", "val")
REPAIR_HINT = "copy it again or make the shards again"


class ShardError(UserError):
    """Shards, an index or a manifest are missing, damaged or do not match; the message names the file and a remedy."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a split: its name in the split's folder, its hash and the hash of its index entries."""

    name: str
    bytes: int
    sha256: str
    num_samples: int
    index_sha256: str


@dataclass(frozen=True)
class IndexFile:
    """The index file of a split, beside its manifest; see `srcnn.data.index`."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PhotosFile:
    """The list of a split's photos, beside its manifest; see `srcnn.data.photo_list`."""

    name: str
    bytes: int
    sha256: str
    num_photos: int
    num_refused: int
    num_poor: int = 0  # photos that were JPEGs of a low quality before they were degraded here


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """A photo and its samples, which are neighbours in one shard.

    Attributes:
        sha256: of the photo file.
        width, height: after resizing, in pixels.
        quality: of the JPEG that degraded it; None if there was none.
        first_sample: index of the first sample within the shard.
        degraded_psnr: mean PSNR of the degraded tiles, dB.
        original_quality: of the coarsest JPEG that the photo itself was; None if it was none, or that is not known.
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
    original_quality: int | None = None


@dataclass(frozen=True)
class RefusedRecord:
    """A photo that was left out, with the reason and its split.

    `shard` is the one that was being written when the photo could not be decoded; "" if it was refused earlier.
    """

    name: str
    reason: str
    split: str
    shard: str = ""


@dataclass(frozen=True)
class Manifest:
    """Describes the shards of a split: a JSON file beside them, about 200 bytes per shard.

    Attributes:
        tile_shape: (H, W), or (H, W, 3) in RGB mode; pixels.
        members: file extensions after the key, of the clean and the degraded picture, or of the clean one only.
        stride: bytes from one sample to the next in every shard; None if samples differ in size.
        config: the settings that determine the pixels (resize, degradation, split, ...).
        photos: the list of photos; None for foreign shards.
        degraded_psnr: mean PSNR of all degraded tiles, dB, the baseline of a network; 0 if unknown.
        versions: of the libraries that made the pixels, see `library_versions`.
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
        """Whether the samples are clean tiles only, which are degraded during training."""
        return len(self.members) == 1

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def first_samples(self) -> np.ndarray:
        """The number in the split of each shard's first sample, int64; and at the end the number of all samples."""
        return np.cumsum([0, *(shard.num_samples for shard in self.shards)])

    @property
    def damage(self) -> str:
        """How the degraded tiles were made, such as "JPEG quality 20"; "" where that is not known."""
        found = self.config.get("degradation")
        settings = found if isinstance(found, dict) and not self.is_clean_only else {}
        quality, scale = settings.get("jpeg_quality"), settings.get("scale", 1)
        parts = [f"JPEG quality {quality}"] if quality else []
        return ", ".join([*parts, *([f"reduced and enlarged {scale}x"] if scale != 1 else [])])

    def hash(self) -> str:
        """Identifies the samples: sha256 of the shards' hashes in order, the tile shape and the encoding."""
        identity = [[shard.sha256 for shard in self.shards], list(self.tile_shape), self.encoding]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def write(self, storage: Storage) -> None:
        """Writes manifest.json to the split's folder."""
        content = {"format": FORMAT, "version": VERSION, "num_samples": self.num_samples}
        with storage.create(MANIFEST) as file:
            file.write(to_json(content | dataclasses.asdict(self)))

    @staticmethod
    def parse(content: str | bytes, where: str) -> Manifest:
        """Parses and checks the content of a manifest file. Raises ShardError, which names `where` it was read."""
        try:
            return _manifest_from_json(parse_json(content))
        except InvalidInput as error:
            raise ShardError(f"{where}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where}: damaged: {str(error)[:99]}") from error


def read_manifest(storage: Storage) -> Manifest:
    """Reads and checks the manifest of a split, but not whether its shards exist.

    Raises:
        FileNotFoundError: there is no manifest.
        ShardError: not a manifest, a damaged one, or one of another version.
    """
    where = f"{storage.location}/{MANIFEST}"
    try:
        return Manifest.parse(storage.read(MANIFEST, MAX_MANIFEST_BYTES), where)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "copy the whole folder with its manifest there"
        if isinstance(storage, Folder):
            hint = f"make them with: srcnn shards --photos DIR --out {storage.path.parent}"
            if any(storage.path.glob("*.tar")):
                hint += ", or index shards made by other programs with: srcnn shards index"
            if (storage.path / SPLITS[0] / MANIFEST).is_file():
                hint = f"there are some in {storage.path / SPLITS[0]}"
        raise FileNotFoundError(f"{where}: no shards here; {hint}") from error
    except InvalidInput as error:
        raise ShardError(f"{where}: {error}") from error


def check_file_size(path: Path, expected: Shard | IndexFile) -> None:
    """Raises ShardError if the file is missing or its size is not the one in the manifest."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected.bytes:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ShardError(f"{path}: {found}; the manifest says {expected.bytes} bytes. {REPAIR_HINT}")


def _manifest_from_json(content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInput(f'not a shard manifest ("format" is not "{FORMAT}")')
    if content.get("version") != VERSION:
        found = f"version {content.get('version')}, this program reads version {VERSION}"
        raise InvalidInput(f"{found}; make the shards again with this program")
    if not_lists := [key for key in ("tile_shape", "members", "shards") if not isinstance(content[key], list)]:
        raise InvalidInput(f"damaged: {', '.join(not_lists)}: expected a list")
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
    """Raises InvalidInput if the tile shape, encoding, stride or member names are not ones that can be read."""
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
        raise InvalidInput("damaged: split or members: expected names")
    if type(manifest.degraded_psnr) not in (int, float) or not math.isfinite(manifest.degraded_psnr):
        raise InvalidInput(f"damaged: degraded_psnr {str(manifest.degraded_psnr)[:99]}: expected a finite number")
    if not isinstance(manifest.config, dict) or not isinstance(manifest.versions, dict):
        raise InvalidInput("damaged: config or versions: expected an object")


def _check_contents(manifest: Manifest) -> None:
    """Raises InvalidInput if a file name leaves the folder or occurs twice, or a shard is too small for its samples."""
    beside = [MANIFEST, manifest.index.name, *([manifest.photos.name] if manifest.photos else [])]
    names = {*beside, *(shard.name for shard in manifest.shards)}
    for name in (*names, manifest.split):
        check_name(name)
    if len(names) != len(beside) + len(manifest.shards):
        raise InvalidInput("damaged: a file name occurs twice")
    min_sample_bytes = manifest.stride or 2 * len(manifest.members) * BLOCK_BYTES
    for shard in manifest.shards:
        if shard.num_samples * min_sample_bytes > shard.bytes:
            raise InvalidInput(f"{shard.name}: {shard.num_samples} samples do not fit into {shard.bytes} bytes")
    if sum(shard.bytes for shard in manifest.shards) >= MAX_COUNT:
        raise InvalidInput("damaged: the sizes of the shards are too large")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the degraded pixels depend on: Pillow and its JPEG library."""
    turbo = features.version("libjpeg_turbo")
    return {
        "pillow": str(features.version("pil")),
        "libjpeg": f"turbo {turbo}" if turbo else str(features.version("jpg")),
    }
