"""What a photo file holds beside its pixels, and how each format takes it: EXIF, ICC profile, XMP, dpi, texts.

EXIF is carried over byte for byte, so that maker notes keep their offsets; only the orientation, and a size that it
changes, are written into it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from srcnn.photos.reading import ORIENTATION_TAG, orientation_of

XMP_TAG = 700  # of a TIFF
SHORT, LONG = 3, 4  # kinds of numbers of a TIFF
MAX_SHORT = 65_535
MAX_DPI = 32_767
MAX_JPEG_EXIF_BYTES = 65_533 - 6  # a JPEG segment, without "Exif\0\0"
MAX_JPEG_XMP_BYTES = 65_533 - 29  # without its name
TIFF_TEXT_TAGS = {270, 271, 272, 305, 306, 315, 316, 33432}  # description, maker, model, ... copyright
JPEG_SEGMENTS = {"APP13": 0xED, "COM": 0xFE}  # IPTC and Photoshop's; a comment
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")


@dataclass(frozen=True)
class Metadata:
    """Of an upright photo.

    Attributes:
        exif: a TIFF structure, without the "Exif" before it.
        icc_profile, xmp: as in the file; no profile of another colour space than the pixels have.
        dpi: horizontal, vertical, where every format can hold it.
        jpeg_segments: what only a JPEG holds, whole segments: IPTC, comments, the rest of a long XMP.
        png_chunks: what only a PNG holds: texts, gamma and primaries.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    jpeg_segments: bytes = b""
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()


def metadata_of(image: Image.Image) -> Metadata:
    """What an opened (PNG: decoded) image has, as of the upright photo."""
    found = image.info.get("xmp") or b""
    xmp = found.encode() if isinstance(found, str) else bytes(found)
    profile = b"" if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile") or b""
    return Metadata(exif_of(image), profile, _XMP_ORIENTATION.sub(rb"\g<1>1", xmp), _dpi(image.info.get("dpi")),
                    _jpeg_segments(image), _png_chunks(image))


def exif_of(image: Image.Image) -> bytes:
    """The EXIF of an image as of the upright photo; b"" where there is none."""
    raw = image.info.get("exif") or b""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) and isinstance(raw, bytes):
        turned = orientation_of(image)
        values = {ORIENTATION_TAG: 1} | (sizes(image.height, image.width) if turned in (5, 6, 7, 8) else {})
        try:
            return patched_exif(raw.removeprefix(PREFIX), values, keep_thumbnail=turned == 1)
        except (struct.error, ValueError):  # damaged, or laid out oddly: what Pillow makes of it
            pass
    try:
        exif = image.getexif()
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose tags also say how its pixels are stored
            exif = text_tags(exif)
        exif.pop(ORIENTATION_TAG, None)
        return exif.tobytes().removeprefix(PREFIX) if len(exif) else b""
    except Exception:  # damaged: Pillow raises struct.error, SyntaxError, ...
        return b""


def sizes(width: int, height: int) -> dict[int, int]:
    """The tags in which EXIF tells a photo's size."""
    return {int(ExifTags.Base.ExifImageWidth): width, int(ExifTags.Base.ExifImageHeight): height,
            int(ExifTags.Base.ImageWidth): width, int(ExifTags.Base.ImageLength): height}


def resized(metadata: Metadata, width: int, height: int) -> Metadata:
    """As of the photo at another size. A thumbnail may stay."""
    try:
        return replace(metadata, exif=patched_exif(metadata.exif, sizes(width, height)))
    except (struct.error, ValueError):  # told wrongly, as by a camera's own editor
        return metadata


def patched_exif(exif: bytes, values: Mapping[int, int], keep_thumbnail: bool = True) -> bytes:
    """EXIF with other numbers in these tags, where it has them, and all else in its place.

    TIFF 6.0, section 2: an image file directory is a count, entries of 12 bytes, and the offset of the next one, which
    is the thumbnail's; without it, that is unlinked.

    Raises:
        ValueError, struct.error: not such a structure.
    """
    if not exif:
        return exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF structure")
    changed = bytearray(exif)
    folders = list(struct.unpack_from(order + "I", exif, 4))
    for start in folders:
        num_entries, = struct.unpack_from(order + "H", exif, start)
        end = start + 2 + 12 * num_entries
        for place in range(start + 2, end, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHII", exif, place)
            if tag == ExifTags.IFD.Exif and len(folders) == 1:
                folders.append(value)
            elif tag in values:
                if count != 1 or kind not in (SHORT, LONG):
                    raise ValueError(f"tag {tag} is no single number")
                number = values[tag]
                kind = LONG if number > MAX_SHORT else kind
                struct.pack_into(order + "HI" + ("I" if kind == LONG else "H"), changed, place + 2, kind, 1, number)
        if start == folders[0] and not keep_thumbnail:
            struct.pack_into(order + "I", changed, end, 0)
    return bytes(changed)


def text_tags(found: Image.Exif) -> Image.Exif:
    """The tags that say nothing of how pixels are stored, as new EXIF."""
    exif = Image.Exif()
    for tag in TIFF_TEXT_TAGS & found.keys():
        exif[tag] = found[tag]
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        exif.get_ifd(folder).update(found.get_ifd(folder))
    return exif


def _dpi(found: Any) -> tuple[float, float] | None:
    resolution = tuple(map(float, found or ()))
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


def fitted(metadata: Metadata, kind: str) -> tuple[Metadata, tuple[str, ...]]:
    """What a format ("JPEG", "PNG", "TIFF", "WEBP", "BMP") can hold of it, and notes on the rest."""
    lost: dict[str, Any] = {}
    if kind == "BMP":
        lost = {"exif": b"", "icc_profile": b"", "xmp": b""}
    if kind == "JPEG":
        lost |= {"exif": b""} if len(metadata.exif) > MAX_JPEG_EXIF_BYTES else {}
        lost |= {"xmp": b""} if len(metadata.xmp) > MAX_JPEG_XMP_BYTES else {}
    if kind != "JPEG":
        lost["jpeg_segments"] = b""
    if kind != "PNG":
        lost["png_chunks"] = ()
    if kind == "WEBP":
        lost["dpi"] = None
    names = {"exif": "EXIF", "icc_profile": "ICC profile", "xmp": "XMP", "dpi": "dpi",
             "jpeg_segments": "IPTC or comments", "png_chunks": "texts or gamma of the PNG"}
    told = [names[name] for name in lost if getattr(metadata, name)]
    notes = (f"not kept, {kind} cannot hold it: {', '.join(told)}",) if told else ()
    return replace(metadata, **lost), notes


def pillow_options(metadata: Metadata, kind: str) -> dict[str, Any]:
    """How Pillow's `save` takes metadata that is `fitted` to the format."""
    options: dict[str, Any] = {"exif": PREFIX + metadata.exif if metadata.exif else None, "dpi": metadata.dpi,
                               "icc_profile": metadata.icc_profile}
    if kind == "JPEG":
        options |= {"xmp": metadata.xmp, "extra": metadata.jpeg_segments}
    elif kind == "WEBP":
        options |= {"xmp": metadata.xmp}
    elif kind == "PNG":
        options["pnginfo"] = _png_info(metadata)
    elif kind == "TIFF" and (metadata.exif or metadata.xmp):
        found, exif = Image.Exif(), Image.Exif()
        found.load(metadata.exif)
        exif.load(text_tags(found).tobytes())  # its folders are written where it was loaded with them
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
