"""Photo files made byte by byte, with what a reader has to find in them: formats x modes x metadata x sizes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageCms

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # colour type by the number of channels
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmp:Rating="4"{attribute}
xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
xmlns:dc="http://purl.org/dc/elements/1.1/">{element}<dc:creator><rdf:Seq><rdf:li>Zoë Öz</rdf:li></rdf:Seq></dc:creator>
</rdf:Description></rdf:RDF></x:xmpmeta>{padding}<?xpacket end="w"?>"""


class Made(NamedTuple):
    """A photo file. `pixels` (uint8 or uint16, (H, W) or (H, W, 3)) and `alpha` are upright, as a viewer shows them."""

    content: bytes
    pixels: np.ndarray
    alpha: np.ndarray | None = None


def drawn(height: int, width: int, channels: int = 3, bits: int = 8, seed: int = 0) -> np.ndarray:
    """A photo of slopes, stripes, an edge and noise in all its bits: (H, W) or (H, W, channels)."""
    random = np.random.default_rng((seed, height, width, channels, bits))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(2, 9) + y / random.uniform(2, 9)) for _ in range(channels)]
    slope = (x + 2 * y) / (width + 2 * height)
    scene = 0.5 + 0.2 * np.stack(waves, -1) + 0.3 * (slope[..., None] - 0.5) + 0.15 * (x > width // 2)[..., None]
    levels = (scene + random.normal(0, 0.02, scene.shape)).clip(0, 1) * (2**bits - 1)
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return levels.round().astype(np.uint16 if bits > 8 else np.uint8).reshape(shape)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What the EXIF standard says a viewer shows of stored pixels: where its row 0 and its column 0 are seen."""
    if orientation >= 5:  # row 0 is a side: left, right, right, left
        stored = np.swapaxes(stored, 0, 1)
    mirrored = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(stored, mirrored))


def split(stored: np.ndarray, orientation: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored channels -> (upright pixels, upright alpha or None)."""
    shown = upright(stored, orientation)
    if shown.ndim == 3 and shown.shape[2] in (2, 4):
        return np.ascontiguousarray(shown[..., 0] if shown.shape[2] == 2 else shown[..., :3]), shown[..., -1]
    return shown, None


def exif(orientation: int = 1, thumbnail: bool = False) -> bytes:
    """A TIFF block as cameras write it, big endian: IFD0, Exif with a maker note of no known kind, GPS, a thumbnail."""
    block = Image.Exif()
    block.endian = ">"
    block[0x010F], block[0x0110], block[0x0132] = "Maker", "Model 1", "2003:02:01 04:05:06"
    block[0x8298], block[0x0112] = "(c) someone", orientation
    block.get_ifd(0x8769).update({
        0x829A: 0.008, 0x9003: "2003:02:01 04:05:06", 0x9004: "2003:02:01 04:05:06", 0x9291: "07",
        0x927C: bytes(range(256)), 0x9286: b"ASCII\0\0\0a comment", 0xA002: 4000, 0xA434: "A lens 1:1.8"})
    block.get_ifd(0x8825).update({0: b"\2\2\0\0", 1: "S", 2: (33.0, 51.0, 21.5), 3: "E", 4: (151.0, 12.0, 40.0)})
    content = block.tobytes()
    return with_thumbnail(content) if thumbnail else content


def with_thumbnail(block: bytes) -> bytes:
    """An IFD1 with a JPEG of 160x120 behind a big-endian EXIF block ("Exif\\0\\0" before it)."""
    tiff = block[6:]
    (first,) = struct.unpack_from(">I", tiff, 4)
    (count,) = struct.unpack_from(">H", tiff, first)
    link, start = first + 2 + 12 * count, len(tiff) + len(tiff) % 2
    picture = encoded(drawn(120, 160), "JPEG")
    after = start + 2 + 3 * 12 + 4
    entries = [(0x0103, 3, 6 << 16), (0x0201, 4, after), (0x0202, 4, len(picture))]
    directory = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries)
    tiff = tiff[:link] + struct.pack(">I", start) + tiff[link + 4 :]
    return block[:6] + tiff.ljust(start, b"\0") + struct.pack(">H", 3) + directory + bytes(4) + picture


