"""Draws photos before and after restoring: side by side, with captions and a magnified detail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srcnn.photos.metrics import psnr
from srcnn.photos.reading import luma_l
from srcnn.photos.tiling import windows
from srcnn.runtime.files import atomic_file

GAP_PIXELS = 8
PICTURE_WIDTH = 1920  # pixels; three photos side by side fit on a screen
DETAIL_ZOOM = 3
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
    """Degraded, restored and clean photo, uint8 (H, W) or (H, W, 3), with the PSNR of their luma (Pillow's L) above;
    below, magnified, the detail where the squared error fell most; see `comparison`.
    """
    pictures = (degraded, restored, clean)
    captions = [f"{title}: PSNR {psnr_luma(picture, clean):.2f} dB"
                for title, picture in zip(titles[:2], pictures[:2], strict=True)] + [titles[2]]
    gain = (degraded.astype(float) - clean) ** 2 - (restored.astype(float) - clean) ** 2
    return comparison(pictures, captions, gain, picture_width)


def comparison(
    pictures: Sequence[np.ndarray], captions: Sequence[str], amount: np.ndarray, picture_width: int = PICTURE_WIDTH
) -> np.ndarray:
    """Photos of one size, uint8 (H, W) or (H, W, 3), side by side below their captions; and below them, magnified, the
    detail where the sum of `amount`, of the same shape, is largest. At most `picture_width` pixels wide: larger photos
    are reduced, the detail is not.
    """
    width = min(pictures[0].shape[1], max(1, picture_width // len(pictures) - GAP_PIXELS))
    whole = captioned(side_by_side(*(_reduce(picture, width) for picture in pictures)), captions)
    detail = strongest_part(amount, max(1, width // DETAIL_ZOOM))
    magnified = side_by_side(*(_fill(magnify(picture[detail], DETAIL_ZOOM), width) for picture in pictures))
    return np.concatenate([whole, magnified])


def psnr_luma(photo: np.ndarray, clean: np.ndarray) -> float:
    """PSNR of the luma (Pillow's L) of two uint8 photos, grey or RGB, in dB."""
    return psnr(luma_l(clean), luma_l(photo))


def strongest_part(amount: np.ndarray, side: int) -> tuple[slice, slice]:
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
    size = max(7, min(width // 20, int(1.6 * width / max(map(len, captions)))))  # letters are about 0.55 of it wide
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


def _fill(picture: np.ndarray, width: int) -> np.ndarray:
    """Cropped to a width, or padded with white on the right."""
    cut = picture[:, :width]
    return np.pad(cut, [(0, 0), (0, width - cut.shape[1]), (0, 0)][: cut.ndim], constant_values=255)
