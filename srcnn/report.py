"""The figures of a run: loss and PSNR curves, tiles, a whole photo before and after; as PNG and as one HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

from srcnn.files import atomic_file
from srcnn.history import STEP_KEY, checked_points, results_table
from srcnn.listing import photos_in
from srcnn.metrics import psnr
from srcnn.model import load_model
from srcnn.network import Network
from srcnn.photo import luma_l
from srcnn.reader import ShardReader
from srcnn.restore import restore_pixels
from srcnn.sample import ShardError
from srcnn.tiles import grid, join, windows

GAP_PIXELS = 8
MOST_CONSIDERED = 1000  # photos of the validation split, one of which is drawn
MAX_SIDE = 1600  # pixels of a photo drawn in the report; of larger ones the top left part
PICTURE_WIDTH = 1920  # pixels of a comparison: the three pictures side by side fit on a screen
DETAIL_ZOOM = 3
COLUMNS = ("degraded", "restored", "clean")
FIGURES = {
    "psnr.png": "PSNR over the training: the degraded input, training tiles, validation tiles",
    "loss.png": "Loss over the training; of the validation tiles the mean squared error",
    "tiles.png": "Validation tiles",
    "photo.png": "A validation photo, reduced where it is large; below, the detail where the network gained most",
}


def write_report(run: Path, reader: ShardReader) -> Path:
    """Writes `run`/report/ from metrics.jsonl, the best checkpoint and the validation shards; returns index.html.

    Raises:
        FileNotFoundError: no metrics.jsonl or no checkpoint in the run folder.
    """
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    points = checked_points(run)
    model = load_model(run)
    draw_curves(points, folder)
    tiles = pair_rows(reader, model, num_pairs=4)[:, GAP_PIXELS:]  # the captions begin where the tiles do
    save_picture(captioned(tiles.repeat(2, 0).repeat(2, 1), COLUMNS), folder / "tiles.png")
    if reader.manifest.photos:  # of shards made elsewhere nothing is known but the pairs
        save_picture(photo_before_after(reader, model), folder / "photo.png")
    table = results_table(points)
    for name, content in (("table.md", table), ("index.html", html_page(run.name, table, folder))):
        with atomic_file(folder / name) as file:
            file.write(content.encode(errors="backslashreplace"))
    return folder / "index.html"


def draw_curves(points: list[dict[str, float]], folder: Path) -> None:
    """loss.png and psnr.png: training and validation against tiles seen."""
    from matplotlib.figure import Figure  # slow to import, and wanted only here

    curves = {
        "loss.png": ("loss", {"train/loss": "training", "val/loss": "validation, mean squared error"}),
        "psnr.png": ("PSNR, dB", {"val/psnr_in": "degraded input", "train/psnr": "training", "val/psnr": "validation"}),
    }
    for name, (label, lines) in curves.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for key, title in lines.items():
            line = [(point[STEP_KEY], point[key]) for point in points if key in point]
            marker = "o" if key.startswith("val") else ""
            axes.plot(*zip(*line, strict=True), label=title, marker=marker, markersize=3, linewidth=1.3)
        axes.set(xlabel="training tiles seen", ylabel=label, yscale="log" if name == "loss.png" else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(folder / name, dpi=120)


def pair_rows(reader: ShardReader, model: Network, num_pairs: int) -> np.ndarray:
    """The pairs spread evenly over a split, a row each: degraded, restored, clean; uint8 (rows, columns, 3)."""
    chosen = np.linspace(0, reader.num_samples - 1, min(num_pairs, reader.num_samples)).astype(np.int64)
    folded = _ready(model)
    tiles = []
    for clean, degraded in zip(*reader.read(chosen), strict=True):
        tiles += [degraded, restore_pixels(degraded, folded), clean]
    stacked = torch.from_numpy(np.stack(tiles).reshape(len(tiles), *tiles[0].shape[:2], -1)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=len(COLUMNS), padding=GAP_PIXELS, pad_value=255).permute(1, 2, 0).numpy()


def _ready(model: Network) -> Network:
    """A folded copy where the model is: not wrapped by Accelerate's autocast."""
    return model.folded().to(next(model.parameters()).device).eval()


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures of one size in a row, with white gaps to their right and below."""
    return np.concatenate([_with_gap(picture) for picture in pictures], axis=1)


def _with_gap(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, [(0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0)][: picture.ndim], constant_values=255)


def photo_before_after(reader: ShardReader, model: Network) -> np.ndarray:
    """The validation photo of middling input PSNR (of the first thousand), put together from its tiles, degraded,
    restored whole, and clean; below, its busiest detail magnified.
    """
    first = islice(photos_in(reader.storage, reader.manifest), MOST_CONSIDERED)
    records = sorted(first, key=lambda record: record.degraded_psnr)
    record = records[len(records) // 2]
    shards = [shard.name for shard in reader.manifest.shards]
    before = sum(shard.num_samples for shard in reader.manifest.shards[: shards.index(record.shard)])
    if record.first_sample + record.num_samples > reader.manifest.shards[shards.index(record.shard)].num_samples:
        raise ShardError(f"{reader.location}: photo {record.name!r:.99} has more pairs than its shard")
    samples = before + record.first_sample + np.arange(record.num_samples)
    rows, columns = grid(record.height, record.width, reader.manifest.tile_shape[0])
    if rows * columns != record.num_samples:  # an imported pair picture: one tile
        rows = columns = 1
    clean, degraded = (join(tiles, rows, columns)[:MAX_SIDE, :MAX_SIDE] for tiles in reader.read(samples))
    return before_after(degraded, restore_pixels(degraded, _ready(model)), clean)


def before_after(
    degraded: np.ndarray,
    restored: np.ndarray,
    clean: np.ndarray,
    titles: tuple[str, str, str] = COLUMNS,
    picture_width: int = PICTURE_WIDTH,
) -> np.ndarray:
    """Degraded, restored, clean, grey or RGB, with the PSNR of their luma (Pillow's L) above; below, where the network
    gained most, magnified. At most `picture_width` pixels wide: larger photos are shown reduced, their detail is not.
    """
    pictures = (degraded, restored, clean)
    captions = [f"{title}: PSNR {psnr_luma(picture, clean):.2f} dB"
                for title, picture in zip(titles[:2], pictures[:2], strict=True)] + [titles[2]]
    width = min(clean.shape[1], max(1, picture_width // len(pictures) - GAP_PIXELS))
    whole = captioned(side_by_side(*(_reduce(picture, width) for picture in pictures)), captions)
    detail = _best_detail(degraded, restored, clean, max(1, width // DETAIL_ZOOM))
    magnified = side_by_side(*(_magnify(picture[detail], width) for picture in pictures))
    return np.concatenate([whole, magnified])


def psnr_luma(photo: np.ndarray, clean: np.ndarray) -> float:
    """PSNR of the luma (Pillow's L) of two uint8 photos, grey or RGB, in dB."""
    return psnr(luma_l(clean), luma_l(photo))


def _reduce(photo: np.ndarray, width: int) -> np.ndarray:
    """The whole photo at that width; as it is where it is no wider."""
    if photo.shape[1] <= width:
        return photo
    height = max(1, round(photo.shape[0] * width / photo.shape[1]))
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


def _best_detail(degraded: np.ndarray, restored: np.ndarray, clean: np.ndarray, side: int) -> tuple[slice, slice]:
    """The part of the photo, of a grid of parts `side` pixels wide and high, whose squared error fell most."""
    fall = (degraded.astype(float) - clean) ** 2 - (restored.astype(float) - clean) ** 2
    height, width = clean.shape[:2]
    parts = [window.target for window in windows(height, width, side, halo=0)]
    return max(parts, key=lambda part: fall[part].sum())


def _magnify(detail: np.ndarray, width: int) -> np.ndarray:
    """Pixels as squares, as wide as the photo above."""
    large = detail.repeat(DETAIL_ZOOM, 0).repeat(DETAIL_ZOOM, 1)[:, :width]
    extra = [(0, 0), (0, width - large.shape[1]), (0, 0)][: large.ndim]
    return np.pad(large, extra, constant_values=255)


def captioned(picture: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """A strip of captions, one for each of equally wide columns, above a picture; as large as the width allows."""
    width = picture.shape[1] // len(captions)
    size = max(7, min(width // 20, int(1.6 * width / max(map(len, captions)))))  # a letter is some 0.55 of that wide
    strip = Image.new("L" if picture.ndim == 2 else "RGB", (picture.shape[1], 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    for number, caption in enumerate(captions):
        draw.text((number * width, size // 3), caption, fill="black", font=ImageFont.load_default(size))
    return np.concatenate([np.asarray(strip), picture])


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Writes uint8 pixels as PNG."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def html_page(title: str, table: str, folder: Path) -> str:
    """One self-contained page: the pictures are inside it, and what comes from files is escaped."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if not line.startswith("|---")]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    figures = "".join(
        f'<h2>{caption}</h2><img alt="{caption}" src="data:image/png;base64,'
        f'{base64.b64encode((folder / name).read_bytes()).decode()}">'
        for name, caption in FIGURES.items()
        if (folder / name).is_file()
    )
    style = "body{font:16px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}img{max-width:100%}" \
            "td{padding:.2em 1em;border-bottom:1px solid #ddd;text-align:right}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style><h1>{html.escape(title)}</h1><table>{cells}</table>{figures}</html>\n"
    )
