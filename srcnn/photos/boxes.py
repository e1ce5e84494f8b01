"""The boxes of AVIF, HEIC, JPEG 2000 and JPEG XL files, and what of them is not kept: ISO/IEC 14496-12, section 4.2."""

from __future__ import annotations

from collections.abc import Iterator

from srcnn.photos.tiff_tags import Content

MAX_BOXES = 10_000
MAX_META_BYTES = 16 << 20
FIRST = {b"ftyp", b"JXL ", b"jP  "}  # types of the first box
STORAGE = {*FIRST, b"meta", b"mdat", b"idat", b"moov", b"free", b"skip", b"wide", b"pdin", b"styp", b"jp2h", b"jp2c",
           b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd", b"brob"}
C2PA = "C2PA signature (of the picture as it was)"
NAMES = {b"mpvd": "video", b"jhgm": "gain map", b"jumb": C2PA}
XMP_UUID, EXIF_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), b"JpgTiffExif->JP2"
UUIDS = {bytes.fromhex("d8fec3d61b0e483c92975828877ec481"): C2PA, XMP_UUID: "XMP", EXIF_UUID: "EXIF"}


def walk_boxes(content: Content, position: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The type of each box on one level, and where its content begins and ends; stops at a box that is not whole."""
    end = len(content) if end is None else end
    for _ in range(MAX_BOXES):
        start = position + 8
        size, kind = int.from_bytes(content[position : position + 4], "big"), bytes(content[position + 4 : start])
        if size == 1:  # a size of 64 bits follows
            size, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        elif size == 0:  # up to the end
            size = end - position
        if start > position + size or position + size > end:
            return
        position += size
        yield kind, start, position


def is_box_file(content: Content) -> bool:
    """Whether a file consists of boxes."""
    return content[4:8] in FIRST


def lost_names(content: Content, has_exif: bool, has_xmp: bool) -> tuple[str, ...]:
    """Names of what a file has besides the picture, and besides EXIF and XMP if these were read."""
    names, end = [], 0
    for kind, start, end in walk_boxes(content):
        if kind == b"meta":
            meta = content[start : min(end, start + MAX_META_BYTES)]
            names += ["EXIF"] * (b"Exif\0" in meta) + ["XMP"] * (b"application/rdf+xml" in meta)
        elif kind == b"uuid":
            name = bytes(content[start : start + 16])
            names.append(UUIDS.get(name) or f"box {name.hex()}")
        elif kind in (b"Exif", b"xml "):
            names.append("EXIF" if kind == b"Exif" else "XMP")
        elif kind not in STORAGE:
            names.append(NAMES.get(kind) or f"box {kind.decode('latin-1')!r}")
    if content[end : end + 64].strip(b"\0"):
        names.append("bytes behind the picture")
    read = {"EXIF": has_exif, "XMP": has_xmp}
    return tuple(name for name in dict.fromkeys(names) if not read.get(name))
