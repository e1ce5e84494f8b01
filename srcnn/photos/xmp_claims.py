"""What XMP says of other parts of its file: gain maps, videos and their lengths; removed where these parts are gone.

Ultra HDR, motion photo and dynamic depth formats of Android; HDR gain maps of Apple and Adobe. Only the bytes of such
attributes and elements are cut out: nothing else changes, and the prefixes of namespaces may have any name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.parsers import expat

GAIN_MAP = ("http://ns.adobe.com/hdr-gain-map/1.0/", "http://ns.apple.com/HDRGainMap/1.0/")
CONTAINERS = ("http://ns.google.com/photos/1.0/container/", "http://ns.google.com/photos/dd/1.0/container/",
              "http://ns.google.com/photos/dd/1.0/device/")
ITEMS = ("http://ns.google.com/photos/1.0/container/item/", "http://ns.google.com/photos/dd/1.0/item/")
CAMERA = "http://ns.google.com/photos/1.0/camera/"
VIDEO_NAMES = ("MotionPhoto", "MicroVideo")  # names in the namespace CAMERA begin so
FURTHER_PICTURES = ("GainMap", "RecoveryMap", "Depth", "Confidence", "Original")  # semantics of items
MAX_XMP_BYTES, MAX_DEPTH = 16 << 20, 200
_TAG = re.compile(rb"<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>")
# Not `\s+` before the name, which takes quadratic time in a long run of spaces.
_ATTRIBUTE = re.compile(rb"(?<=\s)([\w.:-]+)\s*=\s*(\"[^\"]*\"|'[^']*')")


def claims_gain_map(xmp: bytes) -> bool:
    """Whether the XMP says that there is a gain map."""
    return any(name.encode() in xmp for name in GAIN_MAP)


def has_claims(xmp: bytes) -> bool:
    """Whether the XMP says anything of other parts of its file."""
    namespaces = any(name.encode() in xmp for name in (*GAIN_MAP, *CONTAINERS))
    return namespaces or CAMERA.encode() in xmp and any(name.encode() in xmp for name in VIDEO_NAMES)


def without_claims(xmp: bytes, keep_video: bool = False) -> bytes:
    """The XMP without what it says of other parts of its file; with `keep_video`, only of pictures.

    Returns b"" if that cannot be done: the XMP is damaged, or in another encoding than UTF-8.
    """
    return _edited(xmp, _Editor(keep_video=keep_video)) if has_claims(xmp) else xmp


def with_lengths(xmp: bytes, lengths: Mapping[int, int]) -> bytes:
    """The XMP with other lengths of pictures in its list of parts, by their lengths before; b"" as `without_claims`."""
    return _edited(xmp, _Editor(lengths=lengths)) if has_claims(xmp) else xmp


def _edited(xmp: bytes, editor: _Editor) -> bytes:
    try:
        return editor.edit(xmp.rstrip(b"\0"))
    except (expat.ExpatError, ValueError):
        return b""


class _Element(NamedTuple):
    begin: int
    end: int  # of an empty one, else 0
    is_claim: bool


class _Editor:
    """Finds the ranges of bytes to replace: claims by nothing, or (`lengths`) lengths of parts by others."""

    def __init__(self, keep_video: bool = False, lengths: Mapping[int, int] | None = None) -> None:
        self.keep_video, self.lengths = keep_video, lengths
        self.prefixes: dict[str, str] = {}
        self.open: list[_Element] = []
        self.list_items: list[int] = []  # their numbers in `open`
        self.replacements: list[tuple[int, int, bytes]] = []

    def edit(self, xmp: bytes) -> bytes:
        if len(xmp) > MAX_XMP_BYTES:
            raise ValueError("too long")
        xmp.decode()
        self.xmp, self.parser = xmp, expat.ParserCreate("utf-8")
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.StartDoctypeDeclHandler = self.refuse  # so there are no entities
        self.parser.Parse(xmp, True)
        kept, place = [], 0
        for start, end, text in sorted(self.replacements):
            if start >= place:  # not within an element that goes
                kept += [xmp[place:start], text]
                place = end
        return b"".join(kept) + xmp[place:]

    def refuse(self, *_: Any) -> None:
        raise ValueError("XMP with a document type")

    def is_claim(self, name: str) -> bool:
        prefix, _, local = name.rpartition(":")
        namespace = self.prefixes.get(prefix, "")
        if self.lengths is not None:
            return False
        if namespace in GAIN_MAP or self.keep_video:
            return namespace in GAIN_MAP
        return namespace in (*CONTAINERS, *ITEMS) or namespace == CAMERA and local.startswith(VIDEO_NAMES)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        begin = self.parser.CurrentByteIndex
        tag = _TAG.match(self.xmp, begin)
        if tag is None or len(self.open) >= MAX_DEPTH:
            raise ValueError("a tag without an end, or nested too deeply")
        self.prefixes |= {key[6:]: value for key, value in attributes.items() if key.startswith("xmlns:")}
        if name.endswith(":li"):
            self.list_items.append(len(self.open))
        self.open.append(_Element(begin, tag.end() if tag[0].endswith(b"/>") else 0, self.is_claim(name)))
        for match in _ATTRIBUTE.finditer(tag[0]):
            self.attribute(match[1].decode(), match, begin)

    def attribute(self, name: str, match: re.Match[bytes], begin: int) -> None:
        prefix, _, local = name.rpartition(":")
        value = match[2][1:-1].decode()
        if self.is_claim(name):
            self.replacements.append((begin + match.start() - 1, begin + match.end(), b""))
        elif self.prefixes.get(prefix) in ITEMS and local == "Length" and self.lengths and value.isdecimal():
            length = b'"%d"' % self.lengths.get(int(value[:12]), int(value[:12]))
            self.replacements.append((begin + match.start(2), begin + match.end(2), length))
        elif self.prefixes.get(prefix) in ITEMS and value in FURTHER_PICTURES and self.keep_video and self.list_items:
            item = self.list_items[-1]
            self.open[item] = self.open[item]._replace(is_claim=True)

    def end(self, _: str) -> None:
        element = self.open.pop()
        if self.list_items and self.list_items[-1] == len(self.open):
            self.list_items.pop()
        if element.is_claim:
            end = element.end or self.xmp.index(b">", self.parser.CurrentByteIndex) + 1
            self.replacements.append((element.begin, end, b""))
