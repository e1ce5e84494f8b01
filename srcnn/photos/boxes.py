"""Names what is in files of boxes (AVIF, HEIC, JPEG 2000, JPEG XL) and is not kept by reading them."""

from __future__ import annotations

from srcnn.photos.iso_boxes import boxes
from srcnn.photos.tiff_tags import Content

MAX_META_BYTES = 16 << 20
FIRST = {b"ftyp", b"JXL ", b"jP  "}  # types of the first box
STORAGE = {*FIRST, b"meta", b"mdat", b"idat", b"moov", b"free", b"skip", b"wide", b"pdin", b"styp", b"jp2h", b"jp2c",
           b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd", b"brob"}
C2PA = "C2PA signature (of the picture as it was)"
NAMES = {b"mpvd": "video", b"jhgm": "gain map", b"jumb": C2PA}
UUIDS = {  # types of boxes "uuid"
    bytes.fromhex("d8fec3d61b0e483c92975828877ec481"): C2PA,
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "XMP", b"JpgTiffExif->JP2": "EXIF",
}


def is_box_file(content: Content) -> bool:
    """Whether a file consists of boxes."""
    return content[4:8] in FIRST


def lost_names(content: Content, has_exif: bool, has_xmp: bool) -> tuple[str, ...]:
    """Names of what a file has besides the picture, and besides EXIF and XMP if these were read."""
    names, end = [], 0
    for kind, start, end in boxes(content):
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
