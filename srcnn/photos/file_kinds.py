"""Says what a file is that is not read as a photo, by its first bytes, and what to do with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

from PIL import TiffImagePlugin

from srcnn.runtime.untrusted import open_regular

HEAD_BYTES = 256
MAX_SEGMENTS = 10_000  # of a JPEG that are walked for its frame header
# Many begin as a TIFF, of a small preview.
RAW_SUFFIXES = frozenset(".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
                         ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split())
IMAGE_SUFFIXES = frozenset(".avif .dds .exr .gif .heic .heif .hif .j2k .jp2 .jpf .jpx .jxl .jxr .pcx .psb .psd .tga "
                           ".wdp .xcf".split())  # where the first bytes do not tell
READ = rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM|II[*+]\0|MM\0[*+]"  # formats that are read
RAW = "a camera's RAW file, which is not read; develop it first, for example with darktable or RawTherapee"
CONVERT = "which is not read; convert it to PNG first, for example: "
# Of ISO base media files (ISO/IEC 14496-12), by the brands in their first box; an AVIF has brands of HEIF, too.
BRANDS = {
    b"avif": f"AVIF, {CONVERT}avifdec photo.avif photo.png", b"avis": f"AVIF, {CONVERT}avifdec photo.avif photo.png",
    b"crx ": RAW,
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
                    f"HEIC, {CONVERT}heif-convert photo.heic photo.png"),
}
IMAGES = {
    rb"GIF8[79]a": "GIF, which is not read; save the frame you want as PNG",
    rb"\xff\x0a|\0\0\0\x0cJXL ": f"JPEG XL, {CONVERT}djxl photo.jxl photo.png",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": f"JPEG 2000, {CONVERT}opj_decompress -i photo.jp2 -o photo.png",
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
FLOATS = (3, 6)  # TIFF sample formats: numbers, complex numbers
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of JPEG: SOF0 to SOF15


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
        brands = head[8 : min(HEAD_BYTES, int.from_bytes(head[:4], "big"))]
        found = {brands[start : start + 4] for start in range(0, len(brands), 4)}
        return next((kind for brand, kind in BRANDS.items() if brand in found), "")
    if kind := _match(IMAGES, head):
        return kind
    if head.startswith(b"\xff\xd8\xff"):
        return _unread_jpeg(file)
    return _unread_tiff(file) if re.match(rb"II[*+]\0|MM\0[*+]", head) else ""


def content_problem(path: Path) -> str:
    """What a file is that could not be identified as a photo: `unread_kind`, or empty, or a video, ...; else ""."""
    if kind := unread_kind(path):
        return kind
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return ""
    return _match(OTHERS, head) if head else "is empty (0 bytes)"


def _match(kinds: dict[bytes, str], head: bytes) -> str:
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, head, re.DOTALL)), "")


def _unread_tiff(file: IO[bytes]) -> str:
    file.seek(0)
    header = file.read(8)
    if b"+" in header[2:4]:  # BigTIFF, whose header has 16 bytes
        header += file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(directory.next)
    directory.load(file)
    compression, bits = directory.get(259, 1), max(directory.get(258, (1,)))
    if compression in TIFF_COMPRESSIONS:
        return f"a TIFF compressed as {TIFF_COMPRESSIONS[compression]}, which is not read; save it uncompressed"
    if directory.get(339, (1,))[0] in FLOATS:
        return "a TIFF of floating-point numbers, which have no defined range; save it with 8 or 16 bits"
    return f"a TIFF of {bits} bits a channel, which is not read; save it with 8 or 16 bits" if bits > 16 else ""


def _unread_jpeg(file: IO[bytes]) -> str:
    """Walks the segments to the frame header: its first byte is the precision (ITU-T T.81, section B.2.2)."""
    file.seek(2)
    for _ in range(MAX_SEGMENTS):
        marker, length = file.read(2), int.from_bytes(file.read(2), "big")
        if marker[:1] != b"\xff" or length < 2:  # damaged, or at its end
            return ""
        if marker[1] in FRAME_MARKERS:
            bits = file.read(1)[0]
            return "" if bits == 8 else f"a JPEG of {bits} bits a channel, which is not read; convert it to PNG"
        file.seek(length - 2, 1)
    return ""
