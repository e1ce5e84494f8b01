"""srcnn doctor --config configs/train.yaml [--key value ...] [--ranks N]

Looks for what would stop a training of these settings, or make it another one than wanted, before it is started. Takes
the keys of launch/train.py, needs seconds and no GPU, and changes nothing. Each line is ok, a note, or a PROBLEM with
what to do; everything is looked at whatever is found, and the exit status is 1 where there is a problem.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import psutil
import torch

from srcnn.commands import doctor_machine as machine
from srcnn.commands.doctor_machine import Finding, note, ok, pluralize, problem
from srcnn.commands.doctor_shards import Split, check_apart, check_cache, check_split, inspect_split
from srcnn.data.dataset import ShardDataset
from srcnn.data.device_loader import LARGEST_SHARE, check_fits
from srcnn.data.loader import BATCHES_IN_USE
from srcnn.data.manifest import SPLITS
from srcnn.data.shuffle import UniformShuffle
from srcnn.models.device import device_here
from srcnn.models.weights import load_model, make_network
from srcnn.runtime.files import LOCK, FolderLock
from srcnn.runtime.settings import parse, without_credentials
from srcnn.runtime.storage import MAX_OPEN_FILES
from srcnn.training import checkpoint
from srcnn.training.config import TrainConfig
from srcnn.training.resume import check_resumable, is_same_job, stream_state

ANSWER_SECONDS = 5.0  # that a server of shards may take
FEW_STEPS = 10  # an epoch
OTHER_FILES = 128  # a process has open


@dataclass(frozen=True)
class DoctorConfig(TrainConfig):
    """A training run's settings, and how it is to be launched.

    Args:
        ranks: processes on all machines together; 0: WORLD_SIZE, or what Slurm says, or one for each GPU here.
        machines: how many of them; 0: what Slurm says, or 1.
        port: where the ranks meet on the first machine; 0: MASTER_PORT, or 29500 as Accelerate.
        verify: read every byte of the shards; otherwise only their sizes are looked at.
    """

    ranks: int = 0
    machines: int = 0
    port: int = 0
    verify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.ranks, self.machines, self.port) < 0:
            raise ValueError("ranks, machines and port cannot be negative; 0: as the environment says")


@dataclass(frozen=True)
class Job:
    """A training that is to be started, and what there is of its shards."""

    config: TrainConfig
    ranks: int
    machines: int
    port: int
    device: torch.device
    splits: dict[str, Split]

    @property
    def ranks_here(self) -> int:
        """Ranks on one machine."""
        return -(-self.ranks // self.machines)

    @property
    def train(self) -> ShardDataset | None:
        return self.splits["train"].reader


def doctor(config: DoctorConfig) -> dict[str, list[Finding]]:
    """What is to be said about a training with these settings, by subject.

    What a check calls is what a training calls at its start: what that raises is a problem.
    """
    job = plan_job(config)
    found: dict[str, list[Finding]] = {}
    for subject, checks in CHECKS.items():
        findings = found.setdefault(subject, [])
        for check in checks:
            try:
                for finding in check(job):
                    findings.append(finding)
            except (OSError, ValueError) as error:
                findings.append(problem(str(error)))
            except Exception as error:  # whatever it is, the other checks are made
                findings.append(problem(f"{type(error).__name__}: {error}"))
    return found


def plan_job(config: DoctorConfig) -> Job:
    """The training meant: the settings alone, where it is to run, and its shards, opened."""
    access = config.stream.access
    patience = min(ANSWER_SECONDS, access.give_up_seconds)
    access = replace(access, give_up_seconds=patience, timeout_seconds=min(patience, access.timeout_seconds), cache="")
    job = TrainConfig(**{field.name: getattr(config, field.name) for field in fields(TrainConfig)})
    quick = replace(job, stream=replace(job.stream, access=access))
    names = ("train",) if job.overfit_tiles else SPLITS
    splits = {split: inspect_split(quick, split, config.verify) for split in names}
    device = device_here()
    num_gpus = 0 if device.type == "cpu" else torch.accelerator.device_count()
    machines = config.machines or _env_int("GROUP_WORLD_SIZE") or _env_int("SLURM_JOB_NUM_NODES") or 1
    ranks = config.ranks or _env_int("WORLD_SIZE") or max(1, _env_int("SLURM_NTASKS"), machines * num_gpus)
    return Job(job, ranks, machines, config.port or _env_int("MASTER_PORT") or 29500, device, splits)


def _env_int(name: str) -> int:
    """A number of the environment; 0 where it is not there."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def check_shards(job: Job) -> Iterator[Finding]:
    for name, split in job.splits.items():
        yield from check_split(job.config, name, split)
    yield from check_cache(job.config, job.splits, job.machines)


