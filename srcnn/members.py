"""The members of a shard: what they are called, how tiles are written, and how pictures are read.

Encoding and decoding stand side by side here; both the writer and the reader use this module.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from srcnn.untrusted import MAX_PICTURE_PIXELS, MAX_TILE_SIDE, npy_pixels, open_picture

BLOCK_BYTES = 512  # tar's unit: one header, and what a member's bytes are padded to
MEMBERS = {encoding: (f"clean.{encoding}", f"degraded.{encoding}") for encoding in ("npy", "png")}
FOREIGN_FORMATS = ("PNG", "JPEG", "WEBP")
TileEncoding = Literal["npy", "png"]
Encoding = Literal["npy", "png", "any"]  # any: pictures made elsewhere, of any size, to be cut to tiles


def key(sample: int) -> str:
    """Ten digits: the number of the sample in its split. No dot, whatever the photo is called."""
    return f"{sample:010d}"


def encode_tile(tile: np.ndarray, encoding: TileEncoding) -> bytes:
    """uint8 tile (H, W) or (H, W, 3) -> the bytes of a member."""
    if encoding == "npy":
        return _npy_header(tile.shape) + tile.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _npy_header(tile_shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": tile_shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def decode_tile(content: bytes | memoryview, encoding: Encoding, tile_shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a member -> uint8 tile. Raises ValueError at any other shape or kind, before it is decoded."""
    if encoding == "npy":
        tile = npy_pixels(content)
        if tile.shape != tile_shape:
            raise ValueError(f"a tile of shape {tile.shape}, the manifest says {tile_shape}")
        return tile
    with open_picture(content, ("PNG",), MAX_TILE_SIDE**2) as image:
        if (*image.size[::-1], *tile_shape[2:]) != tile_shape or image.mode != ("RGB" if tile_shape[2:] else "L"):
            raise ValueError(f"a tile of {image.size} pixels, {image.mode}; the manifest says {tile_shape}")
        return np.asarray(image)


def decode_picture(content: bytes | memoryview, channels: int) -> np.ndarray:
    """The bytes of a foreign member (npy, PNG, JPEG or WebP, 8 bits) -> uint8 (H, W), or (H, W, 3) for 3 channels.

    Colour becomes grey as Pillow's "L" does it (ITU-R BT.601); grey becomes three equal channels.

    Raises:
        ValueError: another format, another type of number, a shape that is no picture.
    """
    if content[:6] == b"\x93NUMPY":
        pixels = npy_pixels(content)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if not pixels.size or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise ValueError(f"an array of {pixels.dtype}, {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
        return np.asarray(Image.fromarray(pixels).convert("RGB" if channels == 3 else "L"))
    with open_picture(content, FOREIGN_FORMATS, MAX_PICTURE_PIXELS) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a picture of mode {image.mode}; expected 8-bit grey or RGB")
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def npy_header_bytes(tile_shape: tuple[int, ...]) -> int:
    """Length of the npy header before the pixels of a tile (128 for all tiles of a usual size)."""
    return len(_npy_header(tuple(tile_shape)))


def npy_stride(tile_shape: tuple[int, ...], num_members: int = 2) -> int:
    """Bytes from one npy sample to the next in a shard: header + content padded to 512, for each member."""
    content = npy_header_bytes(tile_shape) + int(np.prod(tile_shape))
    return num_members * (BLOCK_BYTES + -(-content // BLOCK_BYTES) * BLOCK_BYTES)
