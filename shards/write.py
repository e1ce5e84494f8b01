"""The effects of shard making: find and scan the photos, read, degrade and cut them, write the shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from shards import output, plan
from shards.decode import read_clean
from shards.plan import ShardsConfig, ShardTask, Source
from shards.tar import write_tar
from shards.workers import ShardsFailed, Workers, clear_errors, dask_executor, num_cores
from srcnn.data.manifest import SPLITS, Manifest, PhotoRecord, Refused
from srcnn.photos import tiling
from srcnn.photos.degradation import crop_to_multiple, degrade
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import (
    SUFFIXES,
    PhotoRefused,
    find_photos,
    luma_l,
    open_image,
    read_photo,
    upright_size,
)
from srcnn.runtime import files
from srcnn.runtime.storage import Folder, is_url, is_within, join, open_writable

MAX_WORKERS_SERVED = 16  # writing a photo's pairs takes a sixteenth of the time of making them

open_source = lru_cache(maxsize=64)(open_writable)  # a worker keeps its connection from photo to photo


class Summary(NamedTuple):
    """What `make_shards` did: the manifests by split, how many files were no photos, how many shards are new."""

    manifests: dict[str, Manifest]
    num_ignored_files: int
    num_new_shards: int


def make_shards(config: ShardsConfig, show_progress: bool = True, executor: Executor | None = None) -> Summary:
    """Turns the photos (or pair pictures) of `config` into shards, `out`/train and `out`/val.

    Finished shards of an interrupted run are kept; a finished folder is left alone. `executor` does the work where it
    is given: its workers must see the same photos and output, and import this package.

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
        BlockingIOError: another process makes shards in `out`.
        ShardsFailed: `out` holds other shards, the disk is full, a worker died.
    """
    if config.executor and executor is None:
        with dask_executor(config.executor) as executor:
            return make_shards(config, show_progress, executor)
    sources, num_ignored = find_sources(config)
    with Workers(min(config.num_workers or num_cores(), len(sources)), executor) as workers:
        manifests, num_new_shards = fill_output(config, sources, workers, show_progress)
    return Summary(manifests, num_ignored, num_new_shards)


def fill_output(
    config: ShardsConfig, sources: list[Source], workers: Workers, show_progress: bool
) -> tuple[dict[str, Manifest], int]:
    """From the files found to the manifests by split; also how many shards are new."""
    scanned = workers.run(partial(scan, config), sources, "photos looked at", show_progress)
    tasks, refused = plan_tasks(config, scanned)
    out = open_writable(config.out)
    with out.locked():
        output.reserve_output(out, config, tasks)
        finished = output.finished_shards(config, tasks)
        missing = [task for task in tasks if task not in finished]
        if missing and finished:
            output.check_versions(out)
        write_shards(config, missing, workers, show_progress)
        out.prepare(output.FOLDERS)  # of what workers left that did not live to the end
        manifests = {split: output.finish_split(config, split, tasks, refused) for split in SPLITS}
    return manifests, len(missing)


def plan_tasks(config: ShardsConfig, scanned: Sequence[Source | Refused]) -> tuple[list[ShardTask], list[Refused]]:
    """The shards to be made of what was found, and the photos refused. Raises ShardsFailed where none can be used."""
    sources = plan.assign_splits(config, [item for item in scanned if isinstance(item, Source)])
    sources, refused = plan.refuse_unusable(config, sources)
    refused = [item for item in scanned if isinstance(item, Refused)] + refused
    if not sources:
        reasons = "".join(f"\n  {item.name}: {item.reason}" for item in refused[:10])
        raise ShardsFailed(f"none of the {len(scanned)} photos can be used:{reasons}")
    return plan.plan_shards(config, sources), refused


def find_sources(config: ShardsConfig) -> tuple[list[Source], int]:
    """The files to look at, not opened yet, and how many others there are."""
    roots = [(config.photos or config.pairs, "train" if config.val else "")]
    if config.val:
        roots.append((config.val, "val"))
    sources: set[Source] = set()
    ignored: set[str] = set()
    for root, split in roots:
        if is_within(root, config.out):
            raise ValueError(f"{root}: lies in the output folder {config.out}; choose another OUT")
        # A validation folder below the training photos is no part of these.
        exclude = [config.out, *([config.val] if split == "train" else [])]
        names: set[str] = set()
        for subfolder in config.folders if config.folders and split != "val" else [""]:
            photos, others = list_photos(join(root, subfolder) if subfolder else root, exclude)
            names.update(str(PurePosixPath(subfolder, name)) for name in photos)
            ignored.update(join(root, str(PurePosixPath(subfolder, name))) for name in others)
        if not names:
            raise FileNotFoundError(f"{root}: no photo (JPEG, PNG, WebP, TIFF, BMP) in or below this folder")
        sources |= {Source(root, name, "", 0, 0, split) for name in names}
    return sorted(sources, key=lambda source: (source.split, source.name)), len(ignored)


def list_photos(location: str, exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of all files below a folder or URL, but for hidden ones and those of `exclude`d locations: (photos by their
    suffix, other files), each sorted.

    Raises:
        FileNotFoundError: no such folder, or no file below the URL.
    """
    storage = open_source(location)
    if isinstance(storage, Folder):
        folders = [Path(other).expanduser().resolve() for other in exclude if not is_url(other)]
        found = find_photos(storage.path, exclude=folders[0] if folders else None)
        photos, others = ([path.relative_to(storage.path).as_posix() for path in paths
                           if not any(path.resolve().is_relative_to(other) for other in folders[1:])]
                          for paths in found)
        return photos, others
    names: dict[bool, list[str]] = {True: [], False: []}  # whether they are photos
    for name in storage.files():
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if not is_hidden and not any(is_within(join(storage.location, name), other) for other in exclude):
            names[PurePosixPath(name).suffix.lower() in SUFFIXES].append(name)
    if not any(names.values()):
        raise FileNotFoundError(f"{storage.location}: no files here")
    return names[True], names[False]


