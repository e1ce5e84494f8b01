"""The metadata of photo files: EXIF, ICC profile, XMP, resolution, texts; and what each format can hold of it.

EXIF is copied byte for byte, so that the offsets in maker notes stay valid; only the orientation and the size are
overwritten.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from srcnn.photos.reading import ORIENTATION_TAG, orientation_of

XMP_TAG = 700  # in a TIFF
SHORT, LONG = 3, 4  # TIFF field types
MAX_SHORT = 65_535
MAX_DPI = 32_767
MAX_JPEG_EXIF_BYTES = 65_533 - 6  # a JPEG segment, without "Exif\0\0"
MAX_JPEG_XMP_BYTES = 65_533 - 29  # without its name
TIFF_TEXT_TAGS = {270, 271, 272, 305, 306, 315, 316, 33432}  # description, maker, model, ... copyright
JPEG_SEGMENTS = {"APP13": 0xED, "COM": 0xFE}  # IPTC and Photoshop; comment
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")


@dataclass(frozen=True)
class Metadata:
    """Metadata of an upright photo.

    Attributes:
        exif: a TIFF structure, without the prefix "Exif".
        icc_profile, xmp: as in the file; without a profile of another colour space than the pixels'.
        dpi: (horizontal, vertical), each 1..MAX_DPI.
        jpeg_segments: whole segments that only JPEG has: IPTC, comments, the rest of a long XMP.
        png_chunks: (type, content) of chunks that only PNG has: texts, gamma, primaries.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    jpeg_segments: bytes = b""
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()


# What a format cannot hold, in any length.
UNSUPPORTED = {
    "JPEG": ("png_chunks",), "PNG": ("jpeg_segments",), "TIFF": ("jpeg_segments", "png_chunks"),
    "WEBP": ("dpi", "jpeg_segments", "png_chunks"),
    "BMP": ("exif", "icc_profile", "xmp", "jpeg_segments", "png_chunks"),
}
NAMES = {"exif": "EXIF", "icc_profile": "ICC profile", "xmp": "XMP", "dpi": "dpi", "jpeg_segments": "IPTC or comments",
         "png_chunks": "texts or gamma of the PNG"}


def metadata_of(image: Image.Image) -> Metadata:
    """The metadata of an opened image (of a PNG: decoded), changed to that of the upright photo."""
    xmp = image.info.get("xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    profile = b"" if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile") or b""
    return Metadata(exif_of(image), profile, _XMP_ORIENTATION.sub(rb"\g<1>1", xmp), _dpi(image.info.get("dpi")),
                    _jpeg_segments(image), _png_chunks(image))


def exif_of(image: Image.Image) -> bytes:
    """The EXIF of an image, changed to that of the upright photo; b"" without EXIF."""
    raw = image.info.get("exif") or b""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) and isinstance(raw, bytes):
        orientation = orientation_of(image)
        values = {ORIENTATION_TAG: 1} | (size_tags(image.height, image.width) if orientation >= 5 else {})
        try:
            return patch_exif(raw.removeprefix(PREFIX), values, keep_thumbnail=orientation == 1)
        except (struct.error, ValueError):  # damaged or unusual: Pillow rewrites it as far as it can
            pass
    try:
        exif = image.getexif()
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # its other tags describe how the pixels are stored
            exif = text_tags(exif)
        exif.pop(ORIENTATION_TAG, None)
        return exif.tobytes().removeprefix(PREFIX) if len(exif) else b""
    except Exception:  # damaged: Pillow raises struct.error, SyntaxError, ...
        return b""


def size_tags(width: int, height: int) -> dict[int, int]:
    """The EXIF tags that hold a photo's size, with these values."""
    return {int(ExifTags.Base.ExifImageWidth): width, int(ExifTags.Base.ExifImageHeight): height,
            int(ExifTags.Base.ImageWidth): width, int(ExifTags.Base.ImageLength): height}


def with_size(metadata: Metadata, width: int, height: int) -> Metadata:
    """The metadata of the photo at another size; keeps a thumbnail."""
    try:
        return replace(metadata, exif=patch_exif(metadata.exif, size_tags(width, height)))
    except (struct.error, ValueError):  # the EXIF is invalid, as some editors write it
        return metadata


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


