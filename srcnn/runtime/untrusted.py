"""What may come from strangers, in bounds: regular files, JSON of known types, names, npy headers, pictures.

Whatever is wrong with it is OutOfBounds, a ValueError; see docs/security.md.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_type_hints

import numpy as np
import yaml
from PIL import Image, TiffImagePlugin

from srcnn.runtime.errors import UserError

MAX_MANIFEST_BYTES = 512 << 20  # two million shards; parsed it takes some ten times as much memory
MAX_YAML_BYTES, MAX_YAML_DEPTH = 1 << 20, 20
MAX_COUNT = 1 << 60  # of anything: sums of a few stay below 2^63
MAX_NAME_BYTES = 255
MAX_TILE_SIDE = 4096  # pixels
MAX_PICTURE_PIXELS = 1 << 26  # of a picture in a shard made elsewhere: 8192x8192, 200 MB as RGB
MAX_PHOTO_BYTES = 2 << 30  # 250 megapixels of 16-bit RGBA
MAX_JPEG_SCANS = 100  # progressive JPEGs have some ten; each scan goes over all pixels, however few bytes it takes
TIFF_TILE_TAGS = (322, 323)  # width and height: libtiff decodes whole tiles, however small the picture
_BYTES_PER_BRACKET = 16  # of a manifest, at least: an empty list of two bytes takes thirty times as much memory
_NPY = re.compile(r"\{'descr': '([|<>=]?\w{1,9})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,60})\), ?\}\s*")
RecordT = TypeVar("RecordT")
_lifting = threading.Lock()
_lifted: list[int | None] = []  # Pillow's own limit, once for every picture that is open without it


class OutOfBounds(UserError):
    """Something foreign is of another kind, type or size than it may be; the message says which."""


def open_regular(path: Path, max_bytes: int = MAX_COUNT) -> IO[bytes]:
    """Opens a file to read; links are followed. Raises OutOfBounds at pipes, devices, folders, and larger files."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its other end
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise OutOfBounds("is no regular file")
        if status.st_size > max_bytes:
            raise OutOfBounds(f"has {status.st_size} bytes, more than {max_bytes}")
        return os.fdopen(number, "rb")
    except OutOfBounds:
        os.close(number)
        raise


def parse_json(content: str | bytes, object_hook: Any = None) -> Any:
    """The content of a JSON text. Raises ValueError where it is none, too long, or nested too deeply."""
    if isinstance(content, str):
        num_brackets = content.count("{") + content.count("[")
    else:
        num_brackets = content.count(b"{") + content.count(b"[")
    if len(content) > MAX_MANIFEST_BYTES or num_brackets > len(content) / _BYTES_PER_BRACKET + 1000:
        raise OutOfBounds(f"{len(content)} bytes of JSON with {num_brackets} brackets; that is none of ours")
    try:
        return json.loads(content, object_hook=object_hook)
    except RecursionError as error:
        raise OutOfBounds("nested too deeply") from error


def read_json(path: Path) -> Any:
    """As `parse_json`, of a file, which the error names."""
    try:
        with open_regular(path, MAX_MANIFEST_BYTES) as file:
            return parse_json(file.read())
    except ValueError as error:
        raise OutOfBounds(f"{path}: damaged: {error}") from error


