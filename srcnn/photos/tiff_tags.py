"""Directories of tags, as TIFF files and EXIF have them (TIFF 6.0, section 2; BigTIFF): read, filtered, written.

Values keep their bytes, so what is written must have the byte order of what was read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Union

from PIL import ExifTags, TiffTags
from PIL.ExifTags import Base as Tag

Content = Union[bytes, mmap.mmap]
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTE, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE, IFD, IFD8 = 1, 3, 4, 5, 7, 12, 13, 18
NARROW = {16: (LONG, "I"), 17: (9, "i"), IFD8: (IFD, "I")}  # types of BigTIFF as those of TIFF
MAX_DEPTH, MAX_ENTRIES, MAX_VALUE_BYTES = 4, 65_535, 64 << 20  # the latter two of all directories together
INTEROPERABILITY = 40965
SUB_DIRECTORIES = {int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo), INTEROPERABILITY}
XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG, ICC_TAG = 700, 33723, 34377, 34675
RESOLUTION_TAGS = {282, 283, 296}  # across, down, unit
OWN_FIELDS = {XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG, ICC_TAG, Tag.Orientation}  # each a field of `Metadata`, or applied
# How pixels are stored: subfile type, size, bits, compression, strips and tiles, levels, palette, inks, extra samples,
# old JPEG, YCbCr, Pixar's and SGI's sizes; a thumbnail.
STORAGE = {254, 255, *range(256, 260), 262, *range(263, 267), 273, 277, 278, 279, 280, 281, 284, *range(288, 294),
           317, 320, *range(322, 330), *range(332, 335), 336, *range(338, 343), 347, *range(512, 522),
           *range(529, 533), 559, *range(32995, 32999), 34016, 34017}
# What no longer fits the pixels, or is a picture of its own.
UNFIT = {301: "transfer function", 330: "pictures in sub-directories", 37724: "Photoshop's layers"}
GEOREFERENCE = {33550: "ModelPixelScale", 33922: "ModelTiepoint", 34264: "ModelTransformation"}


class Value(NamedTuple):
    """A tag's value: type and number of items as in the file, and its bytes."""

    kind: int
    number: int
    data: bytes


Directory = dict[int, Union[Value, "Directory"]]


class Tags(NamedTuple):
    """A directory that was read: byte order "<" or ">", tags, names of damaged tags."""

    order: str
    directory: Directory
    damaged: tuple[str, ...] = ()


def name_of(tag: int) -> str:
    """ "Copyright", ...; "tag 65000" where it has none."""
    name = ExifTags.TAGS.get(tag) or TiffTags.lookup(tag).name
    return f"tag {tag}" if name == "unknown" else name


