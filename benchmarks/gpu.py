"""Training and restoring on a GPU, all in one go: `make bench-gpu`, or `python -m benchmarks.gpu --help`.

The step: the source project's loop and ours in float32 and bfloat16, eager and compiled, and what they learn from the
same batches. The stream: what a run's tiles/s are with shards in the device's memory, the host's, or read as needed.
Restoring: a photo of 12 megapixels and a folder, beside plain PyTorch and ONNX Runtime. Tables on standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import restoring, training
from benchmarks.measure import WORK, Failed, alternate, log, machine, not_measured, table

# Where the samples are while training, and the threads that read them.
STREAMS = (("device", 2), ("host", 2), ("host", 8), ("no", 2), ("no", 8), ("no", 16))
SECONDS = 2.0  # about so long is each variant's stretch of steps, at TILES_PER_SECOND
TILES_PER_SECOND = 30_000  # of a card of the H100's class, as docs/scaling.md assumes


def training_options(options: argparse.Namespace) -> argparse.Namespace:
    """Those of `benchmarks.training`."""
    arguments = ["--device", options.device, "--batch_size", str(options.batch_size), "--work", str(options.work),
                 "--cores", str(len(os.sched_getaffinity(0)))]
    if options.quick:
        arguments += ["--quick", "--cores", "1"]
    else:
        num_steps = max(10, round(SECONDS / 4 * TILES_PER_SECOND / options.batch_size))
        arguments += ["--compiled", "--num_steps", str(num_steps), "--curve_steps", "2000", "--curve_batch_size", "32"]
    settings = training.parse(arguments)
    settings.photos = options.photos
    return settings


def measure_steps(options: argparse.Namespace) -> str:
    """The tables of `benchmarks.training` on this device."""
    settings = training_options(options)
    variants = training.VARIANTS | ({} if options.quick else training.COMPILED)
    with ExitStack() as stack:
        trainers = training.start_trainers(settings, variants, stack)
        return f"{training.measure_steps(settings, trainers)}\n\n{training.measure_curves(settings, trainers)}"


def measure_streams(options: argparse.Namespace) -> str:
    """Tiles/s of `launch/benchmark.py` with the stream and with one batch again and again, for every kind of stream."""
    shards = training.shards_of(training_options(options))
    precision = "no" if options.device == "cpu" else "bf16"
    num_steps = 1 if options.quick else max(10, round(SECONDS * TILES_PER_SECOND / options.batch_size))

    def launch(resident: str, num_threads: int) -> dict[str, Any]:
        return training.launch(
            "cpu" if options.device == "cpu" else "gpu", shards, None, "--mixed_precision", precision,
            "--batch_size_per_process", str(options.batch_size), "--num_steps", str(num_steps),
            "--compile", "false" if options.quick else "true", "--stream.resident", resident,
            "--stream.num_threads", str(num_threads),
        )  # fmt: skip

    streams = STREAMS[-1:] if options.quick else STREAMS
    variants = {f"resident: {name}, {threads} threads": partial(launch, name, threads) for name, threads in streams}
    failed: dict[str, str] = {}
    rows = []
    for name, (one,) in alternate(variants, 1, failed).items():
        rows.append([name, f"{one['tiles_per_second']:,.0f}", f"{one['tiles_per_second_synthetic']:,.0f}",
                     f"{one['data_wait']:.1%}", f"{one['share_of_peak']:.0%}", f"{one['memory_gib']:.1f}"])
    header = ["stream", "tiles/s", "one batch again and again", "waiting for data", "of the largest product's", "GiB"]
    about = f"Training from shards in the page cache, batches of {options.batch_size}, {precision}:"
    return "\n\n".join(filter(None, [about, table(header, rows), not_measured(failed)]))


def measure_restoring(options: argparse.Namespace) -> str:
    """The table of `benchmarks.restoring` on this device."""
    arguments = ["--device", options.device, "--work", str(options.work), "--peers", "PyTorch"]
    arguments += ["--quick", "--cores", "1"] if options.quick else \
        ["ONNX Runtime", "--rounds", "3", "--cores", str(len(os.sched_getaffinity(0)))]
    settings = restoring.parse(arguments)
    settings.photos = options.photos
    restoring.make_photos(settings)
    return "\n\n".join(restoring.measure(settings, network)[0] for network in settings.networks)


PARTS = {"step": measure_steps, "stream": measure_streams, "restoring": measure_restoring}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures training and restoring on a GPU.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--work", type=Path, default=WORK, help="shards, photos, kept between calls")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="does it work? Small, not compiled")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    options.batch_size = 2 if options.quick else options.batch_size
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU of NVIDIA's is found; --quick --device cpu shows that the program works")
    failed: dict[str, str] = {}
    for name in options.only:
        log(f"measuring: {name}")
        try:
            print(f"## {name}\n\n{PARTS[name](options)}\n", flush=True)
        except Failed as error:
            failed[name] = str(error)
    card = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    print("\n\n".join(filter(None, [not_measured(failed), f"{machine()}, torch {torch.__version__}{card}"])))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
