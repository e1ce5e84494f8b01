"""The metadata of photo files: EXIF, ICC profile, XMP, IPTC, resolution, texts; and what each format can hold of it.

Everything that a file has besides its pixels is kept, or named in a note. EXIF is copied byte for byte, so that the
offsets in maker notes stay valid; only the orientation and the size are overwritten.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from PIL import ExifTags, Image
from PIL.ExifTags import Base as Tag

from srcnn.photos import boxes, jpeg_parts, photoshop, png_chunks, tiff_tags, webp_chunks
from srcnn.photos.bmp_header import read_profile
from srcnn.photos.heif import colour_space
from srcnn.photos.jpeg_parts import Appended
from srcnn.photos.jpeg_turning import turn_appended
from srcnn.photos.reading import TURNS, orientation_of
from srcnn.photos.tiff_tags import LONG, SHORT, Content, Value, read_tags, write_tags
from srcnn.photos.xmp_claims import without_claims

MAX_SHORT = 65_535
MAX_NAMES, MAX_NAME_LENGTH = 20, 200  # in a note
HEAD_BYTES = 1 << 20  # of an AVIF or HEIC, with its colour space
MAX_DPI = 32_767
MAX_JPEG_EXIF_BYTES = 65_533 - 6  # a JPEG segment, without "Exif\0\0"
MAX_JPEG_XMP_BYTES = 65_533 - 29  # without its name
PREFIX = b"Exif\0\0"
RESOLUTION_CHUNK = b"pHYs"
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")
_XMP_SIZES = [re.compile(rb"((?:" + names + rb")\s*(?:=\s*[\"']|>)\s*)(\d{1,9})\b") for names in (
    rb"tiff:ImageWidth|exif:PixelXDimension", rb"tiff:ImageLength|exif:PixelYDimension")]  # horizontal, vertical
_XMP_PANORAMA = re.compile(rb"(GPano:(?:CroppedArea|FullPano)\w+Pixels\s*(?:=\s*[\"']|>)\s*)(\d{1,9})\b")


@dataclass(frozen=True)
class Metadata:
    """Metadata of an upright photo.

    Attributes:
        exif: a TIFF structure, without the prefix "Exif"; of a TIFF also its other tags.
        icc_profile, xmp: as in the file; without a profile of another colour space than the pixels'.
        dpi: (horizontal, vertical), each 1..MAX_DPI.
        iptc: IPTC-IIM records.
        photoshop: image resources, in which there may be the same records.
        jpeg_segments: whole segments that only JPEG has: comments, the rest of a long XMP, those of cameras.
        appended: what follows a JPEG: gain maps, videos, further pictures.
        png_chunks, png_chunks_after: (type, content) of chunks that only PNG has, before and behind the pixels.
        webp_chunks: the same of WebP.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    iptc: bytes = b""
    photoshop: bytes = b""
    jpeg_segments: bytes = b""
    appended: Appended | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    png_chunks_after: tuple[tuple[bytes, bytes], ...] = ()
    webp_chunks: tuple[tuple[bytes, bytes], ...] = ()

    def resources(self) -> bytes:
        """Photoshop's image resources, with the IPTC records among them."""
        return photoshop.with_iptc(self.photoshop, self.iptc)


# What a format can hold, if it is not too long.
_COMMON = {"exif", "icc_profile", "xmp"}
HELD = {
    "JPEG": _COMMON | {"dpi", "iptc", "photoshop", "jpeg_segments", "appended"},
    "PNG": _COMMON | {"dpi", "iptc", "photoshop", "png_chunks", "png_chunks_after"},
    "TIFF": _COMMON | {"dpi", "iptc", "photoshop"},
    "WEBP": _COMMON | {"webp_chunks"},
    "BMP": {"dpi"},
}
NAMES = {"exif": "EXIF", "icc_profile": "ICC profile", "xmp": "XMP", "dpi": "dpi", "iptc": "IPTC"}
Lost = tuple[str, ...]  # names of what is not kept


