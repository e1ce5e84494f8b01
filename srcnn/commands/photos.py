"""The commands for photos: restore, upscale, degrade, compare, demo.

PyTorch and other slow imports are made by the command that runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from srcnn.commands.parser import CommandParser, add_command
from srcnn.runtime.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

    from srcnn.commands.output_paths import OutputPaths
    from srcnn.restoration.restore_files import Outcome, Work
    from srcnn.restoration.tiled_inference import Progress

STANDARD_INPUT = "-"
CHUNK_BYTES = 1 << 20
PICTURE_WIDTH, MIN_PICTURE_WIDTH = 1920, 300  # pixels of a comparison, three pictures side by side: it fits on a screen
DEFAULT_MODEL = "unet-jpeg"
MODEL_HELP = "a name from `srcnn models`, a run folder or a file, also of networks that spandrel knows (srcnn[models])"
COMPARED_QUALITY = 20
RESTORE_NOTES = """\
The damage of each photo is estimated from its pixels, so that PNGs made of JPEGs and JPEGs that were saved again are
restored, too; photos without JPEG damage and JPEGs of quality 91 and better are copied unchanged. The network
is unet-jpeg, which is told what the damage is. `--model srcnn-915` is twice as fast and gains less: SRCNN, of which a
photo gets the weights for its quality, 10, 20, 30, 40, 60 or 80. `srcnn models` lists all weights."""


def add_photo_commands(commands: Any) -> None:
    restore = add_command(
        commands, "restore", restore_command, "remove JPEG damage from photos",
        "srcnn restore old.jpg                           writes old_restored.jpg beside it",
        "srcnn restore photos/ -o restored --format png  a folder with everything below it into another folder",
        "srcnn restore - < old.jpg > new.jpg             from standard input to standard output",
        more="That damage is blocks, ringing at edges and coloured fringes; camera noise and blur are not treated.",
        after=RESTORE_NOTES)
    upscale = add_command(
        commands, "upscale", upscale_command, "enlarge photos 2, 3 or 4 times by super-resolution",
        "srcnn upscale small.jpg                     writes small_x2.jpg beside it",
        "srcnn upscale photos/ -o large --scale 3    a folder with everything below it into another folder",
        more="JPEG damage is removed first.")
    degrade = add_command(
        commands, "degrade", degrade_command, "save photos as JPEGs of low quality, to try restore on them",
        "srcnn degrade clean.png -o damaged.jpg --quality 10", "srcnn degrade photos/ -o damaged")
    for command in (restore, upscale, degrade):
        command.add_argument("sources", nargs="+", metavar="SOURCE",
                             help="a photo, a folder that is read with everything below it, a pattern ('*.jpg')"
                             + ("" if command is degrade else ", or - for standard input"))
        command.add_argument("-o", "--out", type=Path, metavar="OUT", required=command is degrade,
                             help="folder for the results; of one photo also a file" + (
                                 "" if command is degrade else " (default: beside each photo, see --suffix)"))
        command.add_argument("--overwrite", action="store_true", help="replace results that exist")
    degrade.add_argument("--quality", type=int, default=20, metavar="N", help="JPEG quality, 1..100 (default: 20)")
    degrade.set_defaults(suffix="", format="jpg")
    upscale.add_argument("--scale", type=int, choices=(2, 3, 4), default=2, help="times as wide and high (default: 2)")
    restore.add_argument("--force", action="store_true", help="restore photos without JPEG damage, too")
    upscale.add_argument("--no-restore", action="store_true", help="do not undo JPEG damage first")
    for command, ending in ((restore, "_restored"), (upscale, "_xN")):
        _add_format_options(command, ending)
    restore.add_argument("--strength", type=float, default=1.0, metavar="X",
                         help="share of the network's change that is applied, 0..1 (default: 1)")
    restore.add_argument("--keep-chroma", action="store_true", help="leave the chroma of JPEGs as it is (default: "
                         "smooth it along the edges of the restored luma)")
    restore.add_argument("--no-consistency", action="store_true", help="let the restored luma leave what a JPEG's "
                         "quantization allows (default: keep it there, with unet-jpeg and srcnn-915)")
    restore.add_argument("--model", default=DEFAULT_MODEL, metavar="WEIGHTS",
                         help=f"{MODEL_HELP}; or a family, from which each photo's JPEG quality selects"
                         f" (default: {DEFAULT_MODEL})")
    restore.add_argument("--halo", type=int, metavar="PIXELS", help="around each tile, for a network of another program"
                         " (default: measured)")
    upscale.add_argument("--model", metavar="WEIGHTS", help=f"{MODEL_HELP} (default: those for the scale)")
    _add_compare_and_demo(commands)


def _add_format_options(command: CommandParser, ending: str) -> None:
    """How results are written and computed, for restore and upscale."""
    best = "95 to 98 for JPEG, the higher the better the photo was" if ending == "_restored" else "95 for JPEG"
    command.add_argument("--format", choices=("jpg", "png", "webp", "tiff"),
                         help="of the results (default: each photo's own; png for AVIF, HEIC, JPEG XL, JPEG 2000)")
    command.add_argument("--quality", type=int, metavar="N", help=f"of JPEG and WebP written, 1..100 (default: {best}; "
                         "95 for WebP, lossless if the photo was)")
    command.add_argument("--suffix", metavar="TEXT", help="put at the end of each name (default: none in a folder"
                         f" given with -o, else {ending})")
    command.add_argument("--tile", type=int, default=0, metavar="PIXELS",
                         help="side of the tiles that go through the network (default: chosen for speed)")
    command.add_argument("--allow-truncated", action="store_true",
                         help="save what is there of JPEGs and PNGs that are cut off (default: refuse them)")
    command.add_argument("--ensemble", action="store_true", help="average what the network makes of the photo and of "
                         "its three mirror images: better, in four times the time")
    command.add_argument("--exact", action="store_true",
                         help="float32 throughout (default: bfloat16 where the hardware has it, within 0.01 dB)")


def _add_compare_and_demo(commands: Any) -> None:
    compare = add_command(
        commands, "compare", compare_command, "draw a photo before and after restoring, with a magnified detail",
        "srcnn compare old.jpg -o picture.png",
        "srcnn compare clean.png -o picture.png --quality 10    damaged first, with the PSNR before and after",
        more="A photo without JPEG damage is degraded first, and drawn beside them with the PSNR of both.")
    compare.add_argument("source", type=Path, metavar="PHOTO", help="a photo, damaged or clean")
    compare.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="picture to write (.png, .jpg)")
    compare.add_argument("--quality", type=int, metavar="N", help="JPEG quality to degrade the photo with first, 1..100"
                         " (default: 20 for a photo without JPEG damage; one that has some is restored as it is)")
    compare.add_argument("--model", default=DEFAULT_MODEL, metavar="WEIGHTS",
                         help=f"{MODEL_HELP}, or a family (default: {DEFAULT_MODEL})")
    compare.add_argument("--width", type=int, default=PICTURE_WIDTH, metavar="PIXELS",
                         help=f"largest width of the picture (default: {PICTURE_WIDTH})")

    page = add_command(commands, "demo", demo_command, "serve a web page that restores, enlarges and compares photos",
                       "srcnn demo --open")
    page.add_argument("--host", default="127.0.0.1",
                      help="address to listen at (default: 127.0.0.1: this machine only)")
    page.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen at (default: 7860)")
    page.add_argument("--open", action="store_true", help="open the page in the browser")


def restore_command(options: argparse.Namespace) -> int:
    from srcnn.models.device import restoring_device
    from srcnn.models.pretrained import WeightSelector
    from srcnn.models.wrapped import WrappedNetwork
    from srcnn.restoration.jpeg_damage import JpegRestorer
    from srcnn.restoration.restore_files import RestoreFile
    from srcnn.restoration.tiled_inference import RestoreOptions

    check_quality(options.quality)
    treatment = RestoreOptions(options.tile, options.exact, options.strength, smooth_chroma=not options.keep_chroma,
                               consistent=not options.no_consistency, ensemble=options.ensemble)

    def prepare() -> Work:
        weights = WeightSelector(options.model, restoring_device(), options.halo)
        if not weights.family and isinstance(network := weights.load(options.model), WrappedNetwork):
            print_line(f"{options.model}: {network.name}, {network.about_halo()}", sys.stderr)
        restorer = JpegRestorer(weights, treatment, options.force)
        return RestoreFile(restorer, options.quality, options.allow_truncated)

    return run_on_files(options, prepare, "photos restored", "_restored")


def upscale_command(options: argparse.Namespace) -> int:
    from srcnn.models.device import restoring_device
    from srcnn.models.pretrained import WeightSelector
    from srcnn.restoration.jpeg_damage import JpegRestorer
    from srcnn.restoration.restore_files import UpscaleFile
    from srcnn.restoration.tiled_inference import RestoreOptions
    from srcnn.restoration.upscale import network_for_scale

    check_quality(options.quality)
    treatment = RestoreOptions(options.tile, options.exact, ensemble=options.ensemble)

    def prepare() -> Work:
        weights = WeightSelector(DEFAULT_MODEL, restoring_device())
        restorer = None if options.no_restore else JpegRestorer(weights, treatment)
        network = network_for_scale(options.model, options.scale)
        return UpscaleFile(network, options.scale, restorer, treatment, options.quality, options.allow_truncated)

    return run_on_files(options, prepare, "photos enlarged", f"_x{options.scale}")


def degrade_command(options: argparse.Namespace) -> int:
    from srcnn.photos.degradation import Degradation
    from srcnn.photos.photo_file import read_photo_file, write_photo_file

    Degradation(jpeg_quality=options.quality)  # checks the range

    def work(path: Path, target: Path, on_progress: Progress | None) -> tuple[str, ...]:
        photo = read_photo_file(path)
        return (*photo.notes, *write_photo_file(target, photo, options.quality, subsampling="4:2:0"))

    return run_on_files(options, lambda: work, "photos degraded", "")


def check_quality(quality: int | None) -> None:
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: expected 1..100")


def run_on_files(options: argparse.Namespace, prepare: Callable[[], Work], title: str, ending: str) -> int:
    """Does the work of a command on its sources; returns the exit status: 1 if any photo failed."""
    from srcnn.commands.output_paths import output_paths
    from srcnn.restoration.restore_files import work_on_files

    format_suffix = f".{options.format}" if options.format else ""
    if options.sources == [STANDARD_INPUT]:
        return run_on_standard_input(options.out, format_suffix, prepare(), options.overwrite)
    suffix = options.suffix if options.suffix is not None else "" if options.out else ending
    paths = output_paths(options.sources, options.out, format_suffix, suffix)
    outcomes = work_on_files(paths.targets, prepare(), overwrite=options.overwrite, on_progress=tile_bar())
    return print_outcomes(outcomes, title, paths)


def run_on_standard_input(out: Path | None, format_suffix: str, work: Work, overwrite: bool) -> int:
    """Does the work on a photo from standard input, into the file `out` or to standard output."""
    from srcnn.photos.reading import suffix_of
    from srcnn.runtime.untrusted import MAX_PHOTO_BYTES

    with tempfile.TemporaryDirectory(prefix="srcnn-") as folder:
        path = Path(folder, "input")
        with path.open("wb") as file:
            while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                if file.tell() + len(chunk) > MAX_PHOTO_BYTES:
                    raise UserError(f"standard input: more than {MAX_PHOTO_BYTES} bytes")
                file.write(chunk)
        try:
            path = path.rename(path.with_suffix(suffix_of(path)))
            target = out or Path(folder, f"output{format_suffix or path.suffix}")
            if target.exists() and not overwrite:
                raise UserError(f"{target}: exists (--overwrite replaces it)")
            target.parent.mkdir(parents=True, exist_ok=True)
            notes = work(path, target, None)
        except ValueError as error:
            raise UserError(str(error).replace(str(path), "standard input")) from error
        print(f"standard input: {', '.join(notes) or 'done'}", file=sys.stderr)
        if out is None:
            with target.open("rb") as result:
                shutil.copyfileobj(result, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    return 0


def print_outcomes(outcomes: Iterable[Outcome], title: str, paths: OutputPaths) -> int:
    """Prints a line for every photo as it is done, and a summary; returns the exit status: 1 if any failed."""
    from tqdm import tqdm

    from srcnn.restoration.restore_files import COPIED

    num_failed, num_skipped, num_copied, num_done = len(paths.errors), 0, 0, 0
    for error in paths.errors:
        print_line(f"error: {error}", sys.stderr)
    try:
        for outcome in tqdm(outcomes, title, len(paths.targets), disable=None):
            if outcome.error:
                num_failed += 1
                print_line(f"error: {outcome.error}", sys.stderr)
            elif outcome.skipped:
                num_skipped += 1
                print_line(f"{outcome.target}: {outcome.skipped} (--overwrite replaces it)", sys.stderr)
            else:
                num_copied += COPIED in outcome.notes
                num_done += COPIED not in outcome.notes
                notes = f" ({', '.join(outcome.notes)})" if outcome.notes else ""
                print_line(f"{outcome.target}{notes}", sys.stdout)
    finally:  # also where a full disk or Ctrl-C ends it
        num_left = len(paths.targets) + len(paths.errors) - num_failed - num_skipped - num_copied - num_done
        counts = {"": num_done, ", copied unchanged": num_copied, ", skipped": num_skipped, ", failed": num_failed,
                  ", not processed": num_left, ", other files in the folders, ignored": paths.num_others}
        always = ("", ", skipped", ", failed")
        summary = [f"{name}: {count}" for name, count in counts.items() if count or name in always]
        print_line(f"{title}{''.join(summary)}", sys.stderr)
    return int(num_failed > 0)


def print_line(line: str, stream: TextIO) -> None:
    """Prints above the progress bars. Where nobody reads any more (`| head`) the photos are still processed."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def tile_bar() -> Callable[[Path, int, int], None]:
    """Shows the progress within a large photo on the terminal, below the bar of all photos."""
    from tqdm import tqdm

    bar: tqdm[Any]

    def show(path: Path, num_done: int, num_tiles: int) -> None:
        nonlocal bar
        if num_done == 1:
            bar = tqdm(total=num_tiles, desc=path.name, unit="tile", position=1, leave=False, disable=None)
        bar.update()
        if num_done == num_tiles:
            bar.close()

    return show