def read_tags(content: Content, skip: Iterable[int] = (), page: int = 0) -> Tags:
    """The directory of a page in a TIFF structure, with those below it, but for some tags. Leaves out damaged tags.

    Raises:
        ValueError: no TIFF structure, or that directory is not in it.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2], "")
    version = int.from_bytes(content[2:4], "little" if order == "<" else "big")
    if not order or version not in (42, 43):
        raise ValueError("not a TIFF structure")
    reader = _Reader(content, order, is_big=version == 43)
    start = reader.integer(8 if version == 43 else 4)
    for _ in range(page):
        if (start := reader.integer(reader.entries(start).stop)) == 0:
            raise ValueError("no directory for this page")
    directory = reader.read(start, frozenset(skip))
    return Tags(order, directory, tuple(dict.fromkeys(reader.damaged)))


def orientation_of(content: Content, page: int = 0) -> int:
    """The orientation 1..8 in a TIFF, which Pillow forgets when it decodes one; 1 without one, or if it is damaged."""
    try:
        order, directory, *_ = read_tags(content, STORAGE | OWN_FIELDS - {Tag.Orientation}, page)
    except ValueError:
        return 1
    value = directory.get(Tag.Orientation)
    data = value.data if isinstance(value, Value) else b""
    orientation = int.from_bytes(data, "little" if order == "<" else "big")
    return orientation if orientation in range(1, 9) else 1


class _Reader:
    def __init__(self, content: Content, order: str, is_big: bool) -> None:
        self.content, self.order, self.is_big = content, order, is_big
        self.word = 8 if is_big else 4  # bytes of an offset
        self.seen: set[int] = set()
        self.bytes_left, self.entries_left = MAX_VALUE_BYTES, MAX_ENTRIES
        self.damaged: list[str] = []

    def integer(self, place: int, size: int = 0) -> int:
        size = size or self.word
        data = self.content[place : place + size]
        if len(data) < size:
            raise ValueError("a directory is not in the file")
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def entries(self, start: int) -> range:
        """Where the entries of the directory at `start` begin; its `stop` is where the offset of the next one lies."""
        head, size = (8, 20) if self.is_big else (2, 12)
        first = start + head
        return range(first, first + self.integer(start, head) * size, size)

    def read(self, start: int, skip: frozenset[int] = frozenset(), depth: int = 0) -> Directory:
        """The directory at `start`."""
        if start in self.seen or depth > MAX_DEPTH:
            raise ValueError("directories that contain each other")
        self.seen.add(start)
        directory: Directory = {}
        entries = self.entries(start)
        if len(entries) > self.entries_left:
            raise ValueError("too many directories or tags")
        self.entries_left -= len(entries)
        size = entries.step
        for place in entries:
            if place + size > len(self.content):
                self.damaged.append("the last tags")
                break
            tag = self.integer(place, 2)
            if tag in skip or tag in directory:
                continue
            try:
                directory[tag] = self.value(tag, place, depth)
            except ValueError:
                self.damaged.append(name_of(tag))
        return directory

    def value(self, tag: int, place: int, depth: int) -> Value | Directory:
        kind, count = self.integer(place + 2, 2), self.integer(place + 4)
        size = SIZES.get(kind, 0) * count
        field = place + 4 + self.word
        start = field if size <= self.word else self.integer(field)
        if tag in SUB_DIRECTORIES or kind in (IFD, IFD8):
            if count != 1:
                raise ValueError("several directories")
            return self.read(self.integer(field), depth=depth + 1)
        if not 0 < size <= self.bytes_left or start + size > len(self.content):
            raise ValueError("a value that is not in the file")
        self.bytes_left -= size
        data = bytes(self.content[start : start + size])
        if kind not in NARROW:
            return Value(kind, count, data)
        kind, code = NARROW[kind]
        try:
            numbers = struct.unpack(f"{self.order}{count}{code.replace('I', 'Q').replace('i', 'q')}", data)
            return Value(kind, count, struct.pack(f"{self.order}{count}{code}", *numbers))
        except struct.error as error:
            raise ValueError("numbers of more than 32 bits") from error


def write_directory(directory: Directory, order: str, start: int) -> bytes:
    """A directory for the offset `start`, with its values and those below it behind it; no other follows."""
    entries, behind = [], bytearray()
    values_start = start + 2 + 12 * len(directory) + 4
    for tag, value in sorted(directory.items(), key=lambda item: item[0]):
        if isinstance(value, dict):
            place = values_start + len(behind)
            kind = LONG if tag in SUB_DIRECTORIES else IFD
            entries.append(struct.pack(order + "HHII", tag, kind, 1, place))
            behind += write_directory(value, order, place)
        elif len(value.data) <= 4:
            entries.append(struct.pack(order + "HHI4s", tag, value.kind, value.number, value.data))
        else:
            entries.append(struct.pack(order + "HHII", tag, value.kind, value.number, values_start + len(behind)))
            behind += value.data
        behind += bytes(len(behind) % 2)
    return struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4) + bytes(behind)


def write_tags(directory: Directory, order: str) -> bytes:
    """A TIFF structure of one directory with those below it, as EXIF is; b"" of an empty one."""
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return header + write_directory(directory, order, 8) if directory else b""


def shortened(exif: bytes, max_bytes: int) -> tuple[bytes, list[str]]:
    """EXIF of at most so many bytes: without thumbnail, and without its largest tags, whose names are returned.

    Returns b"" and no names if it has no other tags.
    """
    try:
        order, directory, *_ = read_tags(exif)
    except ValueError:
        return b"", []
    names, excess = [], len(write_tags(directory, order)) - max_bytes
    for num_bytes, tag, parent in sorted(_values(directory), key=lambda item: -item[0]):
        if excess <= 0:
            break
        del parent[tag]
        names.append(name_of(tag))
        excess -= 12 + num_bytes
    return write_tags(directory, order), names


def _values(directory: Directory) -> Iterator[tuple[int, int, Directory]]:
    """(bytes outside of the entry, tag, directory) of every value, also of the directories below."""
    for tag, value in directory.items():
        if isinstance(value, dict):
            yield from _values(value)
        else:
            yield len(value.data) // 2 * 2 if len(value.data) > 4 else 0, tag, directory


def rescale(directory: Directory, order: str, scale: float) -> bool:
    """Makes tags that depend on the number of pixels fit a photo `scale` times as wide and high; True if it has such.

    GeoTIFF 1.0, 2.6.1, places pixels on a map; tifffile writes the shape of the array as a description.
    """
    changes: dict[int, Callable[[list[float]], list[float]]] = {
        33550: lambda size: [size[0] / scale, size[1] / scale, *size[2:]],
        33922: lambda points: [value * scale if number % 6 < 2 else value for number, value in enumerate(points)],
        34264: lambda matrix: [value / scale if number % 4 < 2 else value for number, value in enumerate(matrix)],
    }
    has_changed = False
    for tag, change in changes.items():
        value = directory.get(tag)
        if isinstance(value, Value) and value.kind == DOUBLE and value.number > 1:
            layout = f"{order}{value.number}d"
            numbers = change(list(struct.unpack(layout, value.data)))
            directory[tag], has_changed = value._replace(data=struct.pack(layout, *numbers)), True
    description = directory.get(Tag.ImageDescription)
    if isinstance(description, Value) and description.data.startswith(b'{"shape": ['):
        del directory[Tag.ImageDescription]
        has_changed = True
    return has_changed
