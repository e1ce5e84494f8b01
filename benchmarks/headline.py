"""Trains a config for some minutes on one GPU and scores it beside published results: `python -m benchmarks.headline`.

The way is that of any user: `python -m shards`, `accelerate launch launch/train.py`. launch/benchmark.py first says how
many tiles fit into the time, for the learning rate falls to zero over a number of tiles. Where the time is over before
they are, the run is told to stop, its best weights are scored, and the same command goes on with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.material import PHOTOS, ROOT, TILE_PIXELS
from benchmarks.report import machine
from srcnn.cards import ScoredSet
from srcnn.config import read_yaml
from srcnn.degrade import Degradation, degrade
from srcnn.files import write_json
from srcnn.model import device_here, load_model, to_device
from srcnn.network import Network
from srcnn.photo import LUMA, LumaKind, over_white, photos_below, read_photo
from srcnn.restore import restore_pixels
from srcnn.signals import STOPPED
from srcnn.tracking import STEP_KEY, read_metrics

MARGIN = 0.93  # of the tiles that the measured rate promises; the rest is validations, checkpoints, the report
FEWEST_STEPS = 10
SETS: tuple[tuple[str, LumaKind], ...] = (("live1_y", "y"), ("classic5", "y"), ("city20", "y"), ("city20", "l"))
QUALITIES = (10, 20, 30, 40)  # of a network for a range of them
QUICK = ("--unet.widths", "[4, 6]", "--unet.num_blocks", "1", "--batch_size", "4", "--mixed_precision", "no",
         "--compile", "false", "--stream.resident", "no", "--optimizer.warmup_samples", "0",
         "--optimizer.average_halflife_samples", "0", "--log_every_samples", "20", "--validate_every_samples", "1000")
METHODS = {
    "AR-CNN": "Dong et al., ICCV 2015", "DnCNN-3": "Zhang et al., IEEE TIP 2017", "MWCNN": "Liu et al., CVPRW 2018",
    "FBCNN": "Jiang et al., ICCV 2021",
}
# PSNR dB, SSIM, PSNR-B dB on the Y of MATLAB's rgb2ycbcr (LIVE1) and on grey photos (Classic5), at qualities 10 to 40.
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float, float], ...]]] = {
    "live1_y": {
        "AR-CNN": ((28.96, 0.808, 28.77), (31.29, 0.873, 30.79), (32.67, 0.904, 32.22), (33.63, 0.920, 33.14)),
        "DnCNN-3": ((29.19, 0.812, 28.90), (31.59, 0.880, 31.07), (32.98, 0.909, 32.34), (33.96, 0.925, 33.28)),
        "MWCNN": ((29.69, 0.825, 29.32), (32.04, 0.889, 31.51), (33.45, 0.915, 32.80), (34.45, 0.930, 33.78)),
        "FBCNN": ((29.75, 0.827, 29.40), (32.13, 0.889, 31.57), (33.54, 0.916, 32.83), (34.53, 0.931, 33.74)),
    },
    "classic5": {
        "AR-CNN": ((29.03, 0.793, 28.76), (31.15, 0.852, 30.59), (32.51, 0.881, 31.98), (33.33, 0.895, 32.79)),
        "DnCNN-3": ((29.40, 0.803, 29.13), (31.63, 0.861, 31.19), (32.91, 0.886, 32.38), (33.77, 0.900, 33.20)),
        "FBCNN": ((30.12, 0.822, 29.80), (32.31, 0.872, 31.74), (33.54, 0.894, 32.78), (34.35, 0.907, 33.48)),
    },
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "unet-q20.yaml")
    parser.add_argument("--minutes", type=float, default=12.0, help="from the start to the end of the training")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder with train/ and val/, of sets of photos")
    parser.add_argument("--shards", type=Path, help="take these; else they are made once, of the photos")
    parser.add_argument("--quality", default="20", help="of the shards that are made: 20, or '[5, 95]'")
    parser.add_argument("--work", type=Path, default=Path("runs/headline"), help="the run, its plan, the results")
    parser.add_argument("--quick", action="store_true", help="does it work? A tiny network on the CPU")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of launch/train.py")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    begun, options = time.monotonic(), parse(arguments)
    if options.photos is None:
        raise SystemExit("benchmarks.headline: say where the photographs are: --photos")
    options.work.mkdir(parents=True, exist_ok=True)
    shards, deadline = options.shards or make_shards(options), begun + 60 * options.minutes
    more = [f"--{setting}" for setting in options.set]
    settings = ["--config", str(options.config), "--shards", str(shards), *(QUICK if options.quick else ()), *more]
    plan = plan_of(options, settings, deadline)
    is_done = train(options, [*settings, "--total_samples", str(plan["total_samples"])], deadline)
    result = plan | {"is_done": is_done, "machine": machine()} | score(options)
    write_json(options.work / "headline.json", result)
    (options.work / "headline.md").write_text(text := table(result), encoding="utf-8")
    print(text)
    return 0


def make_shards(options: argparse.Namespace) -> Path:
    """Shards of the freely licensed photographs in the work folder, once."""
    shards = Path(options.work, "shards")
    if not (shards / "val" / "manifest.json").is_file():
        subprocess.run([
            sys.executable, "-m", "shards", "--config", "configs/shards-free.yaml", "--out", shards.resolve(),
            "--photos", (options.photos / "train").resolve(), "--val", (options.photos / "val" / "city20").resolve(),
            "--degradation.jpeg_quality", options.quality,
        ], cwd=ROOT, check=True)  # fmt: skip
    return shards


def launch(options: argparse.Namespace, script: str, settings: list[str]) -> subprocess.Popen[bytes]:
    """A script of launch/ on one device, in a process group of its own."""
    accelerate = ROOT / "configs" / "accelerate" / ("cpu.yaml" if options.quick else "gpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate),
               str(ROOT / "launch" / script), *settings, "--run", str(options.work / "run"), "--trackers", "[]"]
    return subprocess.Popen(command, start_new_session=True)


def plan_of(options: argparse.Namespace, settings: list[str], deadline: float) -> dict[str, Any]:
    """How many tiles the training is of: measured once, kept in the work folder.

    Raises:
        SystemExit: the time is too short, or the settings are wrong.
    """
    path = options.work / "plan.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    begin, rates = time.monotonic(), options.work / "rate.json"
    size = ["--num_rounds", "1", "--num_steps", "2" if options.quick else "20", "--json", str(rates)]
    if status := launch(options, "benchmark.py", [*settings, *size]).wait():
        raise SystemExit(status)
    measured = json.loads(rates.read_text())
    now = time.monotonic()
    seconds = deadline - now - (now - begin)  # the training takes as long to start and to compile
    rate, size_of_step = measured["tiles_per_second"], measured["batch_size"]
    total = size_of_step * int(MARGIN * rate * seconds / size_of_step)
    if total < FEWEST_STEPS * size_of_step:
        told = f"{options.minutes:g} minutes leave {seconds:.0f} s for {total} tiles, less than {FEWEST_STEPS} steps"
        raise SystemExit(f"benchmarks.headline: {told}; give it more --minutes")
    plan = {"config": options.config.name, "minutes": options.minutes, "total_samples": total, "tiles_per_second": rate,
            "device": measured["device_of_each"], "gflop_per_tile": measured["gflop_per_tile"],
            "memory_gib": measured["memory_gib"], "settings": settings}
    write_json(path, plan)
    return plan


def train(options: argparse.Namespace, settings: list[str], deadline: float) -> bool:
    """Begins the run or goes on with it; whether it came to its end in time. Raises SystemExit where it failed."""
    process = launch(options, "train.py", settings)
    try:
        status = process.wait(max(1.0, deadline - time.monotonic()))
        if status:
            raise SystemExit(status)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # a launcher of a single process passes no signal on
        if process.wait() not in (STOPPED, -signal.SIGTERM, 128 + signal.SIGTERM, 1):
            raise SystemExit(process.returncode) from None
        while _is_alive(process.pid):
            time.sleep(0.2)
        print("benchmarks.headline: the time is over; the same command goes on with the run", file=sys.stderr)
        return False


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def score(options: argparse.Namespace) -> dict[str, Any]:
    """The best weights so far on every set of photos that is there."""
    run = options.work / "run"
    model = to_device(load_model(run), device_here())
    trained_on = read_yaml(run / "config.yaml")
    manifest = json.loads(Path(trained_on["shards"], "val", "manifest.json").read_text())
    bounds = Degradation.from_config(manifest["config"]["degradation"]).quality_bounds()
    qualities = [bounds[0]] if bounds and bounds[0] == bounds[1] else QUALITIES
    damages = [Degradation(jpeg_quality=quality) for quality in qualities]
    sets = [ScoredSet(folder, luma, damage) for folder, luma in SETS for damage in damages]
    photos = options.photos / "val"
    return {
        "halo": halo_of(model, photos),
        "samples": read_metrics(run)[-1][STEP_KEY],
        "network": model.name, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scores": {each.title: each.score(model, photos) for each in sets if (photos / each.folder).is_dir()},
    }


def halo_of(model: Network, photos: Path) -> dict[str, float]:
    """How far tiles with the network's halo differ from the whole photo at most, in levels of 255, before rounding."""
    clean = LUMA["l"](over_white(read_photo(photos_below(photos / SETS[0][0])[0])))
    pixels = degrade(clean, Degradation(jpeg_quality=20), 20) / np.float32(255)
    whole, tiled = (restore_pixels(pixels, model, side, exact=True) for side in (max(pixels.shape), TILE_PIXELS))
    return {"pixels": model.halo, "largest_error_levels": float(255 * np.abs(whole - tiled).max())}


