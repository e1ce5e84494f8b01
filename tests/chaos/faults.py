"""What can happen to a training: each fault has a name, the moments it comes at, and what has to hold after it."""

from __future__ import annotations

import contextlib
import errno
import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, Signals
from typing import Literal

import psutil

from . import damage
from .damage import (
    Context,
    damage_checkpoint,
    damage_file,
    damage_manifest,
    damage_metrics,
    damage_shard,
    repair_shards,
)
from .job import BATCH_SIZE, SAVE_EVERY, SETTINGS, Job

Moment = Literal["start", "first second of the ranks", "training", "validation", "saving", "end"]
RUNNING: tuple[Moment, ...] = ("training", "training", "validation", "saving")
STARTING: tuple[Moment, ...] = ("start", "first second of the ranks")
ANY: tuple[Moment, ...] = (*RUNNING, *STARTING, "end")
INTERVAL = SAVE_EVERY // BATCH_SIZE  # steps from checkpoint to checkpoint
KILLED = 2 * INTERVAL  # steps lost at most: those since the last checkpoint, which may still have been on its way
DAMAGED = KILLED + INTERVAL  # and then the one before it is taken
DAY = 86_400
RENAME, FSYNC, HANG = 1, 2, -1  # as preload.c has them


@dataclass(frozen=True)
class Fault:
    """`inject` does it, and returns what was left to chance.

    Attributes:
        then: "ends": all processes end, and the same command goes on; "starts at once": that comes before they have;
            "goes on": the training itself does; "is refused": a start fails and names `mentions`, until `repair`;
            "may be refused": or goes on.
        most_lost: steps.
        mentions: what the training has to name in its log as it ends.
        is_preloaded: it is to run with the library of preload.c.
    """

    name: str
    inject: Callable[[Context], str]
    then: Literal["ends", "starts at once", "goes on", "is refused", "may be refused"] = "ends"
    moments: tuple[Moment, ...] = RUNNING
    most_lost: float = KILLED
    mentions: str = ""
    repair: Callable[[Context], None] = repair_shards
    is_preloaded: bool = False


def send(number: Signals, to: str, context: Context) -> str:
    """To the launcher, the tree, "a rank" or "rank N"."""
    if to == "launcher":
        context.job.signal(number)
    elif to == "tree":
        context.job.signal_tree(number)
    else:
        rank = context.random.randrange(context.job.num_ranks) if to == "a rank" else int(to[-1])
        if one := context.job.rank(rank):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        return f"rank {rank}"
    return ""


def send_twice(first: Signals, second: Signals, context: Context) -> str:
    """To the launcher, then to all."""
    pause = context.random.choice((0.0, 0.05, 0.3, 1.2))
    context.job.signal(first)
    time.sleep(pause)
    context.job.signal_tree(second)
    return f"{pause:g} s between"


