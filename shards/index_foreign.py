"""`python -m shards index DIR`: makes shards of picture pairs that were written elsewhere readable by the stream."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from shards.tar import names_in, scan_tar
from shards.workers import ShardsFailed, Workers, num_cores
from srcnn.data.index import INDEX, encode_index, hash_of_rows, index_entry
from srcnn.data.manifest import MANIFEST, Manifest, Shard, ShardError, decode_picture, writer_versions
from srcnn.runtime.files import atomic_file, sha256_of
from srcnn.runtime.untrusted import MAX_TILE_SIDE, InvalidInput, check_name

GUESSES = ("png", "jpg", "jpeg", "webp", "npy")


def main(arguments: list[str]) -> int:
    """Exit status: 0 indexed, 1 not."""
    parser = argparse.ArgumentParser(prog="python -m shards index", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder with WebDataset shards (*.tar) of one split")
    parser.add_argument("--clean", default="", help="name of the clean picture after a sample's key, such as hq.png")
    parser.add_argument("--degraded", default="", help="name of the degraded picture, such as lq.jpg")
    parser.add_argument("--tile_pixels", type=int, default=128, help="side of the tiles cut out of each pair when read")
    parser.add_argument("--color", choices=("luma", "rgb"), default="luma", help="channels of the tiles")
    parser.add_argument("--num_workers", type=int, default=0, help="processes; 0: one for each core")
    options = parser.parse_args(arguments)
    try:
        manifest = index_folder(**vars(options))
    except (ShardsFailed, ValueError, OSError) as error:
        print(f"shards index: {error}", file=sys.stderr)
        return 1
    shape = "x".join(map(str, manifest.tile_shape))
    print(f"{options.folder}: {manifest.num_samples} pairs in {len(manifest.shards)} shards, to be cut to {shape}")
    return 0


def index_folder(
    folder: Path, clean: str = "", degraded: str = "", tile_pixels: int = 128, color: str = "luma", num_workers: int = 0
) -> Manifest:
    """Reads and checks every pair of `folder`/*.tar and writes index.npy and manifest.json beside the shards.

    Members may be PNG, JPEG, WebP or npy, 8 bits, grey or RGB, of any size that holds a tile. Where their names are not
    given they are clean.EXT and degraded.EXT.

    Raises:
        FileNotFoundError: no shards there.
        ShardError: pairs that cannot be used, all of them named; or shards that have a manifest of ours.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.tar files here")
    if (folder / MANIFEST).is_file() and Manifest.read(folder, check_shards=False).encoding != "any":
        raise ShardError(f"{folder}: these shards have their manifest and index already")
    if not 1 <= tile_pixels <= MAX_TILE_SIDE:
        raise ValueError(f"--tile_pixels {tile_pixels}: expected 1..{MAX_TILE_SIDE}")
    for path in paths:
        check_file(path)
    members = guess_members(paths, clean, degraded)
    shape = (tile_pixels, tile_pixels) if color == "luma" else (tile_pixels, tile_pixels, 3)
    work = partial(index_shard, members=members, tile_shape=shape)
    with Workers(min(num_workers or num_cores(), len(paths))) as workers:
        results = workers.run(work, paths, "shards indexed", show_progress=True)
    problems = [problem for _, _, found in results for problem in found]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:20])
        raise ShardError(f"{folder}: {len(problems)} pairs or shards cannot be used:{lines}")
    if not any(len(rows) for _, rows, _ in results):
        raise ShardError(f"{folder}: its shards hold no pairs")
    rows = np.concatenate([rows for _, rows, _ in results])
    with atomic_file(folder / INDEX) as file:
        file.write(encode_index(rows))
    manifest = Manifest(
        split=folder.resolve().name,
        tile_shape=shape,
        encoding="any",
        members=members,
        stride=None,
        config={"tile_pixels": tile_pixels, "color": color, "members": list(members)},
        index=index_entry(len(rows)),
        shards=tuple(shard for shard, _, _ in results),
        photos=None,
        degraded_psnr=0.0,
        versions=writer_versions(),
    )
    manifest.write(folder)
    return manifest


def check_file(path: Path) -> None:
    """Raises ShardError where it cannot be a shard whatever is in it: a pipe, a device, an unusable name."""
    try:
        check_name(path.name)
    except InvalidInput as error:
        raise ShardError(f"{path.parent}: {error}; rename it") from error
    if not path.is_file():
        raise ShardError(f"{path}: is no regular file")


def guess_members(paths: list[Path], clean: str, degraded: str) -> tuple[str, str]:
    """The names of the members as given, in lower case as webdataset has them, or the usual ones that are there."""
    found = next(filter(None, map(names_in, paths)), set())
    usual = [[f"{part}.{name}" for name in GUESSES if f"{part}.{name}" in found] for part in ("clean", "degraded")]
    if not all(given or names for given, names in zip((clean, degraded), usual, strict=True)) and found:
        raise ShardError(f"{paths[0].parent}: the members are called {', '.join(sorted(found)[:20])}; say which are "
                         "the pair: --clean NAME --degraded NAME")
    first, second = (names[0] if names else "" for names in usual)
    return (clean or first).lower(), (degraded or second).lower()


def index_shard(
    path: Path, members: tuple[str, str], tile_shape: tuple[int, ...]
) -> tuple[Shard, np.ndarray, list[str]]:
    """The manifest's entry of a shard, its rows of the index, and what is wrong with it."""
    content, rows, keys, problems = scan_tar(path, members)
    channels = 3 if len(tile_shape) == 3 else 1
    for key, (start, _, clean, clean_bytes, degraded, degraded_bytes, _) in zip(keys, rows.tolist(), strict=True):
        spans = ((start + clean, clean_bytes), (start + degraded, degraded_bytes))
        try:
            shapes = [decode_picture(content[first : first + size], channels).shape for first, size in spans]
        except (ValueError, MemoryError) as error:
            problems.append(f"{path}: {key}: {error}")
            continue
        if shapes[0] != shapes[1] or shapes[0][0] < tile_shape[0] or shapes[0][1] < tile_shape[1]:
            sizes = " and ".join(f"{width}x{height}" for height, width, *_ in shapes)
            problems.append(f"{path}: {key}: pictures of {sizes}; expected equal ones, {tile_shape[0]} pixels at least")
    return Shard(path.name, len(content), sha256_of(path), len(rows), hash_of_rows(rows)), rows, problems
