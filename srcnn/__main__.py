"""The `srcnn` command, for people who have photos: restore, score, compare, degrade, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from srcnn.config import read_yaml, without_credentials
from srcnn.degrade import Degradation, degrade
from srcnn.files import write_json
from srcnn.model import DEFAULT_WEIGHTS, SRCNN, load_model
from srcnn.photo import Photo, over_white, read_photo, write_photo
from srcnn.reader import ShardReader
from srcnn.restore import Outcome, attempt, output_paths, restore, restore_files
from srcnn.score import LUMA_NAMES, score_folder, to_json, to_markdown
from srcnn.storage import join
from srcnn.verify import verify_shards


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 something was refused or missing, 2 wrong usage, 130 interrupted."""
    options = command_line().parse_args(arguments)
    try:
        return int(options.action(options))
    except (FileNotFoundError, ValueError, OSError) as error:
        print(f"srcnn {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"srcnn {options.command}: interrupted", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srcnn", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    mend = commands.add_parser("restore", help="restore a damaged photo, or a folder of them")
    mend.add_argument("source", type=Path, help="a photo, or a folder that is read with everything below it")
    mend.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the restored photos")
    mend.add_argument("--format", choices=("jpg", "png", "webp", "tiff"), help="default: as the photo's own")
    mend.add_argument("--quality", type=int, default=95, help="of JPEG and WebP written, 1..100 (default: 95)")
    mend.add_argument("--exact", action="store_true",
                      help="float32 throughout; default: bfloat16 where the processor has it, within 0.01 dB")
    mend.set_defaults(action=restore_command)

    spoil = commands.add_parser("degrade", help="save a clean photo as a JPEG of low quality, to try restoring")
    spoil.add_argument("source", type=Path, help="a photo, or a folder that is read with everything below it")
    spoil.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the JPEGs")
    spoil.add_argument("--quality", type=int, default=20, help="JPEG quality, 1..100 (default: 20)")
    spoil.set_defaults(action=degrade_command)

    score = commands.add_parser("score", help="degrade clean photos, restore them, and measure")
    score.add_argument("source", type=Path, help="folder of clean photos")
    score.add_argument("--quality", type=int, default=20, help="JPEG quality to degrade with (default: 20)")
    lumas = "; ".join(f"{key} = {name}" for key, name in LUMA_NAMES.items())
    score.add_argument("--luma", choices=tuple(LUMA_NAMES), default="l", help=f"{lumas} (default: l)")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    score.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown too")
    score.set_defaults(action=score_command)

    compare = commands.add_parser("compare", help="draw a clean photo degraded, restored and as it was, with a detail")
    compare.add_argument("source", type=Path, help="a clean photo")
    compare.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="picture to write (.png, .jpg)")
    compare.add_argument("--quality", type=int, default=20, help="JPEG quality to degrade with (default: 20)")
    compare.set_defaults(action=compare_command)

    for command in (mend, score, compare):
        command.add_argument("--model", default=DEFAULT_WEIGHTS, metavar="FILE",
                             help=f"weights: a file, a run folder or a shipped name (default: {DEFAULT_WEIGHTS})")

    add_training_commands(commands)
    return parser


def add_training_commands(commands: Any) -> None:
    """Those that look at shards and at the runs of training."""
    verify = commands.add_parser("verify-shards", help="check every byte of shards against their manifest")
    verify.add_argument("location", help="folder or URL of a split, or of what has train and val below it")
    verify.set_defaults(action=verify_command)

    # To argparse the settings of a training, which jsonargparse reads, are words like any other.
    check = commands.add_parser("doctor", add_help=False, prefix_chars="\0",
                                help="check all that a training needs before it is started; --help lists the settings")
    check.add_argument("settings", nargs="*")
    check.set_defaults(action=doctor_command)

    report = commands.add_parser("report", help="write the report of a training run again")
    report.add_argument("run", type=Path, help="folder of the run")
    report.set_defaults(action=report_command)

    send = commands.add_parser(
        "sync", help="send what wandb lacks of a training run's numbers",
        description="Sends the points of metrics.jsonl that the wandb server lacks, with the run's settings, as the one"
        " run they belong to; for a run that is not training now. WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY and the"
        " like hold. Where there was no account, `wandb sync RUN/wandb/offline-run-*` sends pictures too; do one of"
        " the two.")
    send.add_argument("run", type=Path, help="folder of the run")
    send.add_argument("--project", default="", help="wandb project (default: WANDB_PROJECT, or srcnn)")
    send.set_defaults(action=sync_command)


def load_on_device(source: str) -> SRCNN:
    """The network, on the GPU where there is one."""
    model = load_model(source).to(memory_format=torch.channels_last)
    return model.cuda() if torch.cuda.is_available() else model


