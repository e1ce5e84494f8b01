"""The contact sheet: a picture of random samples of a split, clean left, degraded right, with the PSNR of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import Manifest
from srcnn.photos.metrics import psnr
from srcnn.restoration.figures import magnify, side_by_side
from srcnn.runtime.storage import Storage, join

COLUMNS, MAX_WIDTH = 4, 2400  # pairs in a row; pixels of the sheet, which may have fewer columns for large tiles
MARGIN_PIXELS, TITLE_PIXELS, CAPTION_PIXELS = 24, 22, 14
CANDIDATES = 3  # samples for each that is shown: those with the least contrast, such as sky, are left out
MIN_TILE_PIXELS = 128  # smaller tiles are magnified, so that their captions fit
INK, SOFT = "#16191d", "#5b6470"


def write_contact_sheet(out: Storage, split: str, manifest: Manifest, num_pairs: int) -> None:
    """Writes SPLIT.png beside a split's folder with up to `num_pairs` samples, always the same ones; none: no file."""
    num_pairs = min(num_pairs, manifest.num_samples)
    if not num_pairs:
        return
    random = np.random.default_rng(0)
    num_read = min(CANDIDATES * num_pairs, manifest.num_samples)
    candidates = np.sort(random.choice(manifest.num_samples, num_read, replace=False))
    clean, degraded = ShardDataset(join(out.location, split)).read(candidates)
    contrast = clean.reshape(num_read, -1, *manifest.tile_shape[2:]).std(1).reshape(num_read, -1).mean(1)
    chosen = np.sort(np.argsort(-contrast, kind="stable")[: max(num_pairs, num_read // 2)])
    chosen = np.sort(random.choice(chosen, num_pairs, replace=False))
    pairs = [(clean[index],) if manifest.is_clean_only else (clean[index], degraded[index]) for index in chosen]
    with out.create(f"{split}.png") as file:
        draw_sheet(pairs, *sheet_titles(split, manifest, num_pairs)).save(file, "PNG")


def sheet_titles(split: str, manifest: Manifest, num_pairs: int) -> tuple[str, str]:
    """The title of a sheet, and what it shows."""
    shown = f"{num_pairs} of {manifest.num_samples:,}, chosen at random among those with contrast"
    if manifest.is_clean_only:
        return f"{split}: clean tiles, degraded while training", shown
    damage = f"{manifest.damage}, " if manifest.damage else ""
    return (f"{split}: pairs of tiles, clean left, degraded right",
            f"{shown}; {damage}mean PSNR of all pairs {manifest.degraded_psnr:.2f} dB")


def draw_sheet(pairs: Sequence[tuple[np.ndarray, ...]], title: str, about: str) -> Image.Image:
    """Pairs of tiles, or tiles alone, uint8 (H, W) or (H, W, 3), in a grid below the title; captions are below each."""
    zoom = -(-MIN_TILE_PIXELS // pairs[0][0].shape[1])
    cells = [side_by_side(*(magnify(tile, zoom) for tile in pair)) for pair in pairs]
    cell_height, cell_width = cells[0].shape[0] + CAPTION_PIXELS + MARGIN_PIXELS, cells[0].shape[1] + MARGIN_PIXELS
    columns = min(COLUMNS, len(pairs), max(1, MAX_WIDTH // cell_width))
    top = 2 * MARGIN_PIXELS + 3 * TITLE_PIXELS
    fonts = [ImageFont.load_default(size) for size in (TITLE_PIXELS, CAPTION_PIXELS)]
    width = max(columns * cell_width, *(int(font.getlength(line)) + MARGIN_PIXELS
                                        for font, line in zip(fonts, (title, about), strict=True))) + MARGIN_PIXELS
    mode = "L" if cells[0].ndim == 2 else "RGB"
    sheet = Image.new(mode, (width, top + -(-len(pairs) // columns) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PIXELS, MARGIN_PIXELS), title, INK, fonts[0])
    draw.text((MARGIN_PIXELS, MARGIN_PIXELS + 1.6 * TITLE_PIXELS), about, SOFT, fonts[1])
    for number, (pair, cell) in enumerate(zip(pairs, cells, strict=True)):
        x, y = MARGIN_PIXELS + number % columns * cell_width, top + number // columns * cell_height
        sheet.paste(Image.fromarray(cell), (x, y))
        captions = ("clean",) if len(pair) == 1 else ("clean", f"degraded {psnr(*pair):.2f} dB")
        for place, caption in enumerate(captions):
            left = x + place * cell.shape[1] // len(pair)
            draw.text((left, y + cell.shape[0] - 4), caption, SOFT, fonts[1])
    return sheet