def check_yaml(path: Path) -> None:
    """Raises OutOfBounds at a YAML file that is too long, too deep, or has aliases, which may repeat without end."""
    depth = 0
    try:
        with open_regular(path, MAX_YAML_BYTES) as file:
            for event in yaml.parse(file, yaml.SafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if isinstance(event, yaml.AliasEvent) or depth > MAX_YAML_DEPTH:
                    raise OutOfBounds(f"has aliases, or is more than {MAX_YAML_DEPTH} deep")
    except (OutOfBounds, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise OutOfBounds(f"{path}: {error}") from error


def check_record(kind: type, item: Any) -> None:
    """Raises OutOfBounds where a JSON object has not the fields of a dataclass, with values of their types.

    Counts are not negative and below MAX_COUNT; no number is NaN.
    """
    kinds = _kinds(kind)
    if not isinstance(item, dict) or item.keys() != kinds.keys():
        raise OutOfBounds(f"damaged: {kind.__name__} without all of {', '.join(kinds)}, or with more")
    for name, allowed in kinds.items():
        value = item[name]
        if type(value) not in allowed or value != value or type(value) is int and not 0 <= value < MAX_COUNT:
            raise OutOfBounds(f"damaged: {kind.__name__} with {name} {value!r:.40}")


@lru_cache
def _kinds(kind: type) -> Mapping[str, frozenset[type]]:
    """The types that JSON may have for each field; never bool."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        types = frozenset(get_args(hint) or (hint,))
        found[name] = types | {int} if float in types else types
    return found


def record(kind: type[RecordT], item: Any) -> RecordT:
    """A dataclass out of a JSON object, checked."""
    check_record(kind, item)
    return kind(**item)


def check_name(name: Any) -> None:
    """Raises OutOfBounds at what is not the name of a file right in its folder, on any system."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f\x7f]", name) \
            or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise OutOfBounds(f"name {name!r:.99} leads out of the folder, or is none of a file")


def npy_header(content: bytes | memoryview) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """(dtype, Fortran order, shape, where the elements begin) of an array of plain numbers in npy format 1.

    The text of the header is matched, never evaluated. Raises OutOfBounds at any other.
    """
    start = bytes(content[:10])
    stop = 10 + int.from_bytes(start[8:], "little")
    match = _NPY.fullmatch(bytes(content[10:stop]).decode("latin-1")) if start[:8] == b"\x93NUMPY\x01\x00" else None
    try:
        if match is None or stop > len(content):
            raise ValueError
        shape = tuple(int(side) for side in match[3].split(",") if side.strip())
        return np.dtype(match[1]), match[2] == "True", shape, stop
    except (ValueError, TypeError) as error:
        raise OutOfBounds("not an npy header of an array of numbers") from error


def npy_pixels(content: bytes | memoryview) -> np.ndarray:
    """The bytes of an npy file -> its uint8 array, which is read-only."""
    dtype, fortran, shape, start = npy_header(content)
    num_pixels = int(np.prod(shape, dtype=object))
    if dtype != np.uint8:
        raise OutOfBounds(f"an array of {dtype}, {shape}; expected uint8 (H, W) or (H, W, 3)")
    if num_pixels != len(content) - start:
        raise OutOfBounds(f"{len(content) - start} bytes of an array of shape {shape}")
    return np.frombuffer(content, np.uint8, num_pixels, start).reshape(shape, order="F" if fortran else "C")


@contextmanager
def open_picture(content: bytes | memoryview, formats: tuple[str, ...], max_pixels: int) -> Iterator[Image.Image]:
    """A picture in memory whose size is in bounds. Whatever its decoder raises becomes a ValueError."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            check_size(image.size, max_pixels)
            if image.format in ("JPEG", "MPO"):
                check_scans(content)
            yield image
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, DecompressionBombError, ...
        raise OutOfBounds(str(error) or type(error).__name__) from error


def check_size(size: tuple[int, int], max_pixels: float) -> None:
    """Raises OutOfBounds at no pixels, or more than these."""
    width, height = size
    if not 0 < width * height <= max_pixels:
        raise OutOfBounds(f"{width}x{height} pixels is more than {max_pixels / 1e6:g} megapixels" if width * height
                          else f"{width}x{height} pixels: nothing in it")


def check_scans(content: Any) -> None:
    """Raises OutOfBounds at a JPEG whose decoding would take hours: in the coded pixels no marker can occur."""
    if sum(1 for _ in re.finditer(b"\xff\xda", content)) > MAX_JPEG_SCANS:
        raise OutOfBounds(f"a JPEG of more than {MAX_JPEG_SCANS} scans")


def check_image(image: Image.Image, file: IO[bytes], max_megapixels: float) -> None:
    """Raises OutOfBounds at a picture, opened but not decoded, that takes too much to decode, or is several."""
    check_size(image.size, max_megapixels * 1e6)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in TIFF_TILE_TAGS]
        if image.tile and image.tile[0][0] == "libtiff" and all(tile):
            check_size((tile[0], tile[1]), max_megapixels * 1e6)
    if image.format in ("JPEG", "MPO"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_scans(content)
    # MPO: a camera JPEG with a preview. Not `n_frames`: for that Pillow goes through all pages of a TIFF.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise OutOfBounds("has several frames; save the one you mean as a file")


@contextmanager
def pillow_limit_lifted() -> Iterator[None]:
    """Pillow's own limit of pixels away, for who has another; it comes back when the last thread is done."""
    with _lifting:
        _lifted.append(_lifted[0] if _lifted else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _lifting:
            before = _lifted.pop()
            if not _lifted:
                Image.MAX_IMAGE_PIXELS = before
