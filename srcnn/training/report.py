"""The report of a run: one page with its numbers, curves and pictures, and the figures and tables beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import Manifest, read_manifest
from srcnn.models.base import Network
from srcnn.models.weights import load_model
from srcnn.restoration.figures import COLUMNS, GAP_PIXELS, before_after, captioned, magnify, save_picture, side_by_side
from srcnn.restoration.restore import restore
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file, write_file
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.settings import flat, plain
from srcnn.runtime.storage import open_storage
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.cluster_job import TIME_FORMAT, JobHistory, read_starts
from srcnn.tracking.history import STEP_KEY, Values, best_validation, read_metrics, results_table
from srcnn.training.config import TrainConfig
from srcnn.training.report_charts import CHARTS, NOISY, draw_chart, smooth, values_of
from srcnn.training.report_page import cards, compared, facts, html_page, section, table_of, triple
from srcnn.training.report_scores import Pair, ScoredPhoto, SplitScores, restored_pair, score_split, spread, tile_of

LARGE, SMALL = 1200, 640  # pixels, widths of photos in the page
MOST_STARTS = 20  # listed in the page
_WORD = re.compile(r"\w{1,40}")  # what a stranger's settings may put into a model card
RANKS = ("largest gain", "median gain", "smallest gain")


def write_report(run: Path, dataset: ShardDataset) -> Path:
    """Writes `run`/report/ from metrics.jsonl, the best checkpoint and the validation shards; returns index.html.

    Raises:
        FileNotFoundError: no metrics.jsonl or no checkpoint in the run folder.
        UserError: they are damaged, or something in the run folder leads out of it.
    """
    check_run_folder(run)
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    points, model = read_metrics(run), _ready(load_model(run))
    settings = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    scores = score_split(dataset, model)
    draw_curves(points, folder)
    curves, speed = (f'<div class="two">{"".join(draw_chart(chart, points) for chart in charts)}</div>'
                     for charts in (CHARTS[:2], CHARTS[2:]))
    body = [cards(headline(points, settings, run)), curves, *picture_sections(dataset, model, scores, folder),
            photo_table(scores), record_sections(run, settings, dataset, points),
            section("Learning rate and speed", speed)]
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    subtitle = " · ".join(filter(None, (f"{model.name}, {model.summary}", f"{num_weights:,} weights",
                                        dataset.manifest.damage)))
    table = results_table(points)
    for name, content in (("table.md", table), ("card.md", training_card(settings, points)),
                          ("scores.json", json.dumps(best_scores(points)))):
        write_file(folder / name, content.encode(errors="backslashreplace"))
    page = html_page(run.resolve().name, table, folder, "".join(body), subtitle)
    write_file(folder / "index.html", page.encode(errors="backslashreplace"))
    return folder / "index.html"


def draw_curves(points: list[dict[str, float]], folder: Path) -> None:
    """loss.png and psnr.png: training, thin and smoothed, and validation against tiles seen."""
    from matplotlib.figure import Figure  # slow to import, and wanted only here

    for name, chart in (("psnr.png", CHARTS[0]), ("loss.png", CHARTS[1])):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for line, colour in zip(chart.lines, ("tab:gray", "tab:blue", "tab:orange"), strict=False):
            values = values_of(points, line.key, chart.logarithmic)
            is_noisy = line.style == "train" and len(values) >= NOISY
            if is_noisy:
                axes.plot(*values.T, color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(*(smooth(values) if is_noisy else values).T, label=line.label, color=colour, linewidth=1.6,
                      marker="o" if line.style == "val" else "", linestyle="--" if line.style == "input" else "-",
                      markersize=3)
        axes.set(xlabel="training tiles seen", ylabel=chart.title, yscale="log" if chart.logarithmic else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_file(folder / name) as file:
            figure.savefig(file, dpi=120, format="png")


def headline(points: Sequence[Values], settings: Mapping[str, Any], run: Path) -> list[tuple[str, str, str]]:
    """The numbers that matter, as (title, value, remark): PSNR and SSIM of the best validation, length, time."""
    result = []
    if best := best_validation(points):
        before, after = best.get("val/psnr_in", math.nan), best["val/psnr"]
        result.append(("Validation PSNR of the best weights", f"{before:.2f} \u2192 {after:.2f} dB",
                       f"{after - before:+.2f} dB, after {best[STEP_KEY]:,.0f} tiles"))
        before, after = best.get("val/ssim_in", math.nan), best.get("val/ssim", math.nan)
        if math.isfinite(after):
            result.append(("SSIM", f"{before:.3f} \u2192 {after:.3f}", f"{after - before:+.3f}"))
    seen, total = max((point[STEP_KEY] for point in points), default=0), settings.get("total_samples")
    length = f"of {total:,}" if type(total) is int and total != seen else "the whole training"
    result.append(("Tiles seen", f"{seen:,.0f}", length))
    rates = [rate for point in points if math.isfinite(rate := point.get("tiles_per_second", math.nan)) and rate > 0]
    seconds, is_all = duration(read_starts(run))
    known = "" if is_all else " and more" if seconds else "not known"
    result.append(("Time", f"{time_text(seconds) if seconds or is_all else ''}{known}",
                   f"{np.median(rates):,.0f} tiles/s in the median" if rates else ""))
    return result


def duration(starts: JobHistory) -> tuple[float, bool]:
    """Seconds between starts and ends of a run; and whether the end of every start is known."""
    total, is_all = 0.0, bool(starts.lines)
    for line in starts.lines:
        try:
            first, last = (datetime.strptime(str(time), TIME_FORMAT) for time in (line["time"], line["end"]["time"]))
            total += max((last - first).total_seconds(), 0)
        except (KeyError, TypeError, ValueError):
            is_all = False
    return total, is_all


def time_text(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def picture_sections(dataset: ShardDataset, model: Network, scores: SplitScores, folder: Path) -> list[str]:
    """Photos under a slider and tiles beside each other, those that gained most, half and least; also as PNG files."""
    sections = []
    if photos := scores.photos:
        best, typical, worst = photos[0], photos[len(photos) // 2], photos[-1]
        pair = restored_pair(dataset, model, typical)
        save_picture(before_after(*pair), folder / "photo.png")
        shown = _compared(pair, typical, RANKS[1] if len(photos) > 2 else "", LARGE)
        if len(photos) > 2:
            others = ((best, RANKS[0]), (worst, RANKS[2]))
            small = (_compared(restored_pair(dataset, model, photo), photo, rank, SMALL) for photo, rank in others)
            shown += f'<div class="two">{"".join(small)}</div>'
        sections.append(section("Before and after", shown, "Validation photos, which the network was not trained on. "
                                "Drag the line: degraded on the left, restored on the right."))
    tiles = scores.tiles
    rows = []
    for rank, (photo, number) in zip(RANKS, (tiles[0], tiles[len(tiles) // 2], tiles[-1]), strict=True):
        tile = tile_of(restored_pair(dataset, model, photo), photo, number, dataset.tile_shape[0])
        rows.append((rank, tile, *photo.tiles[number]))
    save_picture(tile_rows([(tile, before, after) for _, tile, before, after in rows]), folder / "tiles.png")
    drawn = "".join(triple(tile, rank, before, after) for rank, tile, before, after in rows)
    sections.append(section("Tiles", f'<div class="tiles">{drawn}</div>', f"Of {len(tiles):,} validation tiles."))
    return sections


def _compared(pair: Pair, photo: ScoredPhoto, rank: str, width: int) -> str:
    title = f"{photo.name} ({rank})" if rank else photo.name
    return compared(pair, title, photo.psnr_in, photo.psnr_out, width)


def tile_rows(rows: Sequence[tuple[Pair, float, float]]) -> np.ndarray:
    """Tiles twice as large, with their PSNR above: a row each of degraded, restored, clean."""
    return np.concatenate([
        captioned(side_by_side(*(magnify(picture, 2) for picture in pair)),
                  (f"{COLUMNS[0]}: PSNR {before:.2f} dB", f"{COLUMNS[1]}: PSNR {after:.2f} dB", COLUMNS[2]))
        for pair, before, after in rows])


def photo_table(scores: SplitScores) -> str:
    """The photos that were measured with their PSNR, best gain first."""
    rows = [(photo.name, len(photo.samples), f"{photo.psnr_in:.2f}", f"{photo.psnr_out:.2f}", f"{photo.gain:+.2f}")
            for photo in scores.photos]
    some = "" if len(rows) == scores.num_photos else f" of {scores.num_photos:,}, evenly spread over the first ones"
    note = (f"{len(rows)} validation photos{some}. PSNR in dB of each whole photo, output rounded to 8 bits; the "
            "validation's are means over tiles.")
    return section("Photos", table_of(("photo", "tiles", "degraded", "restored", "gain"), rows), note) if rows else ""


def pair_rows(dataset: ShardDataset, model: Network, num_pairs: int) -> np.ndarray:
    """The pairs spread evenly over a split, a row each: degraded, restored, clean; uint8 (rows, columns, 3)."""
    from torchvision.utils import make_grid  # slow to import, and wanted only here

    chosen = np.array(spread(range(dataset.num_samples), num_pairs))
    plain = _ready(model)
    tiles = []
    for clean, degraded in zip(*dataset.read(chosen), strict=True):
        tiles += [degraded, restore(degraded, plain), clean]
    stacked = torch.from_numpy(np.stack(tiles).reshape(len(tiles), *tiles[0].shape[:2], -1)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=len(COLUMNS), padding=GAP_PIXELS, pad_value=255).permute(1, 2, 0).numpy()


def _ready(model: Network) -> Network:
    """A copy without centering where the model is: not wrapped by Accelerate's autocast."""
    return model.without_centering().to(next(model.parameters()).device).eval()


