"""Does the fast way train as well, and what does it give? PSNR after the same tiles by every way to train; and the
weights that some minutes of the product's own training on all shards give.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks import material
from benchmarks.contestant import Step, our_step, source_step
from benchmarks.gpu_part import Part, convolutions, forget_accelerator, product_settings
from srcnn.benchmark import now
from srcnn.cards import sets_for
from srcnn.degrade import Degradation
from srcnn.history import STEP_KEY, read_metrics
from srcnn.model import DEFAULT_WEIGHTS, SRCNN, load_model, to_device
from srcnn.reader import ShardReader
from srcnn.resident import load_resident
from srcnn.run import TrainConfig, start_accelerator
from srcnn.stream import Batch, StreamConfig
from srcnn.validate import validate

BATCH, STEPS = 32, 2000  # the source's batch
WAY_SECONDS = 25.0
CONFIG = "configs/srcnn-915-gpu.yaml"
STARTING_SECONDS = 30.0  # of the training's process, its compiler and its shards
SCORING_SECONDS = 15.0
SHARE = 0.8  # of the time that is left, which the training is planned for; the rest is its validations
EXPECTED_RATE = 40_000  # tiles/s, where the stream's part has found none
QUICK_TILES = 32
NUM_VALIDATIONS = 12


def measure_quality(part: Part) -> None:
    """Every way trains from the same weights on the same batches."""
    reader = ShardReader(part.shards / "train")
    with closing(reader):
        tiles = load_resident(reader, StreamConfig(), part.device)
    steps, batch_size = (3, 2) if part.quick else (STEPS, BATCH)
    choices = torch.randint(reader.num_samples, (steps, batch_size), generator=torch.Generator().manual_seed(0))
    samples = choices.to(part.device)
    none = torch.zeros(batch_size, dtype=torch.uint8, device=part.device)
    data = [Batch(*(half[chosen] for half in tiles), chosen, none) for chosen in samples]
    part.note(steps=steps, batch_size=batch_size)
    rows: dict[str, dict[str, float]] = {}
    fast = product_settings(part)
    ways: dict[str, tuple[str, bool, dict[str, Any]]] = {
        "source's loop, float32": ("source", False, {}), "srcnn, bfloat16": ("bf16", True, {}),
        f"srcnn, bfloat16, compile {fast['compile']}": ("bf16", True, fast), "srcnn, float32": ("fp32", False, {}),
        "srcnn, TF32": ("fp32", True, {}), "srcnn, float16": ("fp16", True, {}),
        "source's loop, TF32": ("source", True, {}),
    }  # fmt: skip
    if not fast["compile"]:
        del ways[f"srcnn, bfloat16, compile {fast['compile']}"]
    for name, (precision, tf32, settings) in ways.items():
        found = part.attempt(name, lambda: train_a_while(part, precision, tf32, settings, data), WAY_SECONDS)
        if found is not None:
            rows[name] = found
            part.note(rows=rows)


def train_a_while(
    part: Part, precision: str, tf32: bool, settings: dict[str, Any], data: list[Batch]
) -> dict[str, float]:
    """PSNR on the validation tiles after a step on each batch, dB, and the seconds of the steps."""
    forget_accelerator()
    step: Step
    if precision == "source":
        step, network = source_step(0, part.device)
    else:
        step, network = our_step(0, precision, len(data[0].clean), **settings)
    with convolutions(tf32, tried=False):
        begin = now(part.device)
        for batch in data:
            loss = step(batch)
        seconds = now(part.device) - begin
    plain = SRCNN()
    plain.load_state_dict(network.state_dict())
    return psnr_of(part, plain) | {"last_loss": loss, "seconds": seconds}


def psnr_of(part: Part, network: SRCNN) -> dict[str, float]:
    """On the validation tiles, in float32, dB."""
    forget_accelerator()
    reader = ShardReader(part.shards / "val")
    with closing(reader):
        values = validate(network, reader, start_accelerator(TrainConfig(mixed_precision="no")))
    return {"psnr": values["val/psnr"], "psnr_in": values["val/psnr_in"]}


def measure_result(part: Part) -> None:
    """The product's training for as long as there is, validated on the way; then scores beside the shipped weights."""
    part.attempt("the shipped weights", lambda: part.note(shipped=psnr_of(part, load_model(DEFAULT_WEIGHTS))), 20)
    folder = part.work / "run"
    part.attempt("training", lambda: train_all(part, folder))
    if not (folder / "best").exists():
        return
    weights = part.results.with_name("gpu-weights.safetensors")
    shutil.copyfile(folder / "best" / "model.safetensors", weights)
    part.note(weights=weights.name)
    part.attempt("scores", lambda: score(part, {"trained here": str(weights), "shipped": DEFAULT_WEIGHTS}))


def train_all(part: Part, folder: Path) -> None:
    """`accelerate launch launch/train.py`; its validations are noted with the seconds since the command was given."""
    rows = part.of_part("stream").get("rows", [])
    rate = max((row["tiles_per_second"] for row in rows if row["resident"] == "device" and row["batch_size"] == 256),
               default=EXPECTED_RATE)
    training = (part.left - STARTING_SECONDS - SCORING_SECONDS) * SHARE
    tiles = QUICK_TILES if part.quick else max(256_000, int(training * rate))
    part.note(planned_tiles=tiles)
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "launch/train.py", "--config", CONFIG,
        "--shards", str(part.shards), "--run", str(folder), "--total_samples", str(tiles),
        "--validate_every_samples", str(-(-tiles // NUM_VALIDATIONS)),
        "--log_every_samples", str(-(-tiles // NUM_VALIDATIONS)),
        "--compile", str(product_settings(part)["compile"]).lower(),
    ]  # fmt: skip
    command += ["--batch_size_per_process", "8", "--optimizer.warmup_samples", "0"] if part.quick else []
    environment = os.environ | {"PYTHONPATH": str(material.ROOT)}
    log = part.results.with_name("gpu-training.log")
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=material.ROOT, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            time.sleep(0.2)
            watch(part, folder, time.monotonic() - began)
            if part.left < SCORING_SECONDS / 2:
                process.terminate()  # it leaves a checkpoint
                process.wait()
    watch(part, folder, time.monotonic() - began)
    if process.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"launch/train.py ended with status {process.returncode}: {''.join(last)}")


def watch(part: Part, folder: Path, seconds: float) -> None:
    """Notes the validations that have come since the last look."""
    try:
        points = read_metrics(folder)
    except (OSError, ValueError):  # not there yet, or being written
        return
    seen = part.found.setdefault("points", [])
    new = [point for point in points if "val/psnr" in point][len(seen):]
    for point in new:
        row = {"seconds": seconds, "tiles": point[STEP_KEY]}
        row |= {key: point[f"val/{key}"] for key in ("psnr", "psnr_in", "gain")}
        seen.append(row | {"tiles_per_second": point.get("tiles_per_second", 0.0)})
    if new:
        part.note(points=seen)


def score(part: Part, weights: dict[str, str]) -> None:
    """As `srcnn score` and the model cards have it, on those of the cards' folders that are below the photos."""
    photos = part.photos / "val" if part.photos else None
    sets = [each for each in sets_for(Degradation()) if photos and (photos / each.folder).is_dir()]
    scores: dict[str, dict[str, Any]] = {}
    for each in sets:
        for name, source in weights.items():
            model = to_device(load_model(source), part.device)
            mean = each.score(model, photos) if photos else {}
            scores.setdefault(each.title, {})[name] = {key: mean[key] for key in ("psnr_in", "psnr", "gain", "ssim")}
            part.note(scores=scores)