def check_both_splits(job: Job) -> Iterator[Finding]:
    yield from check_apart(job.config, job.splits)


def check_network(job: Job) -> Iterator[Finding]:
    network = make_network(job.config.network, job.config.centred)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    radius = network.receptive_radius
    yield ok(f"{network.name}, {num_parameters:,} parameters; a pixel depends on {radius} to each side")


def check_weights(job: Job) -> Iterator[Finding]:
    """Whether the weights to start from are the network's."""
    if weights := job.config.weights:
        try:
            make_network(job.config.network, job.config.centred).load_without_centering(load_model(weights))
            yield ok(f"starts from {weights}")
        except (OSError, ValueError) as error:
            yield problem(f"weights {weights}: {error}", "take others, or set model or unet to their network")


def check_batches(job: Job) -> Iterator[Finding]:
    """Ranks and batch against the number of samples, and against the intervals."""
    config, ranks, size = job.config, job.ranks, job.config.global_batch_size(job.ranks)
    if size % ranks:
        yield note(f"batch_size {size} is no multiple of {ranks} ranks: some wait for the others at every step")
    if job.train:
        yield from _check_epoch(config, job.train.num_samples, size)
        lanes = config.stream.make_shuffle(config.seed, job.train).num_lanes
        if ranks > 1 and config.stream.resident == "no" and size % lanes and lanes % size:
            yield note(f"{size} tiles a step, {lanes} lanes: ranks share lanes, and read runs several times",
                       "set stream.num_lanes so that one is a multiple of the other")
    if "val" in job.splits and (val := job.splits["val"].reader) and val.num_samples < ranks:
        yield note(f"{val.num_samples} validation pairs for {ranks} ranks: some validate nothing")
    where = f"{pluralize(ranks, 'rank')} on {pluralize(job.machines, 'machine')}"
    yield ok(f"{where}, {size} tiles a step, {-(-config.total_samples // size):,} steps in all")
    for key in ("log_every_samples", "validate_every_samples"):
        every = getattr(config, key)
        if every > config.total_samples:
            yield note(f"{key} {every} is more than total_samples {config.total_samples}: done at the end only")
        elif every < size:
            yield note(f"{key} {every} is less than the {size} tiles of a step: done at every step", "raise it")
    if config.optimizer.warmup_samples >= config.total_samples:
        warmup = f"optimizer.warmup_samples {config.optimizer.warmup_samples}"
        yield note(f"{warmup} does not end within total_samples {config.total_samples}", "lower it")


def _check_epoch(config: TrainConfig, num_samples: int, size: int) -> Iterator[Finding]:
    if size > num_samples:
        yield problem(f"a step takes {size} tiles, the training split has {num_samples}",
                      "lower batch_size or batch_size_per_process, take fewer ranks, or make shards of more photos")
    elif size * FEW_STEPS > num_samples and not config.overfit_tiles:
        yield note(f"an epoch of {num_samples} tiles is {num_samples / size:.1f} steps of {size}", "smaller batches?")
    if config.total_samples < num_samples:
        yield note(f"total_samples {config.total_samples} is less than an epoch of {num_samples} tiles")


def check_memory(job: Job) -> Iterator[Finding]:
    """Whether what a machine's ranks keep of the shards fits its memory, and their open files its limit."""
    reader, stream = job.train, job.config.stream
    if reader is None:
        yield note("not looked at, for want of shards")
        return
    local = sum(min(MAX_OPEN_FILES, len(split.manifest.shards)) for split in job.splits.values() if split.manifest)
    yield from machine.check_open_files(OTHER_FILES + (local if reader.is_local else 2 * stream.access.num_connections))
    if stream.resident != "no":
        check_fits(reader, job.device if stream.resident == "device" else torch.device("cpu"), job.ranks_here)
        yield ok(f"all {reader.num_samples:,} training samples fit ({stream.resident})")
        return
    size = job.config.batch_size or job.config.batch_size_per_process * job.ranks
    num_pairs = size * (stream.prefetch_batches + BATCHES_IN_USE)
    if not isinstance(stream.make_shuffle(job.config.seed, reader), UniformShuffle):
        num_pairs += stream.window_samples + stream.lead_samples + size
    pair_bytes = reader.num_members * torch.Size(reader.tile_shape).numel()
    needed, free = num_pairs * pair_bytes / job.machines, psutil.virtual_memory().available
    amount = f"{needed / 1e9:.2f} GB of tiles in flight on a machine, {free / 1e9:.1f} GB free"
    if needed > LARGEST_SHARE * free:
        yield problem(amount, "lower stream.window_samples, stream.lead_samples or stream.prefetch_batches")
    else:
        yield ok(amount)