def training_card(settings: Mapping[str, Any], points: Sequence[Values]) -> str:
    """The training for a model card, Markdown: its settings, and the best validation; "" where it never validated."""
    best = best_validation(points)
    if best is None:
        return ""
    optimizer, total = settings.get("optimizer"), settings.get("total_samples")
    shown = {"batch size of a process": settings.get("batch_size_per_process"), "seed": settings.get("seed"),
             "optimizer": optimizer.get("name") if isinstance(optimizer, dict) else None}
    words = [f"{key} {value}" for key, value in shown.items() if value is not None and _WORD.fullmatch(str(value))]
    listed = f"\n({', '.join(words)})" if words else ""
    return f"""**Training**: best validation PSNR after {best[STEP_KEY]:,.0f} of \
{f"{total:,}" if type(total) is int else "an unknown number of"} tiles{listed}.

**Validation**, mean over the tiles held back, PSNR in dB and SSIM, before (in) and after (out):

{results_table([best])}"""


def best_scores(points: Sequence[Values]) -> dict[str, float]:
    """The scores of the best validation for a model card: "psnr", "ssim", and those of its input."""
    best = best_validation(points) or {}
    return {key: best[f"val/{key}"] for key in ("psnr_in", "psnr", "ssim_in", "ssim") if f"val/{key}" in best}


