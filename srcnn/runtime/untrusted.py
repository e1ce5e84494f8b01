"""Checks of files that may come from strangers: JSON, YAML, file names, npy arrays, sizes of pictures.

Invalid content raises InvalidInput, a ValueError; see docs/security.md.
"""

from __future__ import annotations

import dataclasses
import json
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
from PIL import Image

from srcnn.runtime.errors import UserError

MAX_MANIFEST_BYTES = 512 << 20  # two million shards; parsing takes some ten times as much memory
MAX_COUNT = 1 << 60  # of anything: sums of a few stay below 2^63
MAX_DIGITS = 21  # of an integer of 64 bits, with its sign
MAX_NAME_BYTES = 255
MAX_TILE_SIDE = 4096  # pixels
MAX_SIDE = 1 << 20  # pixels; Pillow takes 16 bytes for each row, however short
MAX_PICTURE_PIXELS = 1 << 26  # of a picture in shards made by another program: 8192x8192, 200 MB as RGB
MAX_PHOTO_BYTES = 2 << 30  # 250 megapixels of 16-bit RGBA
MAX_JPEG_SCANS = 100  # progressive JPEGs have some ten; however short, each scan costs a pass over all pixels
_BYTES_PER_BRACKET = 16  # a manifest has more; an empty list of two bytes takes thirty times as much memory
_NPY = re.compile(r"\{'descr': '([|<>=]?\w{1,9})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,60})\), ?\}\s*")
RecordT = TypeVar("RecordT")
_limit_lock = threading.Lock()
_saved_limits: list[int | None] = []  # Pillow's own limit, once for each open `without_pillow_limit`


class InvalidInput(UserError):
    """A file or value from outside has a type, form or size that is not allowed; the message says which."""


def open_regular(path: Path, max_bytes: int = MAX_COUNT, *, follow: bool = True, append: bool = False) -> IO[bytes]:
    """Opens a file for reading or, with `append`, for both, creating it.

    Raises:
        InvalidInput: a pipe, device or folder, or a larger file.
        OSError: it cannot be opened, or is a link and these are not to be followed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if append else os.O_RDONLY
    flags |= getattr(os, "O_NONBLOCK", 0)  # or it would wait for a pipe's other end; Windows has none of both
    fd = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)), 0o666)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("is not a regular file")
        if status.st_size > max_bytes:
            raise InvalidInput(f"has {status.st_size} bytes; at most {max_bytes} are allowed")
        return os.fdopen(fd, "a+b" if append else "rb")
    except BaseException:
        os.close(fd)
        raise


def parse_json(content: str | bytes) -> Any:
    """Parses JSON. Raises ValueError if it is invalid, too long, nested too deeply, or has integers of over 64 bits."""
    brackets: Any = ("{", "[") if isinstance(content, str) else (b"{", b"[")
    num_brackets = sum(content.count(bracket) for bracket in brackets)
    if len(content) > MAX_MANIFEST_BYTES or num_brackets > len(content) / _BYTES_PER_BRACKET + 1000:
        raise InvalidInput(f"{len(content)} bytes of JSON with {num_brackets} brackets, more than this program writes")
    try:
        return json.loads(content, parse_int=_bounded_int)
    except RecursionError as error:
        raise InvalidInput("nested too deeply") from error


def _bounded_int(digits: str) -> int:
    """An integer that fits into 64 bits, so that it can become a float or an entry of an array."""
    number = int(digits) if len(digits) <= MAX_DIGITS else 1 << 64
    if abs(number) >= 1 << 64:
        raise InvalidInput(f"an integer of {len(digits)} digits; at most 64 bits are allowed")
    return number


def read_json(path: Path, max_bytes: int = MAX_MANIFEST_BYTES, *, follow: bool = True) -> Any:
    """Reads and parses a JSON file. Raises InvalidInput, naming the file, as `parse_json` and `open_regular` do."""
    try:
        with open_regular(path, max_bytes, follow=follow) as file:
            return parse_json(file.read())
    except ValueError as error:
        raise InvalidInput(f"{path}: damaged: {error}") from error


def check_record(kind: type, item: Any) -> None:
    """Raises InvalidInput unless a JSON object has the fields of the dataclass `kind`, with values of their types.

    Fields with a default may be missing, as files of older versions lack them. Integers must be from 0 to below
    MAX_COUNT, other numbers not NaN.
    """
    types = _field_types(kind)
    if not isinstance(item, dict) or not _required_fields(kind) <= item.keys() <= types.keys():
        raise InvalidInput(f"damaged: {kind.__name__} must have exactly the keys {', '.join(types)}")
    for name, value in item.items():
        allowed = types[name]
        if type(value) not in allowed or value != value or type(value) is int and not 0 <= value < MAX_COUNT:
            raise InvalidInput(f"damaged: {kind.__name__} with {name} {value!r:.40}")


@lru_cache
def _field_types(kind: type) -> Mapping[str, frozenset[type]]:
    """The types that the JSON value of each field may have; int for a float too, but never bool."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        types = frozenset(get_args(hint) or (hint,))
        found[name] = types | {int} if float in types else types
    return found


