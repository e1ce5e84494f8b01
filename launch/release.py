"""python launch/release.py --run runs/NAME --photos DIR [--out srcnn/weights]

Puts a run's best weights where the package ships them, with a model card: data, config, commit, and the scores on the
folders of clean photos below DIR: live1_y, classic5 (greyscale, taken as limited-range Y), live1_color, city20, ...
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from srcnn.degrade import Degradation
from srcnn.files import write_json
from srcnn.model import SRCNN, WEIGHTS, load_model, save_model
from srcnn.photo import LumaKind
from srcnn.sample import Manifest
from srcnn.score import LUMA_NAMES, score_folder, to_json

SETS: tuple[tuple[str, LumaKind], ...] = (("live1_y", "y"), ("classic5", "y"), ("live1_color", "l"), ("city20", "l"),
                                          ("bsd100", "l"), ("set14", "l"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--quality", type=int, default=20)
    options = parser.parse_args()
    model = load_model(options.run)
    scores = score_sets(model, options.photos, options.quality)
    config = yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf-8"))
    settings = {key: value for key, value in config.items() if key not in ("run", "shards")}  # paths of one machine
    card = {"config": settings, "data": data_card(config), "commit": commit(), "scores": scores}
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.run.resolve().name
    save_model(model, options.out / f"{name}.safetensors")
    write_json(options.out / f"{name}.json", card)
    (options.out / f"{name}.md").write_text(to_markdown(name, model, card), encoding="utf-8")
    print((options.out / f"{name}.md").read_text(encoding="utf-8"))
    return 0


def score_sets(model: SRCNN, photos: Path, quality: int) -> dict[str, Any]:
    """Mean scores of every set of SETS that is there."""
    scores = {}
    for folder, luma in SETS:
        if (photos / folder).is_dir():
            found, _ = score_folder(photos / folder, model, luma, Degradation(jpeg_quality=quality))
            scores[f"{folder}, {luma.upper()}, quality {quality}"] = to_json(found)[-1] | {"num_photos": len(found)}
    return scores


def data_card(config: dict[str, Any]) -> dict[str, Any]:
    """What the weights were trained on, from the manifest."""
    manifest = Manifest.read(Path(config["shards"], "train"))
    folders = sorted({photo.name.split("/")[0] for photo in manifest.photos if "/" in photo.name})
    return {"folders": folders, "num_photos": len(manifest.photos), "num_tiles": manifest.num_samples,
            "manifest_hash": manifest.hash(), "shards": manifest.config, "versions": manifest.versions}


def commit() -> str:
    """The commit the weights were scored and released at, with a mark where the tree had changes."""
    return subprocess.check_output(["git", "describe", "--always", "--dirty", "--abbrev=12"], text=True).strip()


def to_markdown(name: str, model: SRCNN, card: dict[str, Any]) -> str:
    """The card for people."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = "\n".join(
        f"| {title} | {row['psnr_in']:.2f} | {row['psnr']:.2f} | {row['gain']:+.2f} | {row['gain_percent']:+.1f} | "
        f"{row['ssim_in']:.4f} -> {row['ssim']:.4f} | {row['psnr_b_in']:.2f} -> {row['psnr_b']:.2f} |"
        for title, row in card["scores"].items()
    )
    data = card["data"]
    continued = f", continuing from {card['config']['weights']}" if card["config"]["weights"] else ""
    return f"""# {name}

SRCNN {"-".join(map(str, model.config.kernels))}, filters {"-".join(map(str, model.config.filters))},
{"with" if model.config.residual else "without"} a residual connection, {num_parameters:,} parameters, for the luma of
photographs damaged by JPEG of about this quality. Licence: Apache-2.0, as the code.

**Trained on** {data["num_photos"]} photographs ({", ".join(data["folders"])}), {data["num_tiles"]:,} tiles;
{card["config"]["total_samples"]:,} tiles seen{continued}.
Best checkpoint by validation PSNR on the folder given as `val` when the shards were made.
Released at commit {card["commit"]}, data {data["manifest_hash"][:12]}, Pillow {data["versions"]["pillow"]},
libjpeg {data["versions"]["libjpeg"]}. Config and shard settings: {name}.json.

**Scores** (Y and L: the two kinds of greyscale, {LUMA_NAMES["y"]} and {LUMA_NAMES["l"]};
no border cut off, output clipped and rounded to uint8, mean over the photos):

| photos | input dB | output dB | gain dB | gain % | SSIM | PSNR-B |
|---|---:|---:|---:|---:|---|---|
{rows}
"""


if __name__ == "__main__":
    sys.exit(main())
