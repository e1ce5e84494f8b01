"""Photos to upload, and files that only look like photos."""

import struct
import time
import zlib

from PIL import Image
from small import draw_photo

MAKER, MODEL = 271, 272


def write_jpeg(path, quality=90, width=331, height=243):
    exif = Image.Exif()
    exif[MAKER], exif[MODEL] = "Maker", "Model 7"
    Image.fromarray(draw_photo(5, height, width)).save(path, "JPEG", quality=quality, exif=exif, dpi=(300, 300))
    return path


def write_animated(path):
    frames = [Image.fromarray(draw_photo(seed, 33, 47)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def write_giant(path):
    """A PNG of 150 bytes whose header claims 60000x60000 pixels."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
                     + chunk(b"IEND", b""))
    return path


def write_truncated(path):
    content = write_jpeg(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def write_text(path):
    path.write_text("This is <b>no</b> photo.\n" * 40)
    return path


def wait_until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


BAD = {
    "text.jpg": (write_text, "JPEG"),
    "half.jpg": (write_truncated, "truncated"),
    "giant.png": (write_giant, "60000x60000"),
    "moving.webp": (write_animated, "frames"),
}