def stop_for_a_while(to: str, context: Context) -> str:
    """Shorter than the ranks wait for each other."""
    seconds = context.random.uniform(0.5, 60 * SETTINGS["timeout_minutes"] / 5)
    job = context.job
    stopped = job.processes() if to == "tree" else [job.rank(context.random.randrange(job.num_ranks))]
    for act in (psutil.Process.suspend, psutil.Process.resume):
        for one in filter(None, stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                act(one)
        time.sleep(seconds if act is psutil.Process.suspend else 0)
    return f"{seconds:.1f} s"


def jump(sign: int, context: Context) -> str:
    """The time of day of launcher and ranks; what counts from the machine's start does not jump with it."""
    seconds = sign * context.random.choice((5, 3600, DAY, 365 * DAY, 9 * 365 * DAY))
    want(context.job, seconds)
    time.sleep(1)
    return f"{seconds:+d} s"


def want(job: Job, seconds: int = 0, call: int = 0, error: int = 0) -> None:
    """What preload.c does from now on."""
    with job.settings.with_name("wanted").open("r+b") as file:
        file.write(struct.pack("qii", seconds, call, error))  # in place: the processes have it in their memory


def preloaded(job: Job, library: Path) -> dict[str, str]:
    """The environment in which `want` has an effect; `library` is that of preload.c."""
    wanted = job.settings.with_name("wanted")
    wanted.write_bytes(struct.pack("qii", 0, 0, 0))
    return {"LD_PRELOAD": str(library), "CHAOS_PRELOAD": str(wanted)}


def fail_for_a_while(call: int, error: int, context: Context) -> str:
    """Every rename or fsync of the training; `HANG`: none returns."""
    seconds = context.random.uniform(0.5, 5)
    want(context.job, 0, call, error)
    time.sleep(seconds)
    want(context.job)
    return f"{seconds:.1f} s"


def hang_and_stop(context: Context) -> str:
    """A stop that cannot be followed; to the ranks alone, as the launcher would kill them soon."""
    want(context.job, 0, FSYNC, HANG)
    time.sleep(context.random.uniform(0, 1))
    for rank in context.job.ranks().values():
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(SIGTERM)
    return ""


def _checkpoint_faults() -> list[Fault]:
    return [
        Fault(f"{how} {name} of the newest checkpoint", partial(damage_checkpoint, how, name), most_lost=DAMAGED)
        for how in ("truncate", "flip a bit of")
        for name in ("model.safetensors", "training.pt", "files.json")
    ] + [Fault("remove the newest checkpoint", partial(damage_checkpoint, "remove", ""), most_lost=DAMAGED)]


def _file_faults() -> list[Fault]:
    return [
        Fault(f"{how} {name}", partial(damage_file, how, name))
        for how, name in (("truncate", "config.yaml"), ("flip a bit of", "config.yaml"), ("remove", "config.yaml"),
                          ("truncate", "checkpoint.pth"), ("flip a bit of", "checkpoint.pth"), ("remove", "best"))
    ] + [
        Fault("truncate metrics.jsonl", partial(damage_metrics, "truncate", True)),
        Fault("flip a bit of metrics.jsonl", partial(damage_metrics, "flip a bit of", True)),
        Fault("truncate metrics.jsonl of a running job", partial(damage_metrics, "truncate", False), "goes on"),
        Fault("remove metrics.jsonl of a running job", partial(damage_metrics, "remove", False), "goes on"),
        Fault("remove the newest checkpoint of a running job", damage.remove_newest, "goes on"),
        Fault("move the run folder away and back", damage.move_run, "goes on"),
        Fault("leave half-written files", damage.leave_files),
        Fault("leave links among the checkpoints", damage.leave_links),
    ]  # fmt: skip


def _shard_faults() -> list[Fault]:
    found = [
        Fault(f"{how} a {split} shard of a running job", partial(damage_shard, how, split, False), mentions=".tar")
        for how in ("truncate", "flip a bit of") for split in ("train", "val")
    ]  # fmt: skip
    found += [
        Fault(f"{how} a train shard", partial(damage_shard, how, "train", True), "is refused", mentions=".tar")
        for how in ("truncate", "flip a bit of", "remove")
    ]
    return found + [
        Fault("truncate the manifest", partial(damage_manifest, "truncate"), "is refused", mentions="manifest"),
        Fault("remove the manifest", partial(damage_manifest, "remove"), "is refused", mentions="manifest"),
        # Not every byte of it is used for training.
        Fault("flip a bit of the manifest", partial(damage_manifest, "flip a bit of"), "may be refused",
              mentions="manifest"),
    ]


FAULTS = [
    Fault("kill -9 rank 0", partial(send, SIGKILL, "rank 0"), moments=ANY),
    Fault("kill -9 rank 1", partial(send, SIGKILL, "rank 1"), moments=ANY),
    Fault("kill -9 the launcher", partial(send, SIGKILL, "launcher"), moments=ANY, most_lost=0),
    Fault("kill -9 the launcher, start at once", partial(send, SIGKILL, "launcher"), "starts at once", most_lost=0),
    Fault("kill -9 all", partial(send, SIGKILL, "tree"), moments=ANY),
    Fault("kill -9 all in the start", partial(send, SIGKILL, "tree"), moments=STARTING),
    Fault("SIGTERM to the launcher", partial(send, SIGTERM, "launcher"), moments=ANY, most_lost=0),
    Fault("SIGTERM to a rank", partial(send, SIGTERM, "a rank"), moments=ANY, most_lost=0),
    Fault("SIGTERM to all", partial(send, SIGTERM, "tree"), moments=ANY, most_lost=0),
    Fault("SIGUSR1 to a rank", partial(send, SIGUSR1, "a rank"), moments=ANY, most_lost=0),
    Fault("SIGINT to the launcher", partial(send, SIGINT, "launcher"), moments=ANY, most_lost=0),
    Fault("SIGTERM twice", partial(send_twice, SIGTERM, SIGTERM), moments=ANY),
    Fault("SIGTERM, then kill -9 all", partial(send_twice, SIGTERM, SIGKILL), moments=ANY),
    Fault("stop a rank for some seconds", partial(stop_for_a_while, "a rank"), "goes on", moments=(*RUNNING, "start")),
    Fault("stop all for some seconds", partial(stop_for_a_while, "tree"), "goes on", moments=(*RUNNING, "start")),
    Fault("stop a rank for good", partial(send, SIGSTOP, "a rank")),
    *_checkpoint_faults(),
    *_file_faults(),
    *_shard_faults(),
    Fault("fill the disk", damage.fill_for_a_while, "goes on"),
    Fault("fill the disk, kill -9 all", damage.fill_and_kill, most_lost=math.inf),
    Fault("start with a full disk", damage.fill_before_start, "may be refused", repair=damage.free),
    *(Fault(f"{name} in {where} for some seconds", partial(fail_for_a_while, call, error), "goes on", is_preloaded=True)
      for name, error in (("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC), ("no return", HANG))
      for where, call in (("rename", RENAME), ("fsync", FSYNC))),
    Fault("no return in fsync for good, SIGTERM to the ranks", hang_and_stop, repair=lambda context: want(context.job),
          is_preloaded=True),
    Fault("clock jumps forward", partial(jump, 1), "goes on", is_preloaded=True),
    Fault("clock jumps back", partial(jump, -1), "goes on", is_preloaded=True),
]