def record_sections(run: Path, settings: Mapping[str, Any], dataset: ShardDataset, points: Sequence[Values]) -> str:
    """Settings, data, time and machine."""
    changed, others = split_settings(settings)
    rest = f'<details><summary>All other settings, at their defaults</summary>{facts("", others)}</details>'
    starts = read_starts(run)
    machine = starts.lines[-1].get("machine") if starts.lines else None
    known = {str(key)[:40]: value for key, value in machine.items()} if isinstance(machine, dict) else {}
    last = points[-1] if points else {}
    if math.isfinite(memory := last.get("memory_gib", math.nan)):
        known["memory used"] = f"{memory:.2f} GiB"
    if math.isfinite(wait := np.mean([point["data_wait"] for point in points if "data_wait" in point] or [math.nan])):
        known["waiting for data"] = f"{100 * wait:.1f} % of the time"
    columns = facts("Data", data_facts(dataset)) + facts("Machine", known)
    return (section("Settings", f'<div class="settings">{facts("", changed)}{rest}</div>',
                    "What differs from the defaults.")
            + section("Data and machine", f'<div class="columns">{columns}</div>')
            + section("Starts", table_of(("start", "end", "from tiles", "to tiles", "outcome", "on"),
                                         start_rows(starts))))


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The settings of a run as text, by name: those that differ from the defaults, and the others."""
    defaults = flat(plain(asdict(TrainConfig())))
    values = flat(settings)
    differs = {key: key not in defaults or defaults[key] != value for key, value in values.items()}
    shown = {key: without_credentials(value if isinstance(value, str) else json.dumps(value, default=str))
             for key, value in values.items()}
    return ({key: text for key, text in shown.items() if differs[key]},
            {key: text for key, text in shown.items() if not differs[key]})


def data_facts(dataset: ShardDataset) -> dict[str, str]:
    """Both splits: where they lie, how many tiles and photos, how degraded, and their hashes."""
    root = dataset.location.rpartition("/")[0]
    try:
        train: Manifest | None = read_manifest(open_storage(f"{root}/train"))
        problem = ""
    except (OSError, UserError) as error:
        train, problem = None, str(error)
    result = {"shards": without_credentials(root)}
    for split, manifest in (("training", train), ("validation", dataset.manifest)):
        if manifest is None:
            result[split] = f"cannot be read: {without_credentials(problem)}"
            continue
        photos = f" of {manifest.photos.num_photos:,} photos" if manifest.photos else ""
        psnr = f", degraded {manifest.degraded_psnr:.2f} dB" if manifest.degraded_psnr else ""
        result[split] = f"{manifest.num_samples:,} tiles{photos} in {len(manifest.shards)} shards{psnr}"
        result[f"{split}, sha256"] = manifest.hash()
    versions = ", ".join(f"{name} {version}" for name, version in dataset.manifest.versions.items())
    return result | {"tile": "x".join(map(str, dataset.tile_shape)) + " pixels", "damage": dataset.manifest.damage
                     or "unknown", "made with": versions}


def start_rows(starts: JobHistory) -> list[tuple[str, ...]]:
    """The last starts of a run, a row of a table each."""
    rows = []
    for line in starts.lines[-MOST_STARTS:]:
        end = line.get("end") or {}
        rows.append(tuple(str(value) for value in (
            line.get("time"), end.get("time", "unknown"), line.get("samples"), end.get("samples", "unknown"),
            end.get("end", "running, or killed"), line["facts"].get("nodes", "unknown"))))
    return rows