def table(result: dict[str, Any]) -> str:
    """A row for the input, the network and each published method, on each set."""
    lines = ["| photos | | PSNR dB | gain dB | SSIM | PSNR-B dB |", "|---|---|---:|---:|---:|---:|"]
    for title, scores in result["scores"].items():
        rows = {"input": [scores["psnr_in"], scores["ssim_in"], scores["psnr_b_in"]],
                f"{result['network']}, measured": [scores["psnr"], scores["ssim"], scores["psnr_b"]]}
        each = ScoredSet.parse(title)
        quality = each.degradation.quality("0" * 64)
        if each.folder in PUBLISHED and quality in QUALITIES:
            rows |= {f"{name}, published": list(numbers[QUALITIES.index(quality)])
                     for name, numbers in PUBLISHED[each.folder].items()}
        for name, (decibels, ssim, blocks) in rows.items():
            gain = f"{decibels - scores['psnr_in']:+.2f}"
            lines.append(f"| {title} | {name} | {decibels:.2f} | {gain} | {ssim:.3f} | {blocks:.2f} |")
    sources = "; ".join(f"{name}: {source}" for name, source in METHODS.items())
    told = f"{result['network']}, {result['parameters']:,} parameters, after {result['samples']:,} of "
    told += f"{result['total_samples']:,} tiles, on {result['device']}. "
    told += f"Tiles with a halo of {result['halo']['pixels']} pixels differ from the whole photo by "
    told += f"{result['halo']['largest_error_levels']:.3f} levels at most"
    return "\n".join([*lines, "", f"{told}. Published: {sources}.", ""])


if __name__ == "__main__":
    sys.exit(main())
