"""Damage to the files of a training: its run folder, its shards, its disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from srcnn.data.manifest import BLOCK_BYTES, MANIFEST, read_manifest
from srcnn.runtime.files import TEMPORARY_PREFIX
from srcnn.runtime.storage import Folder
from srcnn.tracking.history import METRICS
from srcnn.training import checkpoint

from .job import Job

FILLING_BYTES = (1 << 20, 1 << 12, 1)
NPY_LENGTH = 8  # where an npy file says, in two bytes, how long the rest of its header is


@dataclass(frozen=True)
class Context:
    """What a fault acts on.

    Attributes:
        random: decides all that the fault leaves open.
        disk: what holds the run folder; a small file system of its own, unless `limits_files`: then it is filled by a
            limit (RLIMIT_FSIZE) on what the training's processes may write.
        kept: a copy of the shards, from which a person repairs them.
    """

    job: Job
    random: Random
    disk: Path
    kept: Path
    limits_files: bool


def damaged(context: Context, how: str, path: Path) -> str:
    """Truncates a file, flips a bit of it, or removes it."""
    if how == "remove":
        path.unlink()
        return path.name
    size = path.stat().st_size
    if not size:
        return f"{path.name} was empty"
    place = context.random.randrange(size)
    if how == "truncate":
        os.truncate(path, place)
        return f"{path.name} to {place} of {size} bytes"
    return flipped(context, path, place)


def flipped(context: Context, path: Path, place: int) -> str:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1 << context.random.randrange(8)]))
    return f"{path.name}, byte {place}"


def damage_checkpoint(how: str, name: str, context: Context) -> str:
    """Killed, and its newest checkpoint is damaged; it has an older one."""
    job = context.job
    job.wait_for(lambda: job.saved() > (job.resumed_at() or 0), "a checkpoint")
    job.kill()
    checkpoint.clear_leftovers(job.run)  # half-written ones count for nothing, half-replaced ones are whole
    newest = checkpoint.step_folders(job.run)[-1]
    if how == "remove":
        shutil.rmtree(newest)
        return newest.name
    return f"{newest.name}/{damaged(context, how, newest / name)}"


def damage_file(how: str, name: str, context: Context) -> str:
    """Killed, and a file of the run folder is damaged."""
    context.job.kill()
    path = context.job.run / name
    return damaged(context, how, path) if os.path.lexists(path) else f"{name} was not there yet"


def damage_metrics(how: str, at_rest: bool, context: Context) -> str:
    """Of what it takes from a training that does not run nobody has a copy; the job takes a note."""
    job, path = context.job, context.job.run / METRICS
    if at_rest:
        job.kill()
    if not path.exists():
        return f"{METRICS} was not there yet"
    before = path.read_bytes().splitlines(keepends=True)
    detail = damaged(context, how, path)
    if at_rest:
        job.destroyed |= set(before) ^ set(path.read_bytes().splitlines(keepends=True))
    return detail


def leave_files(context: Context) -> str:
    """What kills leave at their worst moments, and other half files."""
    job = context.job
    job.kill()
    folder = job.run / "checkpoints"
    half = folder / f"{TEMPORARY_PREFIX}step-00000007"
    for place in (job.run / "report", half):
        place.mkdir(parents=True, exist_ok=True)
    for place, name in ((job.run, "a.json"), (job.run / "report", "b.png"), (folder, "c")):
        (place / f"{TEMPORARY_PREFIX}{name}").write_bytes(b"{")
    (half / checkpoint.TRAINING).write_bytes(b"PK")
    if not (folders := checkpoint.step_folders(job.run)):
        return "no checkpoint yet"
    replaced = folders[-1].with_name(f"{checkpoint.REPLACED_PREFIX}{folders[-1].name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if context.random.random() < 0.5:
        folders[-1].rename(replaced)
        return "the newest checkpoint half-replaced"
    shutil.copytree(folders[-1], replaced)
    return "the newest checkpoint replaced"


def leave_links(context: Context) -> str:
    """Which lead nowhere, in a circle, and to a checkpoint. (Out of the run folder they are refused.)"""
    job = context.job
    job.kill()
    folder = job.run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    targets = ("nowhere", "step-90000001", "step-00000000")
    for number, target in enumerate(targets):
        link = folder / f"step-9000000{number}"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return ""


def remove_newest(context: Context) -> str:
    """The newest checkpoint, while training goes on."""
    for newest in checkpoint.step_folders(context.job.run)[-1:]:
        shutil.rmtree(newest, ignore_errors=True)
        return newest.name
    return "no checkpoint yet"


def move_run(context: Context) -> str:
    """Away and back; what the training has made in its place meanwhile goes."""
    run, seconds = context.job.run, context.random.uniform(0.05, 1.5)
    away = run.with_name("away")
    run.rename(away)
    time.sleep(seconds)
    while not run.exists() or not run.samefile(away):
        with contextlib.suppress(OSError):
            away.rename(run)
            break
        with contextlib.suppress(OSError):
            run.rename(run.with_name(f"made-{time.monotonic_ns()}"))
    for made in run.parent.glob("made-*"):
        shutil.rmtree(made, ignore_errors=True)
    return f"{seconds:.1f} s"


def damage_shard(how: str, split: str, at_rest: bool, context: Context) -> str:
    """A flip hits a pixel; each is read again and again."""
    if at_rest:
        context.job.kill()
    manifest = read_manifest(Folder(context.job.shards / split))
    shard = context.random.choice(manifest.shards)
    path = context.job.shards / split / shard.name
    if how in ("truncate", "remove"):
        return f"{split}/{damaged(context, how, path)}"
    assert manifest.stride
    tile = manifest.stride // 2 * context.random.randrange(2 * shard.num_samples) + BLOCK_BYTES
    content = path.read_bytes()
    header = NPY_LENGTH + 2 + int.from_bytes(content[tile + NPY_LENGTH:][:2], "little")
    rows, columns = manifest.tile_shape[:2]
    return f"{split}/{flipped(context, path, tile + header + context.random.randrange(rows * columns))}"


def damage_manifest(how: str, context: Context) -> str:
    context.job.kill()
    return damaged(context, how, context.job.shards / "train" / MANIFEST)


def repair_shards(context: Context) -> None:
    """The original bytes, as a copy brings them."""
    for path in context.kept.rglob("*"):
        target = context.job.shards / path.relative_to(context.kept)
        if path.is_file() and not (target.exists() and target.read_bytes() == path.read_bytes()):
            shutil.copyfile(path, target.with_name("copied"))
            target.with_name("copied").replace(target)


def fill(context: Context) -> None:
    """The disk of the run folder takes no byte more."""
    if context.limits_files:
        context.job.limit_files(0)
        return
    with (context.disk / "filler").open("wb", buffering=0) as file:
        for size in FILLING_BYTES:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\xff" * size)


def free(context: Context) -> None:
    (context.disk / "filler").unlink(missing_ok=True)
    if context.limits_files:
        context.job.limit_files(-1)


def fill_for_a_while(context: Context) -> str:
    seconds = context.random.uniform(0.5, 3)
    fill(context)
    time.sleep(seconds)
    free(context)
    return f"{seconds:.1f} s"


def fill_and_kill(context: Context) -> str:
    seconds = context.random.uniform(0.2, 1.5)
    fill(context)
    time.sleep(seconds)
    context.job.kill()
    free(context)
    return f"after {seconds:.1f} s"


def fill_before_start(context: Context) -> str:
    context.job.kill()
    fill(context)
    return ""