def xmp(orientation: int = 0, element: bool = False, padding: int = 0) -> bytes:
    """A packet; with tiff:Orientation as an attribute or an element, unless 0."""
    attribute = f' tiff:Orientation="{orientation}"' if orientation and not element else ""
    inside = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if orientation and element else ""
    return XMP.format(attribute=attribute, element=inside, padding=" " * padding).encode()


def profile(space: bytes = b"RGB ", size: int = 600, tags: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """An ICC profile of version 2.1 that no library made, padded to `size` bytes."""
    wanted = [(b"desc", b"desc" + bytes(4) + struct.pack(">I", 5) + b"made\0" + bytes(78)),
              (b"wtpt", b"XYZ " + struct.pack(">Iiii", 0, 63190, 65536, 54061)), *tags]
    offset, table, data = 132 + 12 * len(wanted), struct.pack(">I", len(wanted)), b""
    for name, content in wanted:
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = max(size, offset + len(data))
    kind, connection = (b"prtr", b"Lab ") if space == b"CMYK" else (b"mntr", b"XYZ ")
    head = struct.pack(">I4sI", size, b"test", 0x02100000) + kind + space + connection
    head += struct.pack(">6H", 2003, 2, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return (head.ljust(128, b"\0") + table + data).ljust(size, b"\x5a")


def ink_profile() -> bytes:
    """CMYK -> Lab by a table of 2x2x2x2 points: "cyan" is a red ink, "magenta" a blue one, "yellow" a green one."""
    lab = []
    for number in range(16):
        c, m, y, k = ((number >> shift) & 1 for shift in (3, 2, 1, 0))
        light = (100 - 40 * c - 30 * m - 10 * y) * (0.1 if k else 1)
        lab += [2.55 * light, 128 + (60 * c - 50 * y) * (1 - k), 128 + (20 * c - 60 * m) * (1 - k)]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (number % 4 == 0) for number in range(9)))
    points = bytes(round(level) for level in lab)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + points + ramp * 3
    return profile(b"CMYK", tags=[(b"A2B0", table)])


def grey_profile() -> bytes:
    return profile(b"GRAY", tags=[(b"kTRC", b"curv" + struct.pack(">IIH", 0, 1, 0x01C0))])


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def scanlines(stored: np.ndarray, bits: int) -> bytes:
    """Rows of PNG without filters; `bits` of each sample, packed."""
    if bits >= 8:
        return b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in stored)
    planes = np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :]
    return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in planes)


def png(stored: np.ndarray, bits: int = 8, before: Iterable[bytes] = (), after: Iterable[bytes] = (),
        palette: np.ndarray | None = None, interlaced: bool = False) -> bytes:
    """PNG by hand; `before` and `after` are chunks around the pixels."""
    height, width = stored.shape[:2]
    kind = 3 if palette is not None else PNG_KINDS[stored.shape[2] if stored.ndim == 3 else 1]
    parts = [stored[y::down, x::across] for y, x, down, across in ADAM7] if interlaced else [stored]
    rows = b"".join(scanlines(part, bits) for part in parts if part.size)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    colours = chunk(b"PLTE", palette.tobytes()) if palette is not None else b""
    # The profile and the like come before the palette, transparency after it.
    early = b"".join(part for part in before if part[4:8] != b"tRNS")
    late = b"".join(part for part in before if part[4:8] == b"tRNS")
    return b"\x89PNG\r\n\x1a\n" + head + early + colours + late + chunk(b"IDAT", zlib.compress(rows)) \
        + b"".join(after) + chunk(b"IEND", b"")


def png_made(stored: np.ndarray, bits: int = 8, orientation: int = 1, scale: int = 1, **options) -> Made:
    """`scale`: levels of eight bits for one of the file's."""
    return Made(png(stored, bits, **options), *split(stored * scale if scale > 1 else stored, orientation))


