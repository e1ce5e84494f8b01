"""JPEG XL for Pillow's Image class, decoded by imagecodecs: tested with imagecodecs 2026.3.6 (libjxl 0.11.2).

The size, the bit depth and the channels are read from the header (ISO/IEC 18181-1, annex D) before anything is decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.ExifTags import Base as Tag

from srcnn.photos.boxes import walk_boxes
from srcnn.runtime.extras import extra
from srcnn.runtime.untrusted import InvalidInput

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"
HEADER_BYTES = 512
MAX_METADATA_BYTES = 64 << 20
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width : height
SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))  # (offset, bits) of a number with a selector of two bits
ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))
ALPHA, GREY, D65, SRGB_PRIMARIES, SRGB_CURVE = 0, 1, 1, 1, 13  # values of enumerations


class _Bits:
    """Reads numbers from the lowest bit of each byte on."""

    def __init__(self, content: bytes) -> None:
        self._bits, self._num_left = int.from_bytes(content, "little"), 8 * len(content)

    def read(self, num_bits: int = 1) -> int:
        if num_bits > self._num_left:
            raise InvalidInput("a JPEG XL cut off in its header")
        value = self._bits & ((1 << num_bits) - 1)
        self._bits, self._num_left = self._bits >> num_bits, self._num_left - num_bits
        return value

    def choose(self, *choices: tuple[int, int]) -> int:
        """A number: one of four offsets plus so many bits."""
        offset, num_bits = choices[self.read(2)]
        return offset + self.read(num_bits)

    def size(self) -> tuple[int, int]:
        """(width, height)."""
        is_small = self.read()
        height = 8 * (self.read(5) + 1) if is_small else self.choose(*SIZES)
        if ratio := RATIOS.get(self.read(3)):
            return height * ratio[0] // ratio[1], height
        return 8 * (self.read(5) + 1) if is_small else self.choose(*SIZES), height

    def depth(self) -> int:
        """Bits a channel. Raises InvalidInput at floating-point numbers."""
        if self.read():
            raise InvalidInput("a JPEG XL of floating-point numbers, which have no defined range")
        return self.choose((8, 0), (10, 0), (12, 0), (1, 6))

    def colours(self) -> tuple[bool, bool]:
        """Whether they are grey, and whether they are those of sRGB (D65, its primaries, its curve)."""
        if self.read():
            return False, True
        has_profile, is_grey = self.read(), self.choose(*ENUM) == GREY
        if has_profile or self.choose(*ENUM) != D65:
            return is_grey, False
        has_primaries = is_grey or self.choose(*ENUM) == SRGB_PRIMARIES
        return is_grey, has_primaries and not self.read() and self.choose(*ENUM) == SRGB_CURVE


class JpegXlImage(ImageFile.ImageFile):
    """An opened JPEG XL, upright: libjxl turns it. Its EXIF and XMP are in `info`, as of Pillow's formats.

    Attributes:
        bits: of a channel, 1..16.
        notes: on what is not read of it.

    Raises:
        InvalidInput: several frames, floating-point numbers, or further channels.
    """

    format = "JXL"
    format_description = "JPEG XL"
    bits = 8
    notes: tuple[str, ...] = ()

    def _open(self) -> None:
        assert self.fp is not None
        content = self.fp.read()
        header = content[:HEADER_BYTES]
        if content.startswith(CONTAINER):
            header = b""
            for kind, start, stop in walk_boxes(content):
                if kind in (b"jxlc", b"jxlp"):  # of a part, the number comes first
                    header += content[start + 4 * (kind == b"jxlp") : stop][:HEADER_BYTES]
                elif kind in (b"Exif", b"xml ", b"brob"):
                    self._read_metadata(kind, content[start:stop])
        if not header.startswith(CODESTREAM):
            raise InvalidInput("a JPEG XL without an image")
        self._read_header(_Bits(header[len(CODESTREAM) :]))

    def _read_metadata(self, kind: bytes, content: bytes) -> None:
        if kind == b"brob":
            with extra("formats"):
                import imagecodecs

            try:
                kind, content = content[:4], bytes(imagecodecs.brotli_decode(content[4:], out=MAX_METADATA_BYTES))
            except imagecodecs.BrotliError:
                self.notes = ("metadata that cannot be unpacked left out",)
                return
        if kind == b"Exif":  # the orientation is that of the header, which libjxl heeds
            exif = Image.Exif()
            exif.load(content[4 + int.from_bytes(content[:4], "big") :])
            exif.pop(Tag.Orientation, None)
            self.info["exif"] = exif.tobytes()
        elif kind == b"xml ":
            self.info["xmp"] = content

    def _read_header(self, header: _Bits) -> None:
        self._size = header.size()
        self._mode = "RGB"
        if header.read():  # all by default: RGB of 8 bits
            return
        if header.read():
            if 1 + header.read(3) >= 5:
                self._size = self.height, self.width
            if header.read():  # the size it is meant to be shown with
                header.size()
            if header.read() or header.read():
                raise InvalidInput("a JPEG XL with a preview or several frames; save one picture as a file")
        self.bits = header.depth()
        header.read()
        num_extra = header.choose((0, 0), (1, 0), (2, 4), (1, 12))
        if num_extra > 1 or num_extra and not self._is_alpha(header):
            raise InvalidInput("a JPEG XL with further channels; save it with colours only")
        header.read()  # whether the colours are stored as XYB
        is_grey, is_srgb = header.colours()
        if not is_srgb:  # imagecodecs does not give it
            self.notes += ("colour profile of the JPEG XL left out",)
        self._mode = ("L" if is_grey else "RGB") + "A" * bool(num_extra)

    @staticmethod
    def _is_alpha(header: _Bits) -> bool:
        if header.read():
            return True
        kind = header.choose(*ENUM)
        header.depth()
        header.choose((0, 0), (3, 0), (4, 0), (1, 3))
        header.read(8 * header.choose((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
        if kind == ALPHA and header.read():
            raise InvalidInput("a JPEG XL of colours multiplied with alpha; save it without transparency")
        return kind == ALPHA

    def load(self) -> Any:
        if self._im is None:
            assert self.fp is not None
            self.fp.seek(0)
            pixels = decode(self.fp.read(), self)
            if self.bits > 8:
                pixels = np.rint(pixels * np.float32(255 / ((1 << self.bits) - 1))).astype(np.uint8)
            self.im = Image.fromarray(pixels).im
        return Image.Image.load(self)


def decode(content: bytes, image: JpegXlImage) -> np.ndarray:
    """The upright pixels, uint8 or uint16, (H, W) or (H, W, C). Raises InvalidInput if they are unlike the header."""
    with extra("formats"):
        import imagecodecs  # slow to import

    try:
        pixels = imagecodecs.jpegxl_decode(content, index=0)
    except imagecodecs.JpegxlError as error:
        raise InvalidInput(f"a damaged JPEG XL: {error}") from error
    num_channels = len(image.mode)
    shape = (image.height, image.width) if num_channels == 1 else (image.height, image.width, num_channels)
    if pixels.dtype != (np.uint16 if image.bits > 8 else np.uint8) or pixels.shape != shape:
        raise InvalidInput(f"{pixels.dtype} of shape {pixels.shape}, unlike its header")
    return pixels


def is_jpegxl(head: bytes) -> bool:
    """Whether a file that begins so is a JPEG XL."""
    return head.startswith((CODESTREAM, CONTAINER))