def metadata_of(image: Image.Image, content: Content) -> tuple[Metadata, Lost]:
    """The metadata of an opened image (of a PNG: decoded), changed to that of the upright photo; and what it lacks.

    Args:
        content: of the image's file.
    """
    xmp = image.info.get("xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    profile = b"" if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile") or b""
    dpi = _dpi(image.info.get("dpi"))
    orientation = tiff_tags.orientation_of(content, image.tell()) if image.format == "TIFF" else orientation_of(image)
    dpi = (dpi[1], dpi[0]) if dpi and orientation >= 5 else dpi
    xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    across, down = (pattern.search(xmp) for pattern in _XMP_SIZES)
    if orientation >= 5 and across and down:
        xmp = _XMP_SIZES[1].sub(rb"\g<1>" + across[2], _XMP_SIZES[0].sub(rb"\g<1>" + down[2], xmp))
    metadata = Metadata(b"", profile, xmp, dpi)
    lost: Lost = ()
    readers: dict[str, Callable[[Metadata, Content, int], tuple[Metadata, Lost]]] = {
        "JPEG": _with_jpeg_parts, "MPO": _with_jpeg_parts, "PNG": _with_png_chunks, "WEBP": _with_webp_chunks,
        "BMP": _with_bmp_profile, "TIFF": partial(_with_tiff_tags, page=image.tell())}
    if boxes.is_box_file(content):
        lost = boxes.lost_names(content, bool(image.info.get("exif")), bool(xmp))
        if not profile and (space := colour_space(content[:HEAD_BYTES])) and max(space) < 256:
            metadata = replace(metadata, png_chunks=((b"cICP", bytes([*space, 0, 1])),))
    elif reader := readers.get(image.format or ""):
        try:
            metadata, lost = reader(metadata, content, orientation)
        except (ValueError, IndexError, struct.error, zlib.error):
            lost = ("damaged metadata",)
    raw = image.info.get("exif") or metadata.exif
    if image.format != "TIFF" and isinstance(raw, bytes) and raw:
        exif, damaged = _upright_exif(raw.removeprefix(PREFIX), orientation, image.height, image.width)
        metadata, lost = replace(metadata, exif=exif), (*lost, *damaged)
    if orientation != 1:
        metadata = replace(metadata, photoshop=photoshop.without_thumbnails(metadata.photoshop))
    return metadata, lost


def _upright_exif(exif: bytes, orientation: int, width: int, height: int) -> tuple[bytes, Lost]:
    """The EXIF changed to that of the upright photo, whose size this is if it lay on its side."""
    values = {Tag.Orientation: 1} | (size_tags(width, height) if orientation >= 5 else {})
    try:
        return patch_exif(exif, values, keep_thumbnail=orientation == 1), ()
    except (struct.error, ValueError):
        pass
    try:  # what is not damaged of it, written anew
        order, directory, damaged = read_tags(exif)
    except ValueError:
        return b"", ("damaged EXIF",)
    for part in (directory, directory.get(int(ExifTags.IFD.Exif))):
        if isinstance(part, dict):
            part.update({tag: Value(LONG, 1, struct.pack(order + "I", number)) for tag, number in values.items()
                         if tag in part})
    return write_tags(directory, order), (f"damaged EXIF ({', '.join(damaged)})",) if damaged else ()


def _with_jpeg_parts(metadata: Metadata, content: Content, orientation: int) -> tuple[Metadata, Lost]:
    segments, blocks, appended, lost = jpeg_parts.read_parts(content)
    xmp = metadata.xmp
    if appended and orientation != 1:
        appended, xmp, gone = turn_appended(appended, xmp, TURNS[orientation])
        lost = (*lost, *gone)
    return replace(metadata, xmp=xmp, iptc=photoshop.iptc_of(blocks), photoshop=blocks, jpeg_segments=segments,
                   appended=appended), lost


def _with_png_chunks(metadata: Metadata, content: Content, orientation: int) -> tuple[Metadata, Lost]:
    parts = png_chunks.read_chunks(content)
    before, profiles = parts.before, dict(parts.profiles)
    resolutions = [body for kind, body in before if kind == RESOLUTION_CHUNK]
    before = tuple(chunk for chunk in before if chunk[0] != RESOLUTION_CHUNK)
    if resolutions and not metadata.dpi:  # of no unit: the pixels' aspect
        body = resolutions[0]
        before = (*before, (RESOLUTION_CHUNK, body[4:8] + body[:4] + body[8:] if orientation >= 5 else body))
    blocks = profiles.pop("8bim", b"")
    iptc = profiles.pop("iptc", b"")
    if iptc.startswith(photoshop.SIGNATURES):
        blocks, iptc = iptc, b""
    exif = profiles.pop("exif", b"") or profiles.pop("app1", b"")
    profile = metadata.icc_profile or profiles.pop("icc", b"") or profiles.pop("icm", b"")
    lost = tuple(f"profile {name}" for name in profiles if name not in ("icc", "icm", "app1", "xmp"))
    return replace(metadata, exif=exif, icc_profile=profile, xmp=metadata.xmp or profiles.get("xmp", b""),
                   iptc=iptc or photoshop.iptc_of(blocks), photoshop=blocks, png_chunks=before,
                   png_chunks_after=parts.after), (*parts.lost, *lost)


