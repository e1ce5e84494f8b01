"""The figures of a run: loss and PSNR curves, tiles, a whole photo before and after; as PNG and as one HTML page."""

from __future__ import annotations

import base64
import html
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import ShardError
from srcnn.data.photo_list import read_photo_records
from srcnn.models.base import Network
from srcnn.models.weights import load_model
from srcnn.photos.tiling import grid, join
from srcnn.restoration.figures import COLUMNS, GAP_PIXELS, before_after, captioned, save_picture
from srcnn.restoration.restore import restore
from srcnn.runtime.files import atomic_file
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.history import STEP_KEY, read_metrics, results_table

MOST_CONSIDERED = 1000  # photos of the validation split, one of which is drawn
MAX_SIDE = 1600  # pixels of a photo drawn in the report; of larger ones the top left part
_WORD = re.compile(r"\w{1,40}")  # what a stranger's settings may put into a model card
FIGURES = {
    "psnr.png": "PSNR over the training: the degraded input, training tiles, validation tiles",
    "loss.png": "Loss over the training; of the validation tiles the mean squared error",
    "tiles.png": "Validation tiles",
    "photo.png": "A validation photo, reduced where it is large; below, the detail where the network gained most",
}


def write_report(run: Path, reader: ShardDataset) -> Path:
    """Writes `run`/report/ from metrics.jsonl, the best checkpoint and the validation shards; returns index.html.

    Raises:
        FileNotFoundError: no metrics.jsonl or no checkpoint in the run folder.
        UserError: they are damaged, or something in the run folder leads out of it.
    """
    check_run_folder(run)
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    points = read_metrics(run)
    model = load_model(run)
    draw_curves(points, folder)
    tiles = pair_rows(reader, model, num_pairs=4)[:, GAP_PIXELS:]  # the captions begin where the tiles do
    save_picture(captioned(tiles.repeat(2, 0).repeat(2, 1), COLUMNS), folder / "tiles.png")
    if reader.manifest.photos:  # of shards made elsewhere nothing is known but the pairs
        save_picture(photo_before_after(reader, model), folder / "photo.png")
    table = results_table(points)
    for name, content in (("table.md", table), ("card.md", training_card(run, points)),
                          ("scores.json", json.dumps(best_scores(points))),
                          ("index.html", html_page(run.name, table, folder))):
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
        with atomic_file(folder / name) as file:
            figure.savefig(file, dpi=120, format="png")


def pair_rows(reader: ShardDataset, model: Network, num_pairs: int) -> np.ndarray:
    """The pairs spread evenly over a split, a row each: degraded, restored, clean; uint8 (rows, columns, 3)."""
    from torchvision.utils import make_grid  # slow to import, and wanted only here

    chosen = np.linspace(0, reader.num_samples - 1, min(num_pairs, reader.num_samples)).astype(np.int64)
    plain = _ready(model)
    tiles = []
    for clean, degraded in zip(*reader.read(chosen), strict=True):
        tiles += [degraded, restore(degraded, plain), clean]
    stacked = torch.from_numpy(np.stack(tiles).reshape(len(tiles), *tiles[0].shape[:2], -1)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=len(COLUMNS), padding=GAP_PIXELS, pad_value=255).permute(1, 2, 0).numpy()


def _ready(model: Network) -> Network:
    """A copy without centering where the model is: not wrapped by Accelerate's autocast."""
    return model.without_centering().to(next(model.parameters()).device).eval()


def photo_before_after(reader: ShardDataset, model: Network) -> np.ndarray:
    """The validation photo of middling input PSNR (of the first thousand), put together from its tiles, degraded,
    restored whole, and clean; below, its busiest detail magnified.
    """
    first = islice(read_photo_records(reader.storage, reader.manifest), MOST_CONSIDERED)
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
    return before_after(degraded, restore(degraded, _ready(model)), clean)


def training_card(run: Path, points: list[dict[str, float]]) -> str:
    """The training for a model card, Markdown: its settings, and the best validation; "" where it never validated."""
    if not (best := best_validation(points)):
        return ""
    settings = read_yaml(run / "config.yaml")
    optimizer, total = settings.get("optimizer"), settings.get("total_samples")
    shown = {"batch size of a process": settings.get("batch_size_per_process"), "seed": settings.get("seed"),
             "optimizer": optimizer.get("name") if isinstance(optimizer, dict) else None}
    words = [f"{key} {value}" for key, value in shown.items() if value is not None and _WORD.fullmatch(str(value))]
    return f"""**Training**: best validation PSNR after {best[STEP_KEY]:,.0f} of \
{f"{total:,}" if type(total) is int else "an unknown number of"} tiles
({", ".join(words)}).

**Validation**, mean over the tiles held back, PSNR in dB and SSIM, before (in) and after (out):

{results_table([best])}"""


def best_validation(points: list[dict[str, float]]) -> dict[str, float]:
    """The point of the highest validation PSNR; {} where there was no validation."""
    return max((point for point in points if "val/psnr" in point), key=lambda point: point["val/psnr"], default={})


def best_scores(points: list[dict[str, float]]) -> dict[str, float]:
    """The scores of the best validation for a model card: "psnr", "ssim", and those of its input."""
    best = best_validation(points)
    return {key: best[f"val/{key}"] for key in ("psnr_in", "psnr", "ssim_in", "ssim") if f"val/{key}" in best}


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