def report_each(outcomes: Iterable[Outcome], title: str, num_photos: int) -> int:
    """Names every photo written or refused, on the way; returns the exit status: 1 if any was refused."""
    num_refused = 0
    for outcome in tqdm(outcomes, title, num_photos, disable=None):
        if outcome.refused:
            num_refused += 1
            tqdm.write(f"refused: {outcome.refused}", file=sys.stderr)
        else:
            tqdm.write(f"{outcome.target}{f' ({notes})' if (notes := ', '.join(outcome.notes)) else ''}")
    print(f"{title}: {num_photos - num_refused}, refused: {num_refused}", file=sys.stderr)
    return int(num_refused > 0)


def tile_bars() -> Callable[[Path, int, int], None]:
    """Shows on the terminal, below the bar of the photos, how far one large photo is."""
    bars: dict[Path, tqdm[Any]] = {}

    def show(path: Path, num_done: int, num_tiles: int) -> None:
        if num_done == 1:
            bars[path] = tqdm(total=num_tiles, desc=path.name, unit="tile", position=1, leave=False, disable=None)
        bars[path].update()
        if num_done == num_tiles:
            bars.pop(path).close()

    return show


def degrade_command(options: argparse.Namespace) -> int:
    Degradation(jpeg_quality=options.quality)  # checks the range

    def work(path: Path, target: Path) -> tuple[str, ...]:
        photo = read_photo(path)
        write_photo(target, photo, options.quality, subsampling="4:2:0")
        return photo.notes

    targets = output_paths(options.source, options.out, ".jpg")
    return report_each((attempt(work, *item) for item in targets.items()), "photos degraded", len(targets))


def restore_command(options: argparse.Namespace) -> int:
    if not 1 <= options.quality <= 100:
        raise ValueError(f"--quality {options.quality}: expected 1..100")
    targets = output_paths(options.source, options.out, f".{options.format}" if options.format else "")
    model = load_on_device(options.model)
    outcomes = restore_files(targets, model, options.quality, exact=options.exact, on_progress=tile_bars())
    return report_each(outcomes, "photos restored", len(targets))


def score_command(options: argparse.Namespace) -> int:
    degradation = Degradation(jpeg_quality=options.quality)
    model = load_on_device(options.model)
    scores, refused = score_folder(options.source, model, options.luma, degradation, show_progress=True)
    for reason in refused:
        print(f"refused: {reason}", file=sys.stderr)
    table = to_markdown(scores)
    print(f"JPEG quality {options.quality}, luma {LUMA_NAMES[options.luma]}, {options.model}\n\n{table}", end="")
    if options.json:
        settings = {"quality": options.quality, "luma": options.luma, "model": options.model}
        write_json(options.json, settings | {"photos": (rows := to_json(scores))[:-1], "mean": rows[-1]})
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return int(bool(refused))


def compare_command(options: argparse.Namespace) -> int:
    from srcnn.report import before_after  # brings torchvision, whose installation `doctor` is to look at

    degradation = Degradation(jpeg_quality=options.quality)
    clean = over_white(read_photo(options.source))
    degraded = degrade(clean, degradation, options.quality)
    picture = before_after(degraded, restore(degraded, load_on_device(options.model)), clean)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_photo(options.out, Photo(picture))
    print(options.out)
    return 0


def verify_command(options: argparse.Namespace) -> int:
    num_files = num_problems = 0
    for checked in tqdm(verify_shards(options.location), "files checked", disable=None, unit=""):
        num_files += 1
        if checked.problem:
            num_problems += 1
            tqdm.write(f"{checked.name}: {checked.problem}", file=sys.stderr)
    print(f"{without_credentials(options.location)}: {num_files} files checked, {num_problems} with problems")
    return int(num_problems > 0)


def doctor_command(options: argparse.Namespace) -> int:
    from srcnn.doctor import main as examine  # slow to import, and wanted only here

    return examine(options.settings)


def report_command(options: argparse.Namespace) -> int:
    from srcnn.report import write_report

    settings = options.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: no training run here")
    config = read_yaml(settings)
    if not {"shards", "overfit_tiles"} <= config.keys():
        raise ValueError(f"{settings}: not the settings of a training run")
    split = "train" if config["overfit_tiles"] else "val"
    print(write_report(options.run, ShardReader(join(config["shards"], split), config["overfit_tiles"])))
    return 0


def sync_command(options: argparse.Namespace) -> int:
    from srcnn.sync import sync  # slow to import, and wanted only here

    num_sent, address = sync(options.run, options.project)
    print(f"{options.run}: {num_sent} points sent, wandb has all: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