def text_tags(exif: Image.Exif) -> Image.Exif:
    """New EXIF with the texts and the sub-IFDs, and without the tags that describe how pixels are stored."""
    texts = Image.Exif()
    for tag in TIFF_TEXT_TAGS & exif.keys():
        texts[tag] = exif[tag]
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        texts.get_ifd(ifd).update(exif.get_ifd(ifd))
    return texts


def _dpi(value: Any) -> tuple[float, float] | None:
    resolution = tuple(map(float, value or ()))
    if len(resolution) != 2 or not all(1 <= side <= MAX_DPI for side in resolution):
        return None
    return resolution[0], resolution[1]


def _jpeg_segments(image: Image.Image) -> bytes:
    segments = []
    for name, content in getattr(image, "applist", ()):
        if name in JPEG_SEGMENTS or name == "APP1" and content.startswith(EXTENDED_XMP):
            segments.append(struct.pack(">BBH", 0xFF, JPEG_SEGMENTS.get(name, 0xE1), 2 + len(content)) + content)
    return b"".join(segments)


def _png_chunks(image: Image.Image) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return ()
    texts = PngImagePlugin.PngInfo()
    for key, text in image.text.items():
        if key == "XML:com.adobe.xmp" or key.startswith("Raw profile type"):
            continue  # XMP, and EXIF and ICC profile as ImageMagick writes them
        if isinstance(text, PngImagePlugin.iTXt):
            texts.add_itxt(key, text, text.lang or "", text.tkey or "")
        else:
            texts.add_text(key, text)
    chunks = [(bytes(chunk[0]), bytes(chunk[1])) for chunk in texts.chunks]
    if "gamma" in image.info:
        chunks.append((b"gAMA", struct.pack(">I", round(image.info["gamma"] * 100_000))))
    if "chromaticity" in image.info:
        chunks.append((b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in image.info["chromaticity"]))))
    if "srgb" in image.info:
        chunks.append((b"sRGB", bytes([image.info["srgb"]])))
    return tuple(chunks)


def drop_unsupported(metadata: Metadata, kind: str) -> tuple[Metadata, tuple[str, ...]]:
    """The part of the metadata that a format ("JPEG", "PNG", "TIFF", "WEBP", "BMP") can hold, and notes on the rest."""
    dropped = list(UNSUPPORTED[kind])
    if kind == "JPEG":
        limits = {"exif": MAX_JPEG_EXIF_BYTES, "xmp": MAX_JPEG_XMP_BYTES}
        dropped += [name for name, limit in limits.items() if len(getattr(metadata, name)) > limit]
    lost = [text for name, text in NAMES.items() if name in dropped and getattr(metadata, name)]
    notes = (f"not kept, {kind} cannot hold it: {', '.join(lost)}",) if lost else ()
    return replace(metadata, **{name: getattr(Metadata(), name) for name in dropped}), notes


def pillow_options(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Keyword arguments for Pillow's `save`; the metadata must come from `drop_unsupported`."""
    options: dict[str, Any] = {"exif": PREFIX + metadata.exif if metadata.exif else None, "dpi": metadata.dpi,
                               "icc_profile": metadata.icc_profile}
    if kind == "JPEG":
        options |= {"xmp": metadata.xmp, "extra": metadata.jpeg_segments}
    elif kind == "WEBP":
        options |= {"xmp": metadata.xmp}
    elif kind == "PNG":
        options["pnginfo"] = _png_info(metadata)
    elif kind == "TIFF" and (metadata.exif or metadata.xmp):
        original, exif = Image.Exif(), Image.Exif()
        original.load(metadata.exif)
        exif.load(text_tags(original).tobytes())  # Pillow writes only sub-IFDs that were loaded
        if metadata.xmp:
            exif[XMP_TAG] = metadata.xmp
        options["exif"] = exif
    return {name: value for name, value in options.items() if value}


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for kind, content in metadata.png_chunks:
        info.add(kind, content)
    if metadata.xmp:  # XMP specification part 3, section 1.1.5: an uncompressed international text
        info.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    return info
