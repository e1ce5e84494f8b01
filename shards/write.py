"""Makes shards: lists and scans the photos, then degrades and tiles them and writes the shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from shards import output, plan
from shards.decode import read_original
from shards.plan import ShardsConfig, ShardTask, Source
from shards.tar import write_tar
from shards.workers import ShardsFailed, WorkerPool, dask_executor, explain_errors
from srcnn.data.manifest import SPLITS, Manifest, PhotoRecord, RefusedRecord
from srcnn.photos import tiling
from srcnn.photos.degradation import crop_to_multiple, degrade
from srcnn.photos.file_kinds import NAMES
from srcnn.photos.jpeg_quality import jpeg_save_of
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import SUFFIXES, PhotoRefused, find_photos, luma_l, open_image, read_photo, upright_size
from srcnn.runtime import files
from srcnn.runtime.errors import UserError
from srcnn.runtime.parallel import num_cores
from srcnn.runtime.storage import Folder, is_url, is_within, join, open_writable

MAX_TILE_WORKERS = 16  # writing the tiles of a photo takes a sixteenth of the time of making them

open_source = lru_cache(maxsize=64)(open_writable)  # so that a worker keeps its connection to an object store


class Summary(NamedTuple):
    """The result of `make_shards`: the manifest of each split; files whose suffix is not of a photo are ignored."""

    manifests: dict[str, Manifest]
    num_ignored_files: int
    num_new_shards: int
    resized: plan.ResizedPhotos


def make_shards(config: ShardsConfig, show_progress: bool = True, executor: Executor | None = None) -> Summary:
    """Makes shards of the photos (or pair pictures) of `config` in `out`/train and `out`/val.

    Finished shards of an interrupted run are kept. With an `executor` its workers do the work; they must have access to
    the same photos and output, and be able to import this package.

    Raises:
        FileNotFoundError: the folder does not exist, or has no photos.
        BlockingIOError: another process makes shards in `out`.
        ShardsFailed: `out` has other shards, the disk is full, a worker died.
    """
    if config.executor and executor is None:
        with dask_executor(config.executor) as executor:
            return make_shards(config, show_progress, executor)
    sources, num_ignored = list_sources(config)
    with WorkerPool(min(config.num_workers or num_cores(), len(sources)), executor) as workers:
        return fill_output(config, sources, workers, show_progress)._replace(num_ignored_files=num_ignored)


def fill_output(config: ShardsConfig, sources: list[Source], workers: WorkerPool, show_progress: bool) -> Summary:
    """Makes the shards that are missing, without counting ignored files."""
    scanned = workers.map_all(partial(scan_photo, config), sources, "photos scanned", show_progress)
    tasks, refused = plan_tasks(config, scanned)
    out = open_writable(config.out)
    with out.locked():
        output.reserve_output(out, config, tasks)
        finished = output.finished_shards(config, tasks)
        missing = [task for task in tasks if task not in finished]
        if missing and finished:
            output.check_versions(out)
        write_shards(config, missing, workers, show_progress)
        out.prepare(output.FOLDERS)  # removes unfinished files of workers that died
        manifests = {split: output.finish_split(config, split, tasks, refused) for split in SPLITS}
    resized = plan.count_resized(config, (item for item in scanned if isinstance(item, Source)))
    return Summary(manifests, 0, len(missing), resized)


def plan_tasks(
    config: ShardsConfig, scanned: Sequence[Source | RefusedRecord]
) -> tuple[list[ShardTask], list[RefusedRecord]]:
    """Plans the shards to make and which photos are refused. Raises ShardsFailed if no photo can be used."""
    sources = plan.assign_splits(config, [item for item in scanned if isinstance(item, Source)])
    sources, refused = plan.select_usable(config, sources)
    refused = [item for item in scanned if isinstance(item, RefusedRecord)] + refused
    if not sources:
        reasons = "".join(f"\n  {item.name}: {item.reason}" for item in refused[:10])
        raise ShardsFailed(f"none of the {len(scanned)} photos can be used:{reasons}")
    return plan.plan_shards(config, sources), refused


def list_sources(config: ShardsConfig) -> tuple[list[Source], int]:
    """Lists the photos of the config, not opened yet, and counts the files that are not photos by their suffix."""
    roots = [(config.photos or config.pairs, "train" if config.val else "")]
    if config.val:
        roots.append((config.val, "val"))
    sources: set[Source] = set()
    ignored: set[str] = set()
    for root, split in roots:
        if is_within(root, config.out):
            raise UserError(f"{root}: is inside the output folder {config.out}; choose another OUT")
        # A validation folder may be inside the folder of training photos.
        exclude = [config.out, *([config.val] if split == "train" else [])]
        names: set[str] = set()
        for subfolder in config.folders if config.folders and split != "val" else [""]:
            photos, others = list_photos(join(root, subfolder) if subfolder else root, exclude)
            names.update(str(PurePosixPath(subfolder, name)) for name in photos)
            ignored.update(join(root, str(PurePosixPath(subfolder, name))) for name in others)
        if not names:
            raise FileNotFoundError(f"{root}: no photos ({NAMES}) in this folder or below it")
        sources |= {Source(root, name, "", 0, 0, split) for name in names}
    return sorted(sources, key=lambda source: (source.split, source.name)), len(ignored)


def list_photos(location: str, exclude: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of all files below a folder or URL, except hidden ones and those in `exclude`d locations.

    Returns:
        (photos, other files), told apart by their suffix, each sorted.

    Raises:
        FileNotFoundError: the folder does not exist, or there is no file below the URL.
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


def scan_photo(config: ShardsConfig, source: Source) -> Source | RefusedRecord:
    """Hashes a photo and reads its upright size from the header. Raises ReadFailed if its server does not answer."""
    with open_source(source.root).local_copy(source.name) as path:
        try:
            with open_image(path, config.max_megapixels) as image:
                width, height = upright_size(image)
            return source._replace(sha256=files.sha256_of(path), width=width, height=height)
        except (PhotoRefused, OSError) as error:
            return RefusedRecord(source.name, _reason(error, path), source.split or "train")


def _reason(error: Exception, path: Path) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.removeprefix(f"{path}: ").replace(str(path), "the photo")  # which may be a temporary copy


def write_shards(config: ShardsConfig, tasks: Sequence[ShardTask], workers: WorkerPool, show_progress: bool) -> None:
    """Writes the shards: most of them in the workers, the last ones here from tiles that the workers make.

    So all workers are busy until the end, even if there are fewer shards than workers. Tiles are not sent between
    machines: there each shard is written by one worker.
    """
    num_last = 0
    if workers.are_local and 1 < workers.num <= MAX_TILE_WORKERS:
        num_last = min(len(tasks), workers.num + len(tasks) % workers.num)
    num_first = len(tasks) - num_last
    last = tasks[num_first:]
    work = [*tasks[:num_first], *(source for task in last for source in task.sources)]
    results: Iterator[Any] = workers.map(partial(_write_or_make_tiles, config), work)
    is_silent = not (show_progress and tasks) or None  # None: unless stderr is a terminal
    with explain_errors(), tqdm(total=len(tasks), desc="shards written", disable=is_silent) as bar:
        for _ in islice(results, num_first):
            bar.update()
        for task in last:
            write_shard(config, task, results)
            bar.update()


def _write_or_make_tiles(config: ShardsConfig, work: ShardTask | Source) -> PhotoTiles | RefusedRecord | None:
    if isinstance(work, Source):
        return make_tiles(config, work)
    write_shard(config, work)
    return None


def write_shard(
    config: ShardsConfig, task: ShardTask, tiles: Iterator[PhotoTiles | RefusedRecord] | None = None
) -> None:
    """Writes a shard and, beside it, its index entries and its record for the manifest.

    `tiles` are those of its photos, made here if None. The keys of photos that cannot be decoded stay unused.
    """
    if tiles is None:
        tiles = (make_tiles(config, source) for source in task.sources)
    folder = open_writable(join(config.out, task.split))
    photos: list[PhotoRecord] = []
    refused: list[RefusedRecord] = []

    def samples() -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        next_key, num_written = task.first_sample, 0
        for source in task.sources:
            photo_tiles = next(tiles)
            if isinstance(photo_tiles, RefusedRecord):
                refused.append(replace(photo_tiles, shard=task.name))
            else:
                photos.append(replace(photo_tiles.record, shard=task.name, first_sample=num_written))
                yield from enumerate(zip(*photo_tiles.tiles, strict=True), next_key)
                num_written += photos[-1].num_samples
            next_key += config.num_samples(source)

    with folder.create(task.name) as file:
        shard, entries = write_tar(file, task.name, samples(), config.encoding)
        output.write_result(folder, output.ShardResult(shard, tuple(photos), tuple(refused)), entries)


class PhotoTiles(NamedTuple):
    """The tiles of a photo, (clean, degraded) or (clean,), each uint8 (n, H, W) or (n, H, W, 3).

    The record lacks the shard and the position in it.
    """

    tiles: tuple[np.ndarray, ...]
    record: PhotoRecord


def make_tiles(config: ShardsConfig, source: Source) -> PhotoTiles | RefusedRecord:
    """Decodes, resizes, degrades and tiles a photo."""
    with open_source(source.root).local_copy(source.name) as path:
        try:
            pictures, quality, original_quality = read_pictures(config, source, path)
        except PhotoRefused as error:
            return RefusedRecord(source.name, _reason(error, path), source.split)
    height, width = pictures[0].shape[:2]
    cut_photo = tiling.cut_to_cover if config.is_clean_only(source.split) else tiling.cut
    cut = tuple(cut_photo(picture, config.tile_pixels) for picture in pictures)
    if len(cut[0]) != config.num_samples(source):
        return RefusedRecord(source.name, "was changed after it was scanned", source.split)
    mean_psnr = float(np.mean([psnr(*pair) for pair in zip(*cut, strict=True)])) if len(cut) == 2 else 0.0
    record = PhotoRecord(source.name, source.sha256, width, height, quality, "", 0, len(cut[0]), round(mean_psnr, 4),
                         original_quality)
    return PhotoTiles(cut, record)


def read_pictures(
    config: ShardsConfig, source: Source, path: Path
) -> tuple[tuple[np.ndarray, ...], int | None, int | None]:
    """Reads a photo.

    Returns:
        (clean, degraded), or (clean,) if its split has clean tiles only, each uint8 (H, W) or (H, W, 3); the JPEG
        quality that degraded the second, and that of the photo itself by `read_original`, or None.
    """
    to_color = luma_l if config.color == "luma" else _rgb
    if config.pairs:
        with open_image(path, config.max_megapixels) as image:
            file = jpeg_save_of(image)
        pixels = to_color(read_photo(path, config.max_megapixels))
        both = pixels[:, : config.tile_pixels], pixels[:, config.tile_pixels :]
        return both, None, file.quality if file else None
    rule, is_thorough = config.resize_rule(source.name), config.check_originals == "thorough"
    clean, original = read_original(path, rule, config.decode, config.max_megapixels, is_thorough)
    clean = crop_to_multiple(clean, config.degradation.scale)
    if config.is_clean_only(source.split):
        return (to_color(clean),), None, original
    quality = config.degradation.quality(source.sha256)
    return (to_color(clean), to_color(degrade(clean, config.degradation, quality))), quality, original


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