def scan(config: ShardsConfig, source: Source) -> Source | Refused:
    """Hashes a photo and reads its upright size from the header. Raises ReadFailed where its server does not answer."""
    with open_source(source.root).local_copy(source.name) as path:
        try:
            with open_image(path, config.max_megapixels) as image:
                width, height = upright_size(image)
            return source._replace(sha256=files.sha256_of(path), width=width, height=height)
        except (PhotoRefused, OSError) as error:
            return Refused(source.name, _reason(error, path), source.split or "train")


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def write_shards(config: ShardsConfig, tasks: Sequence[ShardTask], workers: Workers, show_progress: bool) -> None:
    """Writes the shards: each by a worker of its own, but the last of them here, of pairs that all workers make,
    photo by photo. So every worker is busy to the end, and at all where there are fewer shards than workers. Pairs
    do not travel between machines: there each shard is a worker's own.
    """
    few = workers.are_local and 1 < workers.num <= MAX_WORKERS_SERVED
    num_last = workers.num + len(tasks) % workers.num if few else 0
    first, last = tasks[: -num_last or None], tasks[-num_last:] if num_last else ()
    written = workers.start(partial(write_shard, config), first)
    made = workers.start(partial(make_tiles, config), [source for task in last for source in task.sources])
    is_silent = not (show_progress and tasks) or None  # None: where there is no terminal
    with clear_errors(), tqdm(total=len(tasks), desc="shards written", disable=is_silent) as bar:
        for _ in written:
            bar.update()
        for task in last:
            write_shard(config, task, made)
            bar.update()


def write_shard(config: ShardsConfig, task: ShardTask, made: Iterator[PhotoTiles | Refused] | None = None) -> None:
    """Writes one shard, of the next tiles of `made` where others make them, and its result, which also names photos
    that cannot be decoded: their keys stay unused.
    """
    made = map(partial(make_tiles, config), task.sources) if made is None else made
    folder = open_writable(join(config.out, task.split))
    photos: list[PhotoRecord] = []
    refused: list[Refused] = []

    def samples() -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        next_key, num_written = task.first_sample, 0
        for source in task.sources:
            photo_tiles = next(made)
            if isinstance(photo_tiles, Refused):
                refused.append(replace(photo_tiles, shard=task.name))
            else:
                photos.append(replace(photo_tiles.record, shard=task.name, first_sample=num_written))
                yield from enumerate(zip(*photo_tiles.tiles, strict=True), next_key)
                num_written += photos[-1].num_samples
            next_key += config.num_samples(source)

    with folder.create(task.name) as file:
        shard, rows = write_tar(file, task.name, samples(), config.encoding)
        output.write_result(folder, output.ShardResult(shard, tuple(photos), tuple(refused)), rows)


class PhotoTiles(NamedTuple):
    """All tiles of a photo, the clean and the degraded ones, or the clean ones alone: uint8 (n, H, W) or (n, H, W, 3);
    and its record, without its position in a shard.
    """

    tiles: tuple[np.ndarray, ...]
    record: PhotoRecord


def make_tiles(config: ShardsConfig, source: Source) -> PhotoTiles | Refused:
    """Decodes, resizes, degrades and cuts one photo."""
    with open_source(source.root).local_copy(source.name) as path:
        try:
            pictures, quality = read_pictures(config, source, path)
        except PhotoRefused as error:
            return Refused(source.name, _reason(error, path), source.split)
    height, width = pictures[0].shape[:2]
    cut_photo = tiling.cut_to_cover if config.is_clean_only(source.split) else tiling.cut
    cut = tuple(cut_photo(picture, config.tile_pixels) for picture in pictures)
    if len(cut[0]) != config.num_samples(source):
        return Refused(source.name, "changed while shards were made of it", source.split)
    mean_psnr = float(np.mean([psnr(*pair) for pair in zip(*cut, strict=True)])) if len(cut) == 2 else 0.0
    record = PhotoRecord(source.name, source.sha256, width, height, quality, "", 0, len(cut[0]), round(mean_psnr, 4))
    return PhotoTiles(cut, record)


def read_pictures(config: ShardsConfig, source: Source, path: Path) -> tuple[tuple[np.ndarray, ...], int | None]:
    """The clean photo and the degraded one, before they are cut, and the JPEG quality if there is one; the clean one
    alone where the split's samples are.
    """
    to_color = luma_l if config.color == "luma" else _rgb
    if config.pairs:
        pixels = to_color(read_photo(path, config.max_megapixels))
        return (pixels[:, : config.tile_pixels], pixels[:, config.tile_pixels :]), None
    clean = read_clean(path, config.resize_rule(source.name), config.decode, config.max_megapixels)
    clean = crop_to_multiple(clean, config.degradation.scale)
    if config.is_clean_only(source.split):
        return (to_color(clean),), None
    quality = config.degradation.quality(source.sha256)
    return (to_color(clean), to_color(degrade(clean, config.degradation, quality))), quality


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