def keyed_made(stored: np.ndarray, bits: int = 8) -> Made:
    """Transparent where a pixel has the colour of the first."""
    key = np.atleast_1d(stored[0, 0]).astype(">u2")
    hidden = np.atleast_3d(stored == stored[0, 0]).all(-1)
    alpha = np.where(hidden, 0, 2**bits - 1).astype(stored.dtype)
    return Made(png(stored, bits, before=[chunk(b"tRNS", key.tobytes())]), stored, alpha)


def palette_made(height: int, width: int, bits: int = 8, transparent: bytes = b"", orientation: int = 1) -> Made:
    random = np.random.default_rng((height, width, bits))
    colours = random.integers(0, 256, (2**bits, 3), np.uint8)
    stored = random.integers(0, 2**bits, (height, width), np.uint8)
    before = [chunk(b"tRNS", transparent)] if transparent else []
    before += [chunk(b"eXIf", exif(orientation)[6:])] if orientation > 1 else []
    shown = upright(stored, orientation)
    opacity = np.frombuffer(transparent.ljust(2**bits, b"\xff"), np.uint8)
    return Made(png(stored, bits, before, palette=colours), colours[shown], opacity[shown] if transparent else None)


def tiff_made(stored: np.ndarray, orientation: int = 1, shown: np.ndarray | None = None, **options) -> Made:
    file, tags = io.BytesIO(), [(274, 3, 1, orientation, True)] if orientation > 1 else []
    byteorder = options.pop("byteorder", "<")
    photometric = options.pop("photometric", "rgb" if stored.ndim == 3 else "minisblack")
    planar = np.moveaxis(stored, -1, 0) if options.get("planarconfig") == "separate" else stored
    with tifffile.TiffWriter(file, byteorder=byteorder) as writer:
        writer.write(planar, photometric=photometric, metadata=None, extratags=tags, **options)
    return Made(file.getvalue(), *split(stored if shown is None else shown, orientation))


def premultiplied_made(bits: int) -> Made:
    """Colours stored as they look on black; their straight values are known to a level or two."""
    most, straight = 2**bits - 1, drawn(33, 17, 3, bits)
    alpha = drawn(33, 17, 1, bits) // 2 + most // 2
    shares = np.rint(straight * (alpha[..., None] / most)).astype(straight.dtype)
    made = tiff_made(np.concatenate([shares, alpha[..., None]], -1), extrasamples=["assocalpha"])
    return Made(made.content, straight, alpha)


def encoded(stored: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(stored)
    if mode == "CMYK":
        image = Image.frombytes("CMYK", image.size, stored.tobytes())
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """The stored pixels as Pillow decodes them, not turned."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def lossy_made(kind: str, stored: np.ndarray, orientation: int = 1, **options) -> Made:
    """JPEG, WebP, BMP and the like by Pillow; the pixels as Pillow decodes them again."""
    content = encoded(stored, kind, **options)
    return Made(content, *split(decoded(content), orientation))


def cmyk_made(kind: str, height: int, width: int, with_profile: bool) -> Made:
    inks, options = drawn(height, width, 4), {"icc_profile": ink_profile()} if with_profile else {}
    content = encoded(inks, kind, "CMYK", **options)
    stored = decoded(content)
    if with_profile:
        image = Image.frombytes("CMYK", (width, height), stored.tobytes())
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(ink_profile())), ImageCms.createProfile("sRGB")
        return Made(content, np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB")))
    left = 255.0 - stored
    return Made(content, np.rint(left[..., :3] * left[..., 3:] / 255).astype(np.uint8))


def text_exif(orientation: int) -> bytes:
    """EXIF as ImageMagick puts it into a PNG: a compressed text of hexadecimal digits."""
    block = exif(orientation)
    text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def exif_chunk(orientation: int) -> list[bytes]:
    return [chunk(b"eXIf", exif(orientation)[6:])]


def palette_tiff(height: int, width: int) -> Made:
    made = palette_made(height, width)
    with Image.open(io.BytesIO(made.content)) as image:
        file = io.BytesIO()
        image.save(file, "TIFF")
    return Made(file.getvalue(), made.pixels)


def frames(kind: str) -> bytes:
    pictures = [Image.fromarray(drawn(9, 17, seed=seed)) for seed in range(2)]
    file = io.BytesIO()
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
    return file.getvalue()