def compare_command(options: argparse.Namespace) -> int:
    check_quality(options.quality)
    if options.width < MIN_PICTURE_WIDTH:
        raise UserError(f"--width {options.width}: expected at least {MIN_PICTURE_WIDTH}")
    done = compare_photo(options.source, options.out, options.quality, options.model, options.width)
    print(f"{options.out}: {done}")
    return 0


def compare_photo(
    source: Path, out: Path, quality: int | None = None, model: str = DEFAULT_MODEL, width: int = PICTURE_WIDTH
) -> str:
    """Draws a photo before and after restoring side by side, at most `width` pixels wide; returns what was compared.

    A photo without JPEG damage, or with a `quality`, is degraded first, and drawn as the third picture.

    Raises:
        ValueError: the quality is not in 1..100, or `source` cannot be read as a photo (PhotoRefused).
        FileNotFoundError: the photo or the weights do not exist.
    """
    import numpy as np
    from PIL import Image

    from srcnn.models.device import restoring_device
    from srcnn.models.pretrained import WeightSelector
    from srcnn.photos.degradation import Degradation, degrade
    from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
    from srcnn.restoration.figures import before_after, comparison, psnr_luma
    from srcnn.restoration.jpeg_damage import JpegRestorer, find_damage
    from srcnn.restoration.restore import access_to_file, restore

    photo = read_photo_file(source)
    before = photo.visible()
    treatment = damage = None
    pixels, weights = access_to_file(photo), WeightSelector(model, restoring_device())
    if quality is None and (damage := find_damage(pixels, photo.jpeg)) is not None:
        treatment = JpegRestorer(weights)(pixels, photo.jpeg, damage)
    if damage and treatment and treatment.was_restored:
        after = photo.visible()
        change = np.square(after.astype(float) - before)
        restored_by = f"restored by {treatment.weights or Path(model).name}"
        as_it_is = f"as it is, JPEG quality {damage.quality}"
        picture = comparison((before, after), (as_it_is, restored_by), change, width)
        done = ", ".join(treatment.notes)
    else:
        quality = quality or COMPARED_QUALITY
        degraded = degrade(before, Degradation(jpeg_quality=quality), quality)
        restored = restore(degraded, model, quality=quality)
        name = weights.weights_for_quality(quality)
        restored_by = f"restored by {Path(name).name}" if name else "good already, unchanged"
        picture = before_after(degraded, restored, before, (f"JPEG quality {quality}", restored_by, "original"), width)
        done = (f"PSNR of the luma {psnr_luma(degraded, before):.2f} dB as JPEG of quality {quality}, "
                f"{psnr_luma(restored, before):.2f} dB {restored_by}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_photo_file(out, PhotoFile(Image.fromarray(picture)))
    return done


def demo_command(options: argparse.Namespace) -> int:
    from srcnn.commands.demo import serve

    serve(options.host, options.port, open_browser=options.open)
    return 0
