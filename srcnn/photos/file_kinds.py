"""Says what a file is that is not read as a photo, by its first bytes, and what to do with it."""

from __future__ import annotations

import importlib.util
import mmap
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from PIL import features
from PIL.ExifTags import Base as Tag

from srcnn.photos.heif import AVIF_BRANDS, MISSING, brands_of, is_heic
from srcnn.photos.jpeg_markers import FRAMES, segments
from srcnn.photos.tiff_pages import directories
from srcnn.runtime.untrusted import open_regular

HEAD_BYTES = 256
# Many begin as a TIFF, of a small preview.
RAW_SUFFIXES = frozenset(".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
                         ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split())
IMAGE_SUFFIXES = frozenset(".dds .exr .gif .jxr .pcx .psb .psd .tga .wdp .xcf".split())  # if the content does not tell
TIFF = rb"II[*+]\0|MM\0[*+]"
JPEG2000 = rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"
# Formats that are read; those that begin with "ftyp", AVIF and HEIC, are told apart by brands.
READ = rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM|II[*+]\0|MM\0[*+]|....ftyp|\xff\x0a|\0\0\0\x0cJXL |" + JPEG2000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "JXL", "HEIF")
NAMES = "JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC, JPEG XL, JPEG 2000"
OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # features of Pillow
UPGRADE = "which this installation of Pillow does not read: pip install --upgrade pillow"
RAW = "a camera's RAW file, which is not read; develop it first, for example with darktable or RawTherapee"
CONVERT = "which is not read; convert it to PNG first, for example: "
IMAGES = {
    rb"GIF8[79]a": "GIF, which is not read; save the frame you want as PNG",
    rb"8BPS\0": "a Photoshop file (PSD), which is not read; export it as PNG or TIFF",
    rb"gimp xcf": "a GIMP file (XCF), which is not read; export it as PNG or TIFF",
    rb"II\*\0....CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM|II\x1a\0\0\0HEAPCCDR": RAW,
    rb"II\xbc": f"JPEG XR, {CONVERT}JxrDecApp -i photo.jxr -o photo.png",
    rb"(?s:.{128}DICM)": f"DICOM, {CONVERT}dcm2img photo.dcm photo.png",
    **{pattern: f"{name}, {CONVERT}magick photo.{suffix} photo.png" for pattern, name, suffix in (
        (rb"v/1\x01", "OpenEXR", "exr"), (rb"#\?(?:RADIANCE|RGBE)", "Radiance HDR", "hdr"),
        (rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s|P7\nWIDTH", "PNM", "ppm"), (rb"DDS \|", "DDS", "dds"),
        (rb"\0\0\x01\0[^\0]\0", "an icon (ICO)", "ico"), (rb"icns\0", "an icon (ICNS)", "icns"),
        (rb"qoif\0", "QOI", "qoi"), (rb"SIMPLE  =", "FITS", "fits"), (rb"\x8aMNG", "MNG", "mng"),
        (rb"AT&TFORM", "DjVu", "djvu"), (rb"BPG\xfb", "BPG", "bpg"))},
}
OTHERS = {
    rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ": "a video, not a photo",
    rb"PK\x03\x04": "a ZIP archive, not a photo; unpack it first",
    rb"%PDF": "a PDF, not a photo; extract its pictures first, for example: pdfimages -all file.pdf photo",
    rb"(?i:\s*<(?:!doctype html|html))": "a web page, not a photo; download the photo itself",
}
TIFF_COMPRESSIONS = {**dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"), 50001: "WebP", 50002: "JPEG XL",
                     52546: "JPEG XL", 34887: "LERC"}
MAX_BANDS = (6, 4)  # of 8 bits, of more
FLOATS = (3, 6)  # TIFF sample formats: numbers, complex numbers


@lru_cache
def pillow_formats() -> frozenset[str]:
    """Those of FORMATS that this installation of Pillow reads."""
    supported = features.get_supported()
    return frozenset(FORMATS) - {"JXL", "HEIF"} - {name for name, part in OPTIONAL.items() if part not in supported}


def unread_kind(path: Path) -> str:
    """What an image file of a kind that is not read is, and what to do; "" for any other file."""
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES:
        return RAW
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
            if kind := _unread_content(file, head):
                return kind
    except Exception:  # no permission, or damaged in its tags; reading it says more
        return ""
    is_read = re.match(READ, head, re.DOTALL) is not None
    if is_read or suffix not in IMAGE_SUFFIXES:
        return ""
    return f"{suffix[1:].upper()}, {CONVERT}magick photo{suffix} photo.png"


def _unread_content(file: IO[bytes], head: bytes) -> str:
    if head[4:8] == b"ftyp":
        if b"crx " in (found := brands_of(head)):
            return RAW
        if is_heic(head):
            return "" if importlib.util.find_spec("pillow_heif") else MISSING
        return f"AVIF, {UPGRADE}" if b"avif" in found and "AVIF" not in pillow_formats() else ""
    if re.match(JPEG2000, head) and "JPEG2000" not in pillow_formats():
        return f"JPEG 2000, {UPGRADE}"
    if kind := _match(IMAGES, head):
        return kind
    if head.startswith(b"\xff\xd8\xff"):
        return _unread_jpeg(file)
    return _unread_tiff(file) if re.match(TIFF, head) else ""


def content_problem(path: Path) -> str:
    """What a file is that could not be identified as a photo: `unread_kind`, or empty, or a video, ...; else ""."""
    if kind := unread_kind(path):
        return kind
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return ""
    if is_heic(head) or AVIF_BRANDS & brands_of(head):
        return f"a damaged {'HEIC' if is_heic(head) else 'AVIF'}, or one of a kind that is not read"
    return _match(OTHERS, head) if head else "is empty (0 bytes)"


def unidentified(path: Path) -> str:
    """What to say of a file that neither Pillow identified nor `content_problem` names."""
    with suppress(Exception), open_regular(path) as file:
        if re.match(TIFF, file.read(4), re.DOTALL):
            tags = next(directories(file))
            depth = f"{tags.get(Tag.SamplesPerPixel, 1)} bands of {max(tags.get(Tag.BitsPerSample, (1,)))} bits"
            return f"a TIFF with {depth} that is not read, or damaged; save it as grey or RGB of 8 or 16 bits"
    return f"not a photo in one of the formats {NAMES}, or damaged"


def _match(kinds: dict[bytes, str], head: bytes) -> str:
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, head, re.DOTALL)), "")


def _unread_tiff(file: IO[bytes]) -> str:
    tags = next(directories(file))
    compression, bits = tags.get(Tag.Compression, 1), max(tags.get(Tag.BitsPerSample, (1,)))
    if compression in TIFF_COMPRESSIONS:
        return f"a TIFF compressed as {TIFF_COMPRESSIONS[compression]}, which is not read; save it uncompressed"
    if tags.get(Tag.SampleFormat, (1,))[0] in FLOATS:
        return "a TIFF of floating-point numbers, which have no defined range; save it with 8 or 16 bits"
    if bits > 16:
        return f"a TIFF of {bits} bits a channel, which is not read; save it with 8 or 16 bits"
    num_bands = tags.get(Tag.SamplesPerPixel, 1)
    is_read = num_bands <= MAX_BANDS[bits > 8]
    return "" if is_read else f"a TIFF of {num_bands} bands, too many to be read; save its colours alone"


def _unread_jpeg(file: IO[bytes]) -> str:
    """By the first byte of the frame header, the precision: ITU-T T.81, section B.2.2."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        bits = next((content[start] for marker, start, _ in segments(content) if marker in FRAMES), 8)
    return "" if bits == 8 else f"a JPEG of {bits} bits a channel, which is not read; convert it to PNG"
