"""`srcnn shards index DIR`: writes the index and manifest that training needs for shards of other programs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from shards.tar import member_names, scan_tar
from shards.workers import WorkerPool
from srcnn.commands.parser import CommandParser
from srcnn.data.index import INDEX, encode_index, hash_entries, index_file
from srcnn.data.manifest import MANIFEST, Manifest, Shard, ShardError, decode_picture, library_versions, read_manifest
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import sha256_of, write_file
from srcnn.runtime.parallel import num_cores
from srcnn.runtime.storage import Folder
from srcnn.runtime.untrusted import MAX_TILE_SIDE, InvalidInput, check_name

DESCRIPTION = """\
Writes the index and manifest that training needs beside WebDataset shards of other programs, whose samples hold a clean
and a degraded picture."""
EXAMPLES = "examples:\n  srcnn shards index data/pairs/train --clean hq.png --degraded lq.jpg"
PICTURE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")


def main(arguments: list[str], program: str) -> int:
    """Runs the command; returns its exit status: 0 if the shards were indexed, else 1."""
    parser = CommandParser(prog=program, description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with WebDataset shards (*.tar) of one split")
    parser.add_argument("--clean", default="", metavar="EXT",
                        help="file extension of the clean picture after the key, such as hq.png (default: clean.*)")
    parser.add_argument("--degraded", default="", metavar="EXT",
                        help="file extension of the degraded picture, such as lq.jpg (default: degraded.*)")
    parser.add_argument("--tile_pixels", type=int, default=128, metavar="N",
                        help="side of the tile that is cropped from each pair (default: 128)")
    parser.add_argument("--color", choices=("luma", "rgb"), default="luma",
                        help="channels of the tiles (default: luma)")
    parser.add_argument("--num_workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    try:
        manifest = index_folder(**vars(options))
    except (UserError, OSError) as error:
        print(f"shards index: {error}", file=sys.stderr)
        return 1
    shape = "x".join(map(str, manifest.tile_shape))
    print(f"{options.folder}: {manifest.num_samples} pairs in {len(manifest.shards)} shards, read as tiles of {shape}")
    return 0


def index_folder(
    folder: Path, clean: str = "", degraded: str = "", tile_pixels: int = 128, color: str = "luma", num_workers: int = 0
) -> Manifest:
    """Decodes and checks every pair in `folder`/*.tar, and writes index.npy and manifest.json beside the shards.

    Members may be PNG, JPEG, WebP or npy of 8 bits, grey or RGB, at least as large as a tile. `clean` and `degraded`
    are their file extensions, by default clean.EXT and degraded.EXT.

    Raises:
        FileNotFoundError: there are no shards.
        ShardError: some pairs cannot be used (up to 20 are named), or the shards were made by `python -m shards`.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.tar files here")
    if (folder / MANIFEST).is_file() and read_manifest(Folder(folder)).encoding != "any":
        raise ShardError(f"{folder}: these shards have a manifest and an index already")
    if not 1 <= tile_pixels <= MAX_TILE_SIDE:
        raise UserError(f"--tile_pixels {tile_pixels}: expected 1..{MAX_TILE_SIDE}")
    for path in paths:
        try:
            check_name(path.name)
        except InvalidInput as error:
            raise ShardError(f"{folder}: {error}; rename it") from error
        if not path.is_file():
            raise ShardError(f"{path}: is not a regular file; remove it")
    members = guess_members(paths, clean, degraded)
    shape = (tile_pixels, tile_pixels) if color == "luma" else (tile_pixels, tile_pixels, 3)
    work = partial(index_shard, members=members, tile_shape=shape)
    with WorkerPool(min(num_workers or num_cores(), len(paths))) as workers:
        results = workers.map_all(work, paths, "shards indexed", show_progress=True)
    problems = [problem for _, _, found in results for problem in found]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:20])
        raise ShardError(f"{folder}: {len(problems)} pairs or shards cannot be used:{lines}")
    entries = np.concatenate([entries for _, entries, _ in results])
    if not len(entries):
        raise ShardError(f"{folder}: the shards contain no pairs")
    write_file(folder / INDEX, encode_index(entries))
    manifest = Manifest(
        split=folder.resolve().name,
        tile_shape=shape,
        encoding="any",
        members=members,
        stride=None,
        config={"tile_pixels": tile_pixels, "color": color, "members": list(members)},
        index=index_file(len(entries)),
        shards=tuple(shard for shard, _, _ in results),
        photos=None,
        degraded_psnr=0.0,
        versions=library_versions(),
    )
    manifest.write(Folder(folder))
    return manifest


def guess_members(paths: list[Path], clean: str, degraded: str) -> tuple[str, str]:
    """The file extensions of the pair, in lower case as in webdataset: the given ones, or clean.EXT and degraded.EXT.

    Raises:
        ShardError: one is not given and not found.
    """
    found = next(filter(None, map(member_names, paths)), set())
    for name in (f"clean.{extension}" for extension in PICTURE_EXTENSIONS):
        clean = clean or (name if name in found else "")
    for name in (f"degraded.{extension}" for extension in PICTURE_EXTENSIONS):
        degraded = degraded or (name if name in found else "")
    if found and not (clean and degraded):
        raise ShardError(f"{paths[0].parent}: the samples have {', '.join(sorted(found)[:20])}; name the two pictures "
                         "with --clean EXT --degraded EXT")
    return clean.lower(), degraded.lower()


def index_shard(
    path: Path, members: tuple[str, str], tile_shape: tuple[int, ...]
) -> tuple[Shard, np.ndarray, list[str]]:
    """Decodes all pairs of a shard; returns (the manifest's record of it, its index entries, its problems)."""
    content, entries, keys, problems = scan_tar(path, members)
    channels = 3 if len(tile_shape) == 3 else 1
    for key, (start, _, clean, clean_bytes, degraded, degraded_bytes, _) in zip(keys, entries.tolist(), strict=True):
        spans = ((start + clean, clean_bytes), (start + degraded, degraded_bytes))
        try:
            shapes = [decode_picture(content[first : first + size], channels).shape for first, size in spans]
        except (ValueError, MemoryError) as error:
            problems.append(f"{path}: {key}: {error}")
            continue
        if shapes[0] != shapes[1] or shapes[0][0] < tile_shape[0] or shapes[0][1] < tile_shape[1]:
            sizes = " and ".join(f"{width}x{height}" for height, width, *_ in shapes)
            problems.append(f"{path}: {key}: pictures of {sizes}; expected equal ones, at least {tile_shape[0]} pixels")
    return Shard(path.name, len(content), sha256_of(path), len(entries), hash_entries(entries)), entries, problems