def _with_tiff_tags(metadata: Metadata, content: Content, orientation: int, page: int) -> tuple[Metadata, Lost]:
    skipped = tiff_tags.STORAGE | {tiff_tags.ICC_TAG, tiff_tags.XMP_TAG, Tag.Orientation}
    skipped |= tiff_tags.RESOLUTION_TAGS if metadata.dpi else set()
    order, directory, damaged = read_tags(content, skipped, page)
    unfit = tiff_tags.UNFIT | (tiff_tags.GEOREFERENCE if orientation != 1 else {})
    lost = [name for tag, name in unfit.items() if directory.pop(tag, None)]
    if damaged:
        lost.append(f"damaged tags ({', '.join(damaged)})")
    own = [directory.pop(tag, None) for tag in (tiff_tags.IPTC_TAG, tiff_tags.PHOTOSHOP_TAG)]
    iptc, blocks = (value.data if isinstance(value, Value) else b"" for value in own)
    return replace(metadata, exif=write_tags(directory, order), iptc=iptc or photoshop.iptc_of(blocks),
                   photoshop=blocks), tuple(lost)


def _with_webp_chunks(metadata: Metadata, content: Content, _: int) -> tuple[Metadata, Lost]:
    chunks, lost = webp_chunks.read_chunks(content)
    return replace(metadata, webp_chunks=chunks), lost


def _with_bmp_profile(metadata: Metadata, content: Content, _: int) -> tuple[Metadata, Lost]:
    profile, lost = read_profile(content)
    return replace(metadata, icc_profile=metadata.icc_profile or profile), lost


def size_tags(width: int, height: int) -> dict[int, int]:
    """The EXIF tags that hold a photo's size, with these values."""
    return {Tag.ExifImageWidth: width, Tag.ExifImageHeight: height, Tag.ImageWidth: width, Tag.ImageLength: height}


def with_size(metadata: Metadata, width: int, height: int, scale: float = 1.0) -> Metadata:
    """The metadata of the photo at another size, `scale` times as large; keeps a thumbnail and a gain map."""
    xmp = _XMP_PANORAMA.sub(lambda match: match[1] + b"%d" % round(int(match[2]) * scale), metadata.xmp)
    for pattern, side in zip(_XMP_SIZES, (width, height), strict=True):
        xmp = pattern.sub(rb"\g<1>%d" % side, xmp)
    exif = metadata.exif
    try:
        exif = patch_exif(exif, size_tags(width, height))
        order, directory, *_ = read_tags(exif) if exif else ("<", {})
        if tiff_tags.rescale(directory, order, scale):
            exif = write_tags(directory, order)
    except (struct.error, ValueError):  # the EXIF is invalid, as some editors write it
        pass
    return replace(metadata, exif=exif, xmp=xmp)


