"""The commands for weights: models, score, verify, export. PyTorch is imported by the command that runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srcnn.commands.parser import add_command
from srcnn.commands.photos import DEFAULT_MODEL
from srcnn.runtime.errors import UserError

if TYPE_CHECKING:
    from srcnn.photos.degradation import Degradation


def add_weight_commands(commands: Any) -> None:
    add_command(commands, "models", models_command, "list the shipped weights: what each is for, its size and score",
                "srcnn models")

    score = add_command(
        commands, "score", score_command, "measure how well weights restore clean photos that are degraded first",
        "srcnn score data/val/live1_y --luma y --model srcnn-915-q20", "srcnn score data/val/set5 --luma y --scale 3",
        "srcnn score data/val/live1_y --luma y --quality 10,30 --shift 4",
        more="Prints PSNR, SSIM and PSNR-B of each photo before and after.",
        after="`srcnn datasets` says where the usual test sets come from.")
    score.add_argument("source", type=Path, metavar="FOLDER", help="folder of clean photos")
    score.add_argument("--quality", type=save_qualities, metavar="N", help="JPEG quality to degrade with (default: 20);"
                       " M,N: saved at M, then at N")
    score.add_argument("--shift", type=int, metavar="N", help="with two qualities: cut off N rows and columns before "
                       "the second save, so that its blocks lie elsewhere (default: 0; the papers' is 4)")
    score.add_argument("--scale", type=int, choices=(2, 3, 4), help="super-resolution by the papers' protocol instead")
    score.add_argument("--luma", choices=("l", "y", "rgb"), default="l", help="what is compared: l = luma L (full"
                       " range, Pillow); y = luma Y (limited range, BT.601, as the papers); rgb (default: l)")
    score.add_argument("--model", metavar="WEIGHTS", help="a name from `srcnn models`, a run folder or a file"
                       f" (default: {DEFAULT_MODEL}, or those for the scale)")
    score.add_argument("--consistent", action="store_true", help="keep the luma within what the JPEG allows, as "
                       "restore does (default: measure the network alone, as the model cards do)")
    score.add_argument("--ensemble", action="store_true", help="average what the network makes of a photo and of its "
                       "three mirror images, as restore --ensemble does")
    score.add_argument("--metric", action="append", choices=("lpips", "dists"), default=[], help="also this distance; "
                       "again for both (needs srcnn[metrics], and downloads weights when first used)")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    score.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown too")

    verify = add_command(
        commands, "verify", verify_weights_command, "measure the shipped weights again, compare with their model cards",
        "srcnn verify --photos data/val", "srcnn verify srcnn-915-q20 --photos data/val",
        after="`srcnn datasets` says where the test sets come from, and makes such folders of them.")
    verify.add_argument("names", nargs="*", metavar="NAME", help="shipped weights (default: all)")
    verify.add_argument("--photos", type=Path, required=True, metavar="DIR",
                        help="folder with the test sets: live1_y, classic5, set5, ...")

    export = add_command(
        commands, "export", export_command, "write weights for other programs: ONNX, torch.export, darktable",
        "srcnn export srcnn-915-q20 --onnx restore.onnx", "srcnn export runs/mine --torch mine.pt2 --luma",
        more="RGB in, RGB out, both (N, 3, H, W) in [0, 1], for any size.")
    export.add_argument("model", metavar="WEIGHTS", help="a name from `srcnn models`, a run folder or a file")
    export.add_argument("--onnx", type=Path, metavar="FILE", help="for ONNX Runtime and the like (needs srcnn[export])")
    export.add_argument("--torch", type=Path, metavar="FILE", help="a .pt2 for torch.export.load")
    export.add_argument("--darktable", type=Path, metavar="FILE", help="a .dtmodel that darktable imports (needs "
                        "srcnn[export])")
    export.add_argument("--scale", type=int, choices=(1, 2, 3, 4), help="enlarge first, for weights trained for that "
                        "scale (default: that of shipped weights, else 1)")
    export.add_argument("--luma", action="store_true", help="the network for luma alone: (N, 1, H, W) in [0, 1] to the "
                        "same shape, not clipped")
    export.add_argument("--half", action="store_true", help="float16 in the ONNX file: half its size")
    export.add_argument("--compact", action="store_true", help="weights of 8 bits, in small layers of 16, in the ONNX "
                        "file: a quarter of its size; computed in float32")
    export.add_argument("--quality", type=int, metavar="N", help="JPEG quality, 1..100, to fix in a network that has it"
                        " as an input (default: unknown)")
    export.add_argument("--condition", action="store_true", help="leave such a network its second input, the JPEG's "
                        "quantization, which few programs can give it")


def save_qualities(text: str) -> tuple[int, ...]:
    """The qualities of one JPEG save or of two: "20" -> (20,), "10,30" -> (10, 30)."""
    qualities = text.split(",")
    if len(qualities) > 2 or not all(quality.strip().lstrip("-").isdecimal() for quality in qualities):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JPEG quality such as 20, or two such as 10,30")
    return tuple(map(int, qualities))


def models_command(options: argparse.Namespace) -> int:
    from srcnn.models.weight_files import WEIGHTS
    from srcnn.models.weights import load_model
    from srcnn.restoration.model_cards import card_scores, headline, purpose

    print(f"{'name':17} {'parameters':>10} {'file':>8} {'gain':>8}  for")
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        degradation = shipped_degradation(path.stem)
        assert degradation is not None
        num_parameters = sum(parameter.numel() for parameter in load_model(path).parameters())
        size, gain = f"{path.stat().st_size / 1000:.0f} kB", f"{headline(card_scores(path.stem)):+.2f} dB"
        print(f"{path.stem:17} {num_parameters:>10,} {size:>8} {gain:>8}  {purpose(degradation)}")
    print("\nUse one with: srcnn restore --model NAME, srcnn upscale --model NAME. By default, restore uses unet-jpeg,"
          "\nand upscale those for the scale; `--model srcnn-915` selects by each photo's JPEG quality. The gain is in"
          "\nPSNR of the luma on LIVE1, for a range of qualities at 20, or on Set5; `srcnn verify` measures it again.")
    return 0


def shipped_degradation(name: str) -> Degradation | None:
    """The damage that shipped weights were trained to undo; None for other weights."""
    from srcnn.models.weight_files import WEIGHTS, find_weights
    from srcnn.photos.degradation import Degradation
    from srcnn.runtime.untrusted import read_json

    if not (path := find_weights(name)).is_relative_to(WEIGHTS):
        return None
    return Degradation.from_config(read_json(path.with_suffix(".json"))["data"]["shards"]["degradation"])


def score_command(options: argparse.Namespace) -> int:
    from srcnn.models.device import restoring_device, to_device
    from srcnn.models.perceptual import perceptual_distances
    from srcnn.models.weights import load_model
    from srcnn.photos.degradation import Degradation
    from srcnn.restoration.score import NAMES, NETWORK_ALONE, EarlierSave, score_folder, to_json, to_markdown
    from srcnn.restoration.upscale import weights_for_scale
    from srcnn.runtime.files import write_json

    if options.scale and options.quality is not None:
        raise UserError("--scale and --quality cannot be given together")
    scale, (*first, quality) = options.scale or 1, options.quality or (20,)
    if options.shift is not None and not first:
        raise UserError("--shift needs two qualities, such as --quality 10,30")
    earlier = EarlierSave(first[0], options.shift or 0) if first else None
    degradation = Degradation(jpeg_quality=quality) if scale == 1 else Degradation(jpeg_quality=[], scale=scale)
    name = options.model or (weights_for_scale(scale) if scale > 1 else DEFAULT_MODEL)
    network = to_device(load_model(name), restoring_device())
    distances = perceptual_distances(options.metric, network.device)
    treatment = replace(NETWORK_ALONE, consistent=options.consistent, ensemble=options.ensemble)
    try:
        scores, refused = score_folder(options.source, network, options.luma, degradation, True, distances, earlier,
                                       treatment)
    except FileNotFoundError as error:
        raise UserError(f"{error}; `srcnn datasets` says where the usual test sets come from") from error
    for reason in refused:
        print(f"refused: {reason}", file=sys.stderr)
    table = to_markdown(scores)
    degraded = f"scale {scale}" if scale > 1 else f"JPEG quality {quality}"
    if earlier is not None:
        degraded = f"JPEG quality {earlier.quality}, shifted by {earlier.shift}, then {quality}"
    print(f"{degraded}, {NAMES[options.luma]}, {name}\n\n{table}", end="")
    if options.json:
        settings = {"quality": None if scale > 1 else quality, "scale": scale, "luma": options.luma, "model": name}
        settings |= {} if earlier is None else {"first_quality": earlier.quality, "shift": earlier.shift}
        *photos, mean = to_json(scores)
        write_json(options.json, settings | {"photos": photos, "mean": mean})
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return int(bool(refused))


def verify_weights_command(options: argparse.Namespace) -> int:
    from srcnn.restoration.model_cards import verify_weights

    num_checked = num_wrong = num_absent = 0
    print("| weights | photos | card dB | measured dB | |\n|---|---|---:|---:|---|")
    for row in verify_weights(options.names, options.photos):
        num_absent += row.measured is None and not row.problem
        num_checked += row.measured is not None
        num_wrong += bool(row.problem)
        measured = "" if row.measured is None else f"{row.measured['psnr']:.4f}"
        verdict = "right" if row.ok else row.problem or "not checked: these photos are missing"
        print(f"| {row.weights} | {row.title} | {row.card['psnr']:.4f} | {measured} | {verdict} |", flush=True)
    print(f"rows checked: {num_checked}, wrong: {num_wrong}, not checked: {num_absent}", file=sys.stderr)
    return int(num_wrong > 0)


def export_command(options: argparse.Namespace) -> int:
    from srcnn.models.darktable import export_darktable
    from srcnn.models.export import export_onnx, export_torch
    from srcnn.models.hub_files import shipped_card
    from srcnn.models.weight_files import find_weights
    from srcnn.models.weights import load_model
    from srcnn.photos.jpeg_quality import condition_of_quality
    from srcnn.restoration.model_cards import purpose

    if not (options.onnx or options.torch or options.darktable):
        raise UserError("nothing to write: give --onnx FILE, --torch FILE or --darktable FILE")
    if options.darktable and (options.luma or options.condition):
        raise UserError("--luma, --condition: darktable takes networks with RGB as the only input")
    if (options.half or options.compact) and not options.onnx:
        raise UserError("--half and --compact are for ONNX: give --onnx FILE")
    model, about, scale = load_model(options.model), {"name": Path(options.model).stem}, 1
    if shipped := shipped_degradation(options.model):
        about["license"], scale = "Apache-2.0", 1 if options.luma else shipped.scale
        about |= {"description": f"Restores {purpose(shipped)}", "card": shipped_card(find_weights(options.model).stem)}
    if options.quality is not None:
        if not model.conditioned or not 1 <= options.quality <= 100 or options.condition:
            raise UserError(f"--quality {options.quality}: expected 1..100, and a network with that input, without "
                            "--condition")
        about["quality"] = str(options.quality)
    if not options.condition:
        model = model.with_condition(None if options.quality is None else condition_of_quality(options.quality))
    scale = options.scale or scale
    luma, small = {"luma": options.luma}, {"half": options.half, "compact": options.compact}
    for path, write, more in ((options.onnx, export_onnx, luma | small), (options.torch, export_torch, luma),
                              (options.darktable, export_darktable, {})):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            difference = write(model, path, about, scale=scale, **more)
            if difference is None:
                print(f"{path}: not compared with PyTorch (onnxruntime is not installed)")
            else:
                print(f"{path}: within {difference:.1e} of PyTorch on odd sizes")
    return 0
