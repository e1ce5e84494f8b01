"""Draws photos before and after restoring: side by side, with captions and a magnified detail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srcnn.photos.metrics import psnr
from srcnn.photos.reading import luma_l
from srcnn.photos.tiling import Region, windows
from srcnn.runtime.files import atomic_file

GAP_PIXELS = 8
PICTURE_WIDTH = 1920  # pixels; three photos side by side fit on a screen
DETAIL_ZOOM = 3
MAX_CAPTION_PIXELS = 26
COLUMNS = ("degraded", "restored", "clean")


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures of one size, uint8 (H, W) or (H, W, 3), in a row, with white gaps to their right and below."""
    gaps = [(0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0)]
    padded = [np.pad(picture, gaps[: picture.ndim], constant_values=255) for picture in pictures]
    return np.concatenate(padded, axis=1)


def before_after(
    degraded: np.ndarray,
    restored: np.ndarray,
    clean: np.ndarray,
    titles: tuple[str, str, str] = COLUMNS,
    picture_width: int = PICTURE_WIDTH,
) -> np.ndarray:
    """Degraded, restored and clean photo, uint8 (H, W) or (H, W, 3), with their PSNR above, of colour that of the luma;
    below, magnified, the detail where the squared error fell most; see `comparison`.
    """
    pictures = (degraded, restored, clean)
    measure = "PSNR" if clean.ndim == 2 else "luma PSNR"
    captions = [f"{title}: {measure} {psnr_luma(picture, clean):.2f} dB"
                for title, picture in zip(titles[:2], pictures[:2], strict=True)] + [titles[2]]
    gain = (degraded.astype(float) - clean) ** 2 - (restored.astype(float) - clean) ** 2
    return comparison(pictures, captions, gain, picture_width)


def comparison(
    pictures: Sequence[np.ndarray], captions: Sequence[str], amount: np.ndarray, picture_width: int = PICTURE_WIDTH
) -> np.ndarray:
    """Photos of one size, uint8 (H, W) or (H, W, 3), side by side below their captions; and below them, magnified, the
    detail where the sum of `amount`, of the same shape, is largest, which is framed in the photos. At most
    `picture_width` pixels wide: larger photos are reduced, the detail is not.
    """
    width = min(pictures[0].shape[1], max(1, picture_width // len(pictures) - GAP_PIXELS))
    detail = strongest_part(amount, max(1, width // DETAIL_ZOOM))
    whole = captioned(side_by_side(*(_framed(_reduce(picture, width), detail, picture.shape[1])
                                     for picture in pictures)), captions)
    magnified = side_by_side(*(_fill(magnify(picture[detail], DETAIL_ZOOM), width) for picture in pictures))
    return np.concatenate([whole, magnified])


def psnr_luma(photo: np.ndarray, clean: np.ndarray) -> float:
    """PSNR of the luma (Pillow's L) of two uint8 photos, grey or RGB, in dB."""
    return psnr(luma_l(clean), luma_l(photo))


def strongest_part(amount: np.ndarray, side: int) -> Region:
    """Rows and columns of the cell with the largest sum of `amount`, (H, W) or (H, W, 3), in a grid of cells of `side`
    pixels; cells at the right and lower edge are smaller.
    """
    height, width = amount.shape[:2]
    return max((window.target for window in windows(height, width, side, halo=0)), key=lambda cell: amount[cell].sum())


def magnify(pixels: np.ndarray, zoom: int) -> np.ndarray:
    """Repeats every pixel `zoom` times in both directions."""
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def captioned(picture: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """The picture below a strip of captions, one for each of equally wide columns, in the largest font that fits."""
    width = picture.shape[1] // len(captions)
    # Letters are about 0.55 of their size wide.
    size = max(7, min(width // 20, MAX_CAPTION_PIXELS, int(1.6 * width / max(map(len, captions)))))
    strip = Image.new("L" if picture.ndim == 2 else "RGB", (picture.shape[1], 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    for number, caption in enumerate(captions):
        draw.text((number * width, size // 3), caption, fill="black", font=ImageFont.load_default(size))
    return np.concatenate([np.asarray(strip), picture])


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Writes uint8 pixels as PNG."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def _reduce(photo: np.ndarray, width: int) -> np.ndarray:
    """The photo resized to that width; unchanged where it is not wider."""
    if photo.shape[1] <= width:
        return photo
    height = max(1, round(photo.shape[0] * width / photo.shape[1]))
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


def _framed(picture: np.ndarray, place: Region, photo_width: int) -> np.ndarray:
    """The picture, reduced from a photo of that width, with a white frame in a dark one around a place in the photo."""
    image, scale = Image.fromarray(picture), picture.shape[1] / photo_width
    top, bottom, left, right = (round(scale * edge) for part in place for edge in (part.start, part.stop))
    draw = ImageDraw.Draw(image)
    for inset, colour in ((0, "black"), (1, "white"), (2, "black")):
        if right - left > 2 * inset + 1 and bottom - top > 2 * inset + 1:
            draw.rectangle((left + inset, top + inset, right - 1 - inset, bottom - 1 - inset), outline=colour)
    return np.asarray(image)


def _fill(picture: np.ndarray, width: int) -> np.ndarray:
    """Cropped to a width, or padded with white on the right."""
    cut = picture[:, :width]
    return np.pad(cut, [(0, 0), (0, width - cut.shape[1]), (0, 0)][: cut.ndim], constant_values=255)