@lru_cache
def _required_fields(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)


def record(kind: type[RecordT], item: Any) -> RecordT:
    """The dataclass `kind` made of a JSON object. Raises InvalidInput as `check_record` does."""
    check_record(kind, item)
    return kind(**item)


def check_name(name: Any) -> None:
    """Raises InvalidInput unless this is a plain file name, without a path, on any operating system."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f\x7f]", name) \
            or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise InvalidInput(f"name {name!r:.99} is not a plain file name")


def npy_pixels(content: bytes | memoryview) -> np.ndarray:
    """The read-only uint8 array in the bytes of an npy file, format 1.

    The header is matched as text, never evaluated. Raises InvalidInput at any other content.
    """
    magic = bytes(content[:10])
    start = 10 + int.from_bytes(magic[8:], "little")
    match = _NPY.fullmatch(bytes(content[10:start]).decode("latin-1")) if magic[:8] == b"\x93NUMPY\x01\x00" else None
    try:
        if match is None or start > len(content):
            raise ValueError
        shape = tuple(int(side) for side in match[3].split(",") if side.strip())
        dtype = np.dtype(match[1])
    except (ValueError, TypeError) as error:
        raise InvalidInput("not an npy header of an array of numbers") from error
    num_pixels = int(np.prod(shape, dtype=object))
    if dtype != np.uint8:
        raise InvalidInput(f"an array of {dtype}, {shape}; expected uint8 (H, W) or (H, W, 3)")
    if num_pixels != len(content) - start:
        raise InvalidInput(f"{len(content) - start} bytes for an array of shape {shape}")
    return np.frombuffer(content, np.uint8, num_pixels, start).reshape(shape, order="F" if match[2] == "True" else "C")


def check_size(size: tuple[int, int], max_pixels: float) -> None:
    """Raises InvalidInput if (width, height) is empty, has more than `max_pixels`, or a side above MAX_SIDE."""
    width, height = size
    claimed = f"{width}x{height} pixels ({width * height:,})"
    if not 0 < width * height <= max_pixels:
        raise InvalidInput(f"{claimed}; expected 1 pixel to {max_pixels / 1e6:g} megapixels")
    if max(size) > MAX_SIDE:
        raise InvalidInput(f"{claimed}; expected sides of at most {MAX_SIDE:,} pixels")


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Disables Pillow's process-wide limit of pixels; it is restored when the last thread leaves this context."""
    with _limit_lock:
        _saved_limits.append(_saved_limits[0] if _saved_limits else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _limit_lock:
            limit = _saved_limits.pop()
            if not _saved_limits:
                Image.MAX_IMAGE_PIXELS = limit
