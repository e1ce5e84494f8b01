"""The effects of shard making: find and scan the photos, read, degrade and cut them, write the shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards import folder, plan, pool
from shards.plan import ShardsConfig, ShardTask, Source
from shards.pool import ShardsFailed
from srcnn import files, sample, tiles
from srcnn.degrade import crop_to_multiple, degrade
from srcnn.index import index_tar
from srcnn.metrics import psnr
from srcnn.photo import (
    PhotoRefused,
    find_photos,
    luma_l,
    open_image,
    over_white,
    read_photo,
    resize,
    upright_size,
)
from srcnn.sample import SPLITS, Manifest, PhotoRecord, Refused, Shard


@dataclass(frozen=True)
class Summary:
    """What `make_shards` did: the manifests by split, how many files were no photos, how many shards are new."""

    manifests: dict[str, Manifest]
    num_ignored_files: int
    num_new_shards: int


def make_shards(config: ShardsConfig, show_progress: bool = True) -> Summary:
    """Turns the photos (or pair pictures) of `config` into shards, `out`/train and `out`/val.

    Finished shards of an interrupted run are kept; a finished folder is left alone.

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
        ShardsFailed: `out` holds other shards, the disk is full, a worker died.
    """
    out = Path(config.out)
    found, num_ignored = find_sources(config)
    run = partial(pool.run, num_workers=config.num_workers, show_progress=show_progress)
    scanned = list(run(partial(scan, config), found, title="photos looked at"))
    sources = plan.assign_splits(config, [item for item in scanned if isinstance(item, Source)])
    refused = [item for item in scanned if isinstance(item, Refused)]
    for refuse in (plan.refuse_leaks, partial(plan.refuse_by_size, config)):
        sources, newly_refused = refuse(sources)
        refused += newly_refused
    if not sources:
        reasons = "".join(f"\n  {item.name}: {item.reason}" for item in refused[:10])
        raise ShardsFailed(f"none of the {len(found)} photos can be used:{reasons}")
    tasks = plan.plan_shards(config, sources)
    with folder.occupied(out):
        folder.claim(out, config, tasks)
        finished = folder.finished_shards(out, tasks)
        missing = [task for task in tasks if task not in finished]
        if missing and finished:
            folder.check_versions(out)
        for _ in run(partial(write_shard, config), missing, title="shards written"):
            pass
        manifests = {split: folder.finish_split(config, split, tasks, refused) for split in SPLITS}
    return Summary(manifests, num_ignored, len(missing))


def find_sources(config: ShardsConfig) -> tuple[list[Source], int]:
    """The files to look at, not opened yet, and how many others there are."""
    roots = [(Path(config.photos or config.pairs), "train" if config.val else "")]
    if config.val:
        roots.append((Path(config.val), "val"))
    out, val = Path(config.out), Path(config.val).resolve()
    sources: set[Source] = set()
    ignored: set[Path] = set()
    for root, split in roots:
        if root.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{root}: lies in the output folder {out}; choose another OUT")
        subfolders = [root / name for name in config.folders] if config.folders and split != "val" else [root]
        listed = [find_photos(subfolder, exclude=out) for subfolder in subfolders]
        ignored.update(path.resolve() for _, others in listed for path in others)
        photos = [path for photos, _ in listed for path in photos]
        if split == "train":  # a validation folder below the training photos is no part of these
            photos = [path for path in photos if not path.resolve().is_relative_to(val)]
        if not photos:
            raise FileNotFoundError(f"{root}: no photo (JPEG, PNG, WebP, TIFF, BMP) in or below this folder")
        sources |= {Source(str(root), path.relative_to(root).as_posix(), "", 0, 0, split) for path in photos}
    return sorted(sources, key=lambda source: (source.split, source.name)), len(ignored)


def scan(config: ShardsConfig, source: Source) -> Source | Refused:
    """Hashes a photo and reads its upright size from the header."""
    path = Path(source.root, source.name)
    try:
        with open_image(path, config.max_megapixels) as image:
            width, height = upright_size(image)
        return Source(source.root, source.name, files.sha256_of(path), width, height, source.split)
    except (PhotoRefused, OSError) as error:
        return Refused(source.name, _reason(error, path), source.split or "train")


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def write_shard(config: ShardsConfig, task: ShardTask) -> None:
    """Writes one shard and its record, which also names photos that cannot be decoded: their keys stay unused."""
    path = Path(config.out) / task.split / task.name
    photos: list[PhotoRecord] = []
    refused: list[Refused] = []
    next_key, num_samples = task.first_sample, 0
    with files.atomic_file(path) as file:
        with sample.open_shard_writer(file) as tar:
            for source in task.sources:
                try:
                    record, pairs = read_pairs(config, source)
                except PhotoRefused as error:
                    reason = _reason(error, Path(source.root, source.name))
                    refused.append(Refused(source.name, reason, task.split))
                    next_key += config.num_samples_of(source)
                    continue
                photos.append(record(task.name, num_samples))
                num_samples += len(pairs[0])
                for clean, degraded in zip(*pairs, strict=True):
                    sample.write_sample(tar, next_key, clean, degraded, config.encoding)
                    next_key += 1
        file.flush()
        num_bytes = os.fstat(file.fileno()).st_size
        shard = Shard(task.name, num_bytes, files.sha256_of(Path(file.name)), num_samples)
        folder.write_rows(path, index_tar(Path(file.name), sample.MEMBERS[config.encoding])[0])
        folder.write_record(path, folder.ShardResult(shard, tuple(photos), tuple(refused)))


def read_pairs(config: ShardsConfig, source: Source) -> tuple[Callable[[str, int], PhotoRecord], Any]:
    """Decodes, resizes, degrades and cuts one photo: (its record, wanting shard and place; the tiles).

    Tiles are (clean, degraded), each uint8 (n, H, W) or (n, H, W, 3).
    """
    path = Path(source.root, source.name)
    photo = read_photo(path, config.max_megapixels)
    pixels = over_white(photo)
    quality = None
    if config.pairs:
        pixels = luma_l(pixels) if config.color == "luma" else _rgb(pixels)
        clean, degraded = pixels[:, : config.tile_pixels], pixels[:, config.tile_pixels :]
    else:
        resized = crop_to_multiple(resize(pixels, config.resize_rule(source.name)), config.degradation.scale)
        quality = config.degradation.quality(source.sha256)
        spoiled = degrade(resized, config.degradation, quality)
        to_color = luma_l if config.color == "luma" else _rgb
        clean, degraded = to_color(resized), to_color(spoiled)
    clean_tiles, degraded_tiles = (tiles.cut(part, config.tile_pixels) for part in (clean, degraded))
    if len(clean_tiles) != config.num_samples_of(source):
        raise PhotoRefused(f"{path}: changed while shards were made of it")
    mean_psnr = float(np.mean([psnr(*pair) for pair in zip(clean_tiles, degraded_tiles, strict=True)]))

    def record(shard: str, first_sample: int) -> PhotoRecord:
        height, width = clean.shape[:2]
        place = (shard, first_sample, len(clean_tiles), round(mean_psnr, 4))
        return PhotoRecord(source.name, source.sha256, width, height, quality, *place)

    return record, (clean_tiles, degraded_tiles)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
