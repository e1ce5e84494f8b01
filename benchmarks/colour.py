"""What restoring gains on colour JPEGs: `python -m benchmarks.colour --photos DIR [DIR ...]`.

Every clean colour photo is saved as a JPEG and restored: the luma alone with the chroma passed through, then with the
chroma smoothed along the restored luma's edges (`srcnn.chroma`), and, for comparison, with B - Y and R - Y sent through
the luma's network. PSNR in dB after rounding to uint8, a mean over the photos of each folder: of RGB, and of the luma
(Pillow's L). The network is the shipped one of the nearest quality, whole photos at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.report import machine
from srcnn.apply import run_network
from srcnn.chroma import smooth_chroma
from srcnn.degrade import jpeg
from srcnn.metrics import psnr
from srcnn.model import SRCNN, WEIGHTS, computes_bf16, load_model
from srcnn.photo import luma_l, over_white, photos_below, read_photo
from srcnn.ycbcr import LUMA_WEIGHTS

QUALITIES = (10, 20, 40, 80)
SUBSAMPLINGS = ("4:2:0", "4:4:4")
HEADER = (
    "| photos | n | quality | chroma | network | RGB: JPEG | luma restored | chroma smoothed | gain | "
    "chroma by the network | L: JPEG | luma restored | chroma smoothed |\n|---|---:|---:|---|---|" + "---:|" * 8
)
COLUMNS = ("rgb_jpeg", "rgb_luma", "rgb_smooth", "rgb_network", "luma_jpeg", "luma_luma", "luma_smooth")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures restoring of colour JPEGs, with and without their chroma.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean colour photos")
    parser.add_argument("--weights", default="srcnn-915", help="shipped weights' name, up to the quality")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES)
    parser.add_argument("--num", type=int, default=0, help="photos of each folder, the first by name; 0: all")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON too")
    return parser.parse_args()


def nearest_weights(family: str, quality: int) -> str:
    """The shipped name FAMILY-qNN of the nearest quality; the lower one of two."""
    names = (re.fullmatch(re.escape(family) + r"-q(\d+)", path.stem) for path in WEIGHTS.glob("*.safetensors"))
    found = sorted((abs(int(match[1]) - quality), int(match[1]), match[0]) for match in names if match)
    if not found:
        raise FileNotFoundError(f"{family}: no shipped weights {family}-qNN in {WEIGHTS}")
    return found[0][2]


def colour_photos(folder: Path, num: int) -> Iterator[np.ndarray]:
    """Pixels of the folder's colour photos; greyscale ones are left out and named."""
    for path in tqdm(photos_below(folder)[: num or None], folder.name, disable=None):
        pixels = over_white(read_photo(path))
        if pixels.ndim == 3:
            yield pixels
        else:
            print(f"{path}: greyscale, left out", file=sys.stderr)


@torch.inference_mode()
def measure(clean: np.ndarray, quality: int, subsampling: str, model: SRCNN) -> list[float]:
    """dB, in the order of COLUMNS."""
    degraded = jpeg(clean, quality, subsampling)
    bf16 = computes_bf16(torch.device("cpu"))
    planes = torch.from_numpy(degraded / np.float32(255)).permute(2, 0, 1)
    luma = sum(weight * plane for weight, plane in zip(LUMA_WEIGHTS, planes, strict=True))[None]
    chroma = torch.stack([planes[2], planes[0]]) - luma
    restored = run_network(luma, model, bf16)
    by_network = torch.cat([run_network(plane[None] + 0.5, model, bf16) - 0.5 for plane in chroma])
    luma_only, smooth, network = (
        to_pixels(restored, each) for each in (chroma, smooth_chroma(chroma, restored, quality), by_network)
    )
    return [psnr(clean, other) for other in (degraded, luma_only, smooth, network)] + [
        psnr(luma_l(clean), luma_l(other)) for other in (degraded, luma_only, smooth)
    ]


def to_pixels(luma: torch.Tensor, chroma: torch.Tensor) -> np.ndarray:
    """Y, and B - Y and R - Y -> uint8 (H, W, 3)."""
    blue, red = chroma + luma
    green = (luma[0] - LUMA_WEIGHTS[0] * red - LUMA_WEIGHTS[2] * blue) / LUMA_WEIGHTS[1]
    return (torch.stack([red, green, blue], -1) * 255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def rows_of(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each quality and subsampling."""
    settings = [(quality, subsampling) for quality in options.qualities for subsampling in SUBSAMPLINGS]
    names = {quality: nearest_weights(options.weights, quality) for quality in options.qualities}
    models = {name: load_model(name) for name in names.values()}
    found = np.array([
        [measure(clean, quality, subsampling, models[names[quality]]) for quality, subsampling in settings]
        for clean in colour_photos(folder, options.num)
    ])  # fmt: skip
    if not len(found):
        raise ValueError(f"{folder}: no colour photo")
    rows = []
    for number, (quality, subsampling) in enumerate(settings):
        gains = found[:, number, 2] - found[:, number, 1]
        rows.append({
            "photos": folder.name, "num_photos": len(found), "quality": quality, "subsampling": subsampling,
            "weights": names[quality], **dict(zip(COLUMNS, found[:, number].mean(axis=0).tolist(), strict=True)),
            "gain": float(gains.mean()), "least_gain": float(gains.min()), "num_lost": int((gains < 0).sum()),
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [HEADER]
    for row in rows:
        numbers = [f"{row[column]:.2f}" for column in COLUMNS]
        numbers.insert(3, f"{row['gain']:+.2f}")
        about = [str(row[key]) for key in ("photos", "num_photos", "quality", "subsampling", "weights")]
        lines.append("| " + " | ".join(about + numbers) + " |")
    return "\n".join(lines)


def main() -> int:
    options = parse()
    rows = [row for folder in options.photos for row in rows_of(folder, options)]
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
