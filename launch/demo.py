"""python -m launch.demo [--photos DIR] [--out DIR]: what `make demo` runs, some four minutes on two cores.

A photograph restored by the shipped weights; then a network trained on photos, drawn ones or those of --photos, and its
report. Started again it goes on where it was, and makes nothing twice.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from shards.command import run as run_shards
from shards.plan import ShardsConfig
from shards.skylines import write_skylines
from shards.workers import ShardsFailed
from srcnn.runtime import signals
from srcnn.runtime.parallel import let_waiting_threads_sleep
from srcnn.runtime.settings import parse

# What needs torch is imported where it is wanted: the processes that draw import this file too.

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / "docs/pictures/colorado.jpg"
TRAINING = ROOT / "configs/demo.yaml"
NUM_DRAWN, DRAWN_SIZE = 12, (1024, 1024)
JPEG_QUALITY = 20  # of configs/shards.yaml too


class DemoFailed(Exception):
    """A step could not be done; the message says why, or is empty where the step has said so."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a step failed, 75 or 130 told to stop."""
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="train on these photos (default: drawn ones)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder for all that is made (default: demo/skylines, or demo/own-NAME of --photos)")
    options = parser.parse_args(arguments)
    let_waiting_threads_sleep()
    own: Path | None = options.photos
    try:
        demonstrate(own, options.out or Path("demo", f"own-{own.resolve().name}" if own else "skylines"))
    except (DemoFailed, ShardsFailed, OSError, ValueError) as error:
        if str(error):
            print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on", file=sys.stderr)
        return signals.EXIT_INTERRUPTED
    return 0


def demonstrate(own: Path | None, out: Path) -> None:
    """All steps, each announced.

    Raises:
        DemoFailed, ShardsFailed, OSError, ValueError: a step could not be done.
    """
    picture, photos, shards, run = out / "photograph.png", own or out / "photos", out / "shards", out / "run"
    if own is not None and not own.is_dir():
        raise DemoFailed(f"{own}: no such folder of photos")
    show_restored(picture)
    if own is None:
        announce(2, f"Drawing {NUM_DRAWN} photos of skylines to train on", "some 10 seconds")
        write_skylines(photos, NUM_DRAWN, size=DRAWN_SIZE, show_progress=True)
    else:
        announce(2, f"Taking the photos in {own} to train on", "nothing is changed there")
    announce(3, f"Cutting each into tiles, as it is and as a JPEG of quality {JPEG_QUALITY}",
             "some seconds" if own is None else "a minute for 300 large photos")
    make_tiles(photos, shards)
    announce(4, "Training a network that makes the originals of the JPEGs", "two minutes on two older cores, else less")
    train_on(shards, run)
    conclude(own, picture, shards, run)


def announce(step: int, work: str, duration: str) -> None:
    print(f"\n{step}/4  {work} ({duration})", flush=True)


def show_restored(picture: Path) -> None:
    """A photograph as a JPEG of low quality, restored by the shipped weights, and as it was, in one picture."""
    announce(1, "Restoring a photograph with the shipped weights", "some 10 seconds")
    if picture.is_file():
        print(f"{picture} is there already")
        return
    from srcnn.commands.photos import compare_photo

    print(f"look at {picture}: {compare_photo(PHOTOGRAPH, picture, JPEG_QUALITY)}")


def make_tiles(photos: Path, shards: Path) -> None:
    """Shards of the photos, none of which is enlarged; what is refused is named and counted, and the rest taken.

    Raises:
        DemoFailed: none could be made, and why is said; or there are too few photos to validate on some of them.
    """
    settings = ["--config", str(ROOT / "configs/shards.yaml"), "--decode", "reduced", "--val_fraction", "0.25"]
    settings += ["--photos", str(photos), "--out", str(shards), "--allow_refused", "true"]
    if run_shards(parse(ShardsConfig, "python -m launch.demo", __doc__, settings)):
        raise DemoFailed
    from srcnn.data.dataset import ShardDataset
    from srcnn.data.manifest import ShardError

    try:
        for split in ("train", "val"):
            ShardDataset(str(shards / split)).close()
    except ShardError as error:
        raise DemoFailed(f"{photos}: no photo is left to {'train' if split == 'train' else 'validate'} on; add photos, "
                         f"or take away those refused, remove {shards}, and start again") from error


def train_on(shards: Path, run: Path) -> None:
    """Trains to the end of its settings and writes the report; goes on where it was stopped.

    Raises:
        DemoFailed: the run folder is of another training, or the training failed.
    """
    from srcnn.runtime.distributed import DistributedError
    from srcnn.runtime.errors import DivergedError
    from srcnn.training.config import TrainConfig
    from srcnn.training.trainer import train

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("srcnn.tracking.run_log").setLevel(logging.INFO)  # progress where no bar is shown
    settings = ["--config", str(TRAINING), "--shards", str(shards), "--run", str(run)]
    config = parse(TrainConfig, "python -m launch.demo", __doc__, settings)
    if Path(run, "report/index.html").is_file():
        print(f"trained already; to train anew remove {run}")
        return
    signals.install_signal_handlers()
    try:
        train(config)
    except signals.StopRequested as stop:
        signals.exit_now(f"demo: {stop}: checkpoint saved; run the same command to resume", stop.status)
    except (DistributedError, DivergedError) as error:
        raise DemoFailed(f"{error}; to train anew remove {run}") from error


def conclude(own: Path | None, picture: Path, shards: Path, run: Path) -> None:
    """The gain, where to look, what to do next."""
    from srcnn.tracking.history import best_validation, read_metrics

    best = best_validation(read_metrics(run))
    assert best
    photos = "Photos kept out of the training" if own else "Drawn photos kept out of the training"
    print(f"\n{photos}, as JPEGs of quality {JPEG_QUALITY}: PSNR {best['val/psnr_in']:.2f} dB, "
          f"restored by the network trained here {best['val/psnr']:.2f} dB: a gain of {best['val/gain']:+.2f} dB.")
    looks = {
        picture: "a photograph restored by the shipped weights",
        run / "report/index.html": "the training: curves, tiles, numbers",
        run / "report/photo.png": "a photo kept out of it, before and after",
        shards / "train.png": "what was trained on: pairs of tiles, clean left, degraded right",
    }
    command = Path(sys.executable).parent / "srcnn"
    command = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    steps = {
        f"{command} restore PHOTO.jpg" + (f" --model {run}" if own else ""): "a photo of yours, as PHOTO_restored.jpg",
        "make demo PHOTOS=FOLDER": "a network trained on photos of yours" + (" from another folder" if own else ""),
    }
    for title, lines in (("Look at", looks), ("Next", steps)):
        print(f"\n{title}:")
        width = max(len(str(line)) for line in lines)
        for line, meaning in lines.items():
            print(f"  {str(line):{width}}  {meaning}")


if __name__ == "__main__":
    sys.exit(main())