def check_folders(job: Job) -> Iterator[Finding]:
    """Whether the run folder can be written and has room, and whose it is."""
    run, num_kept = Path(job.config.run), job.config.keep_checkpoints + 3  # the best, one being written, one replaced
    for folder in (run, run / "checkpoints") if (run / "checkpoints").is_dir() else (run,):
        yield from machine.check_folder(folder, num_kept * checkpoint_bytes(job.config), 10 * num_kept)
    if (run / LOCK).is_file():
        try:
            FolderLock(run, seconds=0)
        except BlockingIOError:
            if is_same_job(run):
                yield note(f"{run}: other processes of this job still write here; the ranks will wait for them")
            else:
                yield problem(f"{run}: another training is writing here", "stop it, or choose another --run")


def checkpoint_bytes(config: TrainConfig) -> int:
    """About what a checkpoint takes on the disk, with the weights beside it."""
    model = make_network(config.network)
    moments = 1 if config.optimizer.name == "sgd" else 2
    num_copies = 3 + moments + bool(config.optimizer.average_halflife_samples)
    return num_copies * 4 * sum(parameter.numel() for parameter in model.parameters()) + (1 << 16)


def check_resume(job: Job) -> Iterator[Finding]:
    """Whether the training would continue what is in the run folder."""
    config, run = job.config, Path(job.config.run)
    folders = checkpoint.step_folders(run)
    if not folders or config.fresh:
        yield ok(f"{run}: {'is put aside for a new run (--fresh)' if folders else 'a new run'}")
        return
    try:
        folder = checkpoint.latest(run)
        if folder is None or job.train is None:
            yield note(f"{run}: holds a run; without shards it is not known whether these settings continue it")
            return
        state = checkpoint.load_training(folder)
        changed = check_resumable(config, state, stream_state(config, 0, job.train))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run}: cannot be continued: {error}") from error
    if passed_over := [other.name for other in folders if other.name > folder.name]:
        yield note(f"{run}: damaged and passed over: {', '.join(passed_over)}")
    samples = state["samples"]
    if samples >= config.total_samples:
        yield note(f"{run}: is done, {samples:,} tiles were seen", "raise total_samples, or --fresh, or another --run")
    else:
        yield ok(f"{run}: is continued after {samples:,} of {config.total_samples:,} tiles")
    yield from (note(f"{run}: continued with {text}") for text in changed)


CHECKS: dict[str, tuple[Callable[[Job], Iterator[Finding]], ...]] = {
    "packages": (lambda job: machine.check_versions("srcnn"),),
    "shards": (check_shards, check_both_splits),
    "network": (check_network, check_weights),
    "batches": (check_batches,),
    "memory": (check_memory,),
    "run folder": (check_folders, check_resume),
    "device": (lambda job: machine.check_device(job.device, job.ranks_here, job.config.compile_mode is not None),),
    "precision": (lambda job: machine.check_precision(job.config.mixed_precision, job.config.network, job.device),),
    "rendezvous": (lambda job: machine.check_rendezvous(job.ranks, job.machines, job.port),),
    "trackers": (lambda job: machine.check_trackers(job.config.trackers, job.config.run),),
}


def main(arguments: list[str] | None = None) -> int:
    """Prints what `doctor` finds; the exit status: 1 where something is a problem."""
    logging.getLogger("srcnn").addHandler(logging.NullHandler())  # what is warned of is among the findings
    found = doctor(parse(DoctorConfig, "srcnn doctor", __doc__ or "", arguments))
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    for subject, findings in found.items():
        print(subject)
        for level, what, hint in findings:
            line = f"  {marks[level]} {what}{f' -> {hint}' if hint else ''}"
            print(without_credentials(line.replace("\n", " ")))
    levels = [finding.level for findings in found.values() for finding in findings]
    print(f"{pluralize(levels.count('problem'), 'problem')}, {pluralize(levels.count('note'), 'note')}")
    return int("problem" in levels)
