"""The matrix of photo files: each with what is to be said of it; pairwise, not every format with every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matrix import (
    Made,
    cmyk_made,
    drawn,
    exif,
    exif_chunk,
    frames,
    keyed_made,
    lossy_made,
    palette_made,
    palette_tiff,
    png_made,
    premultiplied_made,
    text_exif,
    tiff_made,
    xmp,
)


class Case(NamedTuple):
    """`note` is what has to be said of it; `tolerance`: levels, where colours are converted, which is not exact."""

    name: str
    make: Callable[[], Made]
    note: str = ""
    tolerance: int = 0
    options: tuple[str, ...] = ()


def min_is_white_16() -> Made:
    shown = drawn(9, 7, 1, 16)
    return tiff_made(65535 - shown, shown=shown, photometric="miniswhite")


CASES = [
    Case("baseline 420.jpg", lambda: lossy_made("JPEG", drawn(63, 65), quality=30)),
    Case("progressive.JPG", lambda: lossy_made("JPEG", drawn(129, 257), quality=9, subsampling=0, progressive=True)),
    Case("422.jpeg", lambda: lossy_made("JPEG", drawn(17, 1), quality=50, subsampling=1)),
    Case("grey.jpg", lambda: lossy_made("JPEG", drawn(63, 65, 1), quality=20)),
    Case("grey 1x1.jpg", lambda: lossy_made("JPEG", drawn(1, 1, 1))),
    Case("1x7.jpg", lambda: lossy_made("JPEG", drawn(7, 1), quality=20)),
    Case("rgb inside.jpg", lambda: lossy_made("JPEG", drawn(3, 2), keep_rgb=True)),
    Case("restarts.jpg", lambda: lossy_made("JPEG", drawn(65, 63), quality=20, restart_marker_rows=1)),
    Case("quality 100.jpg", lambda: lossy_made("JPEG", drawn(17, 33), quality=100, subsampling=0)),
    Case("cmyk.jpg", lambda: cmyk_made("JPEG", 65, 63, False), "CMYK", 3, ("--format", "png")),
    Case("cmyk profile.jpg", lambda: cmyk_made("JPEG", 17, 33, True), "CMYK", 3, ("--format", "png")),
    Case("cmyk.tif", lambda: cmyk_made("TIFF", 17, 1, False), "CMYK", 3),
    Case("cmyk profile.tiff", lambda: cmyk_made("TIFF", 33, 17, True), "CMYK", 3),
    Case("1 bit.png", lambda: png_made(drawn(63, 65, 1, 1), 1, scale=255)),
    Case("2 bits.png", lambda: png_made(drawn(7, 1, 1, 2), 2, scale=85)),
    Case("4 bits interlaced.png", lambda: png_made(drawn(17, 33, 1, 4), 4, scale=17, interlaced=True)),
    Case("grey.png", lambda: png_made(drawn(1, 17, 1))),
    Case("grey alpha.png", lambda: png_made(drawn(65, 63, 2))),
    Case("grey key.png", lambda: keyed_made(drawn(9, 33, 1))),
    Case("rgb 1x1.png", lambda: png_made(drawn(1, 1))),
    Case("rgb 3x2.png", lambda: png_made(drawn(2, 3))),
    Case("rgb interlaced.png", lambda: png_made(drawn(129, 257), interlaced=True)),
    Case("rgb key.png", lambda: keyed_made(drawn(17, 9))),
    Case("rgba.png", lambda: png_made(drawn(63, 65, 4))),
    Case("rgba interlaced.png", lambda: png_made(drawn(7, 1, 4), interlaced=True)),
    Case("palette.png", lambda: palette_made(65, 63), "palette"),
    Case("palette 2 bits.png", lambda: palette_made(1, 7, 2), "palette"),
    Case("palette alpha.png", lambda: palette_made(17, 33, 4, bytes((0, 100, 200))), "palette"),
    Case("grey 16.png", lambda: png_made(drawn(63, 65, 1, 16), 16)),
    Case("grey 16 1x1.png", lambda: png_made(drawn(1, 1, 1, 16), 16)),
    Case("grey alpha 16.png", lambda: png_made(drawn(17, 9, 2, 16), 16)),
    Case("rgb 16.png", lambda: png_made(drawn(65, 63, 3, 16), 16)),
    Case("rgb 16 interlaced.png", lambda: png_made(drawn(33, 17, 3, 16), 16, interlaced=True)),
    Case("rgba 16.png", lambda: png_made(drawn(129, 257, 4, 16), 16)),
    Case("rgba 16 1x7.png", lambda: png_made(drawn(7, 1, 4, 16), 16)),
    Case("rgb key 16.png", lambda: keyed_made(drawn(9, 17, 3, 16), 16)),
    Case("strips.tif", lambda: tiff_made(drawn(63, 65), rowsperstrip=5)),
    Case("tiles lzw.tif", lambda: tiff_made(drawn(129, 257), tile=(32, 48), compression="lzw")),
    Case("deflate big endian.tiff", lambda: tiff_made(drawn(17, 1), byteorder=">", compression="zlib")),
    Case("grey 1x1.tif", lambda: tiff_made(drawn(1, 1, 1))),
    Case("planar.tif", lambda: tiff_made(drawn(33, 17), planarconfig="separate")),
    Case("alpha.tif", lambda: tiff_made(drawn(9, 33, 4), extrasamples=["unassalpha"])),
    Case("premultiplied.tif", lambda: premultiplied_made(8), tolerance=6),
    Case("premultiplied 16.tif", lambda: premultiplied_made(16), tolerance=6),
    Case("min is white.tif", lambda: tiff_made(255 - (d := drawn(17, 33, 1)), shown=d, photometric="miniswhite")),
    Case("min is white 16.tif", min_is_white_16),
    Case("grey 16.tif", lambda: tiff_made(drawn(63, 65, 1, 16), compression="zlib", predictor=True)),
    Case("grey 16 big endian.tif", lambda: tiff_made(drawn(7, 1, 1, 16), byteorder=">")),
    Case("rgb 16.tif", lambda: tiff_made(drawn(65, 63, 3, 16))),
    Case("rgb 16 lzw big endian.tif", lambda: tiff_made(drawn(33, 17, 3, 16), byteorder=">", compression="lzw")),
    Case("rgb 16 planar.tif", lambda: tiff_made(drawn(17, 9, 3, 16), planarconfig="separate", compression="zlib")),
    Case("rgb 16 tiles.tif", lambda: tiff_made(drawn(65, 129, 3, 16), tile=(16, 32))),
    Case("rgba 16.tif", lambda: tiff_made(drawn(9, 33, 4, 16), extrasamples=["unassalpha"])),
    Case("jpeg inside.tif", lambda: lossy_made("TIFF", drawn(65, 63), compression="jpeg", quality=40)),
    Case("palette.tif", lambda: palette_tiff(17, 33), "palette"),
    Case("lossy.webp", lambda: lossy_made("WEBP", drawn(63, 65), quality=30)),
    Case("lossless.webp", lambda: lossy_made("WEBP", drawn(17, 1), lossless=True)),
    Case("alpha.webp", lambda: lossy_made("WEBP", drawn(65, 63, 4), lossless=True, exact=True)),
    Case("rgb.bmp", lambda: lossy_made("BMP", drawn(63, 65))),
    Case("grey.bmp", lambda: lossy_made("BMP", drawn(7, 9, 1))),
    *(Case(f"turned {o}.jpg", lambda o=o: lossy_made("JPEG", drawn(33, 18), o, quality=30, exif=exif(o)))
      for o in range(1, 9)),
    *(Case(f"xmp turned {o}.jpg", lambda o=o: lossy_made("JPEG", drawn(33, 18), o, xmp=xmp(o, element=o == 8)))
      for o in (3, 6, 8)),
    Case("exif and xmp turned.jpg", lambda: lossy_made("JPEG", drawn(17, 33), 6, exif=exif(6), xmp=xmp(6))),
    *(Case(f"turned {o} 16.png", lambda o=o: png_made(drawn(9, 17, 3 + o % 2, 16), 16, o, before=exif_chunk(o)))
      for o in (2, 5, 8)),
    Case("turned late.png", lambda: png_made(drawn(17, 7), orientation=7, after=exif_chunk(7))),
    Case("turned text.png", lambda: png_made(drawn(7, 17, 4), orientation=6, before=[text_exif(6)])),
    Case("turned palette.png", lambda: palette_made(9, 33, orientation=5), "palette"),
    *(Case(f"turned {o}.tif", lambda o=o: tiff_made(drawn(17, 33), o)) for o in (3, 6)),
    *(Case(f"turned {o} 16.tif", lambda o=o: tiff_made(drawn(17, 9, 1 + 2 * (o % 2), 16), o)) for o in (4, 7, 8)),
    *(Case(f"turned {o}.webp", lambda o=o: lossy_made("WEBP", drawn(17, 33), o, exif=exif(o), lossless=True))
      for o in (4, 5)),
    Case("jpg to png.jpg", lambda: lossy_made("JPEG", drawn(33, 65), 8, exif=exif(8)), options=("--format", "png")),
    Case("jpg to tiff.jpg", lambda: lossy_made("JPEG", drawn(33, 65), 3, exif=exif(3)), options=("--format", "tiff")),
    Case("16 to tiff.png", lambda: png_made(drawn(33, 17, 4, 16), 16), options=("--format", "tiff")),
    Case("16 to png.tif", lambda: tiff_made(drawn(33, 17, 3, 16)), options=("--format", "png")),
    Case("grey 16 to png.tif", lambda: tiff_made(drawn(33, 17, 1, 16), 6), options=("--format", "png")),
    Case("to jpg.png", lambda: png_made(drawn(33, 17)), options=("--format", "jpg")),
    Case("to webp.png", lambda: png_made(drawn(33, 65, 4)), options=("--format", "webp")),
]


REFUSED = {
    "animated.png": lambda: frames("PNG"),
    "animated.webp": lambda: frames("WEBP"),
    "animated.gif": lambda: frames("GIF"),
    "pages.tif": lambda: frames("TIFF"),
    "float.tif": lambda: tiff_made(drawn(9, 7, 1).astype(np.float32) / 255).content,
    "rgb float.tif": lambda: tiff_made(drawn(9, 7).astype(np.float32) / 255).content,
    "32 bits.tif": lambda: tiff_made(drawn(9, 7, 1, 16).astype(np.uint32) * 9).content,
    "below zero.tif": lambda: tiff_made(drawn(9, 7, 1, 8).astype(np.int16) - 99).content,
    "cut.png": lambda: png_made(drawn(33, 65, 3, 16), 16).content[:900],
    "cut.tif": lambda: tiff_made(drawn(33, 65, 3, 16)).content[:-900],
    "cut.jpg": lambda: lossy_made("JPEG", drawn(33, 65), quality=95).content[:900],
    "empty.jpg": lambda: b"",
    "words.png": lambda: b"no picture",
}
