"""srcnn shards --photos DIR --out DIR [--config FILE] [--SETTING VALUE ...]

Cuts photos into tiles, degrades these, and writes both as WebDataset shards for training, into DIR/train and DIR/val.
The same command resumes an interrupted one. Shards of other programs: srcnn shards index --help.

examples:
  srcnn shards --photos photos --out data/shards
  srcnn shards --photos photos --val others --out data/shards --degradation.jpeg_quality 10 --resize x0.5
"""

from __future__ import annotations

import shlex
import sys
from itertools import islice

from shards import index_foreign
from shards.contact_sheet import write_contact_sheet
from shards.dataset_card import CARD, write_dataset_card
from shards.plan import ResizedPhotos, ShardsConfig, is_poor
from shards.write import Summary, make_shards
from srcnn.data.manifest import SPLITS
from srcnn.data.photo_list import PHOTOS, read_photo_records, read_refused
from srcnn.photos.jpeg_history import POOR_QUALITY
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.settings import parse
from srcnn.runtime.storage import join, open_storage, open_writable

RECIPE = "srcnn-915-q20-stage1.yaml"  # for a training on these shards, the best of half an hour
MAX_NAMED = 100  # poor originals of a split


def main(arguments: list[str], program: str) -> int:
    """Runs the command; returns its exit status.

    0: done; 1: failed, no sample made, or photos refused (unless `allow_refused`); 2: invalid arguments.
    """
    if arguments[:1] == ["index"]:
        return index_foreign.main(arguments[1:], f"{program} index")
    config = parse(ShardsConfig, program, __doc__, arguments)
    status = run(config)
    if status == 0:
        print(without_credentials(next_steps(config)))
    return status


def run(config: ShardsConfig) -> int:
    """Makes shards and reports what was made; returns the exit status."""
    try:
        summary = make_shards(config)
        out = open_writable(config.out)
        for split, manifest in summary.manifests.items():
            if summary.num_new_shards or f"{split}.png" not in out.names():
                write_contact_sheet(out, split, manifest, config.num_sheet_pairs)
        if not write_dataset_card(out, summary.manifests):
            hint = "edit it, or remove it and run the command again"
            print(f"{join(config.out, CARD)}: lacks the hashes of these shards; {hint}", file=sys.stderr)
    except (UserError, OSError) as error:
        print(f"shards: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shards: interrupted; run the same command again to make the missing shards", file=sys.stderr)
        return 130
    return report(config, summary)


def report(config: ShardsConfig, summary: Summary) -> int:
    """Prints the number of samples of each split, then every refused photo with its reason; returns the exit status."""
    if not summary.num_new_shards:
        print(f"{config.out}: up to date, nothing to do")
    manifests = summary.manifests.values()
    for manifest in manifests:
        assert manifest.photos
        kind = "clean tiles" if manifest.is_clean_only else "pairs"
        degraded = "" if manifest.is_clean_only else f", degraded PSNR {manifest.degraded_psnr:.2f} dB"
        print(f"{manifest.split}: {manifest.num_samples} {kind} of {manifest.photos.num_photos} photos "
              f"in {len(manifest.shards)} shards{degraded}")
        if not manifest.num_samples:
            print(f"warning: no {manifest.split} samples; give more photos, or a validation folder with --val",
                  file=sys.stderr)
    report_resized(config, summary.resized)
    if summary.num_ignored_files:
        print(f"{summary.num_ignored_files} files ignored, as their suffix is not that of a photo")
    report_poor(config, summary)
    refused = [item for split, manifest in summary.manifests.items()
               for item in read_refused(open_storage(join(config.out, split)), manifest)]
    for item in refused:
        print(f"refused: {item.name}: {item.reason}", file=sys.stderr)
    if refused:
        hint = "" if config.allow_refused else "; repair or remove them, or use --allow_refused true"
        print(f"{len(refused)} photos refused{hint}", file=sys.stderr)
    is_accepted = config.allow_refused or not refused
    return 0 if is_accepted and any(manifest.num_samples for manifest in manifests) else 1


def next_steps(config: ShardsConfig) -> str:
    """Where the results lie, and the command that trains on them."""
    look = f"; look at {' and '.join(join(config.out, f'{split}.png') for split in SPLITS)}"
    done = f"{config.out}: done{look if config.num_sheet_pairs else ''}"
    if config.contents == "clean":
        return f"{done}\nnext: srcnn train with a config that sets degradation, as unet-jpeg.yaml does for RGB tiles"
    channels = " --model.channels 3" if config.color == "rgb" else ""
    command = f"srcnn train --config {RECIPE} --shards {shlex.quote(config.out)} --run runs/mine{channels}"
    return f"{done}\nnext: {command}"


def report_resized(config: ShardsConfig, resized: ResizedPhotos) -> None:
    """Prints how many photos were reduced and were too small, and warns of those that were enlarged or stretched."""
    if not resized.total:
        return
    rule = "folders" if config.folders else f"resize {config.resize}"
    print(f"{resized.reduced} of {resized.total} photos reduced ({rule}), {resized.too_small} too small for a tile of "
          f"{config.tile_pixels}x{config.tile_pixels} pixels")
    if resized.enlarged or resized.stretched:
        print(f"warning: {resized.enlarged} photos enlarged, {resized.stretched} stretched to other proportions "
              f"({rule}); use --resize max:1024, which does neither", file=sys.stderr)


def report_poor(config: ShardsConfig, summary: Summary) -> None:
    """Names the photos that were poor JPEGs themselves, MAX_NAMED of each split."""
    num_poor = 0
    for split, manifest in summary.manifests.items():
        assert manifest.photos
        if num_here := manifest.photos.num_poor:
            photos = filter(is_poor, read_photo_records(open_storage(join(config.out, split)), manifest))
            for photo in islice(photos, MAX_NAMED):
                print(f"poor original: {photo.name}: JPEG quality {photo.original_quality}", file=sys.stderr)
            if num_here > MAX_NAMED:
                print(f"and {num_here - MAX_NAMED} more: original_quality in {join(config.out, split)}/{PHOTOS}",
                      file=sys.stderr)
            num_poor += num_here
    if num_poor:
        print(f"warning: {num_poor} photos were JPEGs of a quality below {POOR_QUALITY} themselves, and their clean "
              "tiles show it; take better originals, leave these out, or reduce them further (--resize x0.5)",
              file=sys.stderr)