def patch_exif(exif: bytes, values: Mapping[int, int], keep_thumbnail: bool = True) -> bytes:
    """EXIF with new values of those of these tags that it has; no other byte moves.

    TIFF 6.0, section 2: an image file directory (IFD) is a count, entries of 12 bytes, and the offset of the next IFD,
    which is the thumbnail's; without `keep_thumbnail` that offset is set to 0.

    Raises:
        ValueError, struct.error: not a valid TIFF structure.
    """
    if not exif:
        return exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("not a TIFF structure")
    patched = bytearray(exif)
    ifds = list(struct.unpack_from(order + "I", exif, 4))
    for start in ifds:
        num_entries, = struct.unpack_from(order + "H", exif, start)
        end = start + 2 + 12 * num_entries
        for offset in range(start + 2, end, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHII", exif, offset)
            if tag == ExifTags.IFD.Exif and len(ifds) == 1:
                ifds.append(value)
            elif tag in values:
                if count != 1 or kind not in (SHORT, LONG):
                    raise ValueError(f"tag {tag} is not a single integer")
                number = values[tag]
                kind = LONG if number > MAX_SHORT else kind
                struct.pack_into(order + "HI" + ("I" if kind == LONG else "H"), patched, offset + 2, kind, 1, number)
        if start == ifds[0] and not keep_thumbnail:
            struct.pack_into(order + "I", patched, end, 0)
    return bytes(patched)


def _dpi(value: Any) -> tuple[float, float] | None:
    resolution = tuple(map(float, value or ()))
    if len(resolution) != 2 or not all(1 <= side <= MAX_DPI for side in resolution):
        return None
    return resolution[0], resolution[1]


def drop_unsupported(metadata: Metadata, kind: str) -> tuple[Metadata, tuple[str, ...]]:
    """The part of the metadata that a format ("JPEG", "PNG", "TIFF", "WEBP", "BMP") can hold, and notes on the rest."""
    dropped = [field.name for field in fields(Metadata) if field.name not in HELD[kind]]
    lost = [name for field in dropped for name in _names(metadata, field)]
    metadata = replace(metadata, **{name: getattr(Metadata(), name) for name in dropped})
    if kind == "JPEG" and len(metadata.exif) > MAX_JPEG_EXIF_BYTES:
        exif, names = tiff_tags.shortened(metadata.exif, MAX_JPEG_EXIF_BYTES)
        lost.append(f"EXIF ({', '.join(names) or 'thumbnail'})" if exif else "EXIF")
        metadata = replace(metadata, exif=exif)
    if kind == "JPEG" and len(metadata.xmp) > MAX_JPEG_XMP_BYTES:
        lost.append("XMP")
        metadata = replace(metadata, xmp=b"")
    if kind == "TIFF" and metadata.exif:
        exif, names = _exif_in_tiff(metadata)
        lost += names
        metadata = replace(metadata, exif=exif)
    if metadata.xmp and metadata.appended is None:
        xmp = without_claims(metadata.xmp)
        lost += [] if xmp else ["damaged XMP"]
        metadata = replace(metadata, xmp=xmp)
    return metadata, note_of(f"not kept, {kind} cannot hold it", lost)


def note_of(reason: str, names: Iterable[str]) -> tuple[str, ...]:
    """A note on what is not kept, none without names; without control characters, which names in files may have."""
    names = list(dict.fromkeys(names))
    more = [f"{len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    text = ", ".join([*(name[:MAX_NAME_LENGTH] for name in names[:MAX_NAMES]), *more])
    return (f"{reason}: {''.join(c if c.isprintable() else '?' for c in text)}",) if names else ()


def _names(metadata: Metadata, field: str) -> list[str]:
    """What a field holds, for a note."""
    if not (value := getattr(metadata, field)):
        return []
    if field == "photoshop":
        blocks = photoshop.blocks_of(value)
        return ["Photoshop's data"] if any(block.number != photoshop.IPTC for block in blocks) else []
    if field == "jpeg_segments":
        return jpeg_parts.segment_names(value)
    if field == "appended":
        return jpeg_parts.appended_names(value, metadata.xmp)
    if field in ("png_chunks", "png_chunks_after"):
        return png_chunks.chunk_names(value, bool(metadata.icc_profile))
    if field == "webp_chunks":
        return [webp_chunks.chunk_name(chunk) for chunk, _ in value]
    return [NAMES[field]]


def _exif_in_tiff(metadata: Metadata) -> tuple[bytes, list[str]]:
    """The EXIF without tags that a TIFF has for itself, and names of those that do not fit."""
    skipped = tiff_tags.STORAGE | tiff_tags.OWN_FIELDS | (tiff_tags.RESOLUTION_TAGS if metadata.dpi else set())
    try:
        order, directory, damaged = read_tags(metadata.exif, skipped)
    except ValueError:
        return b"", ["EXIF"]
    lost = [name for tag, name in tiff_tags.UNFIT.items() if directory.pop(tag, None)]
    return write_tags(directory, order), lost + [f"damaged EXIF ({', '.join(damaged)})"] * bool(damaged)


def pillow_options(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Keyword arguments for Pillow's `save` of a JPEG or WebP; the metadata must come from `drop_unsupported`."""
    options: dict[str, Any] = {"exif": PREFIX + metadata.exif if metadata.exif else None, "dpi": metadata.dpi,
                               "icc_profile": metadata.icc_profile, "xmp": metadata.xmp}
    if kind == "JPEG":
        index = jpeg_parts.index_segments(metadata.appended) if metadata.appended else b""
        options["extra"] = index + jpeg_parts.photoshop_segments(metadata.resources()) + metadata.jpeg_segments
    return {name: value for name, value in options.items() if value}
