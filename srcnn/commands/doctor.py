"""srcnn doctor --config FILE --shards DIR --run DIR [--ranks N] [--SETTING VALUE ...]

Checks what would stop a training with these settings, or make it another one than intended, before it is started. Takes
what `srcnn train` takes, --processes too, needs seconds and no GPU, and changes nothing. Each line is ok, a note, or a
PROBLEM with what to do. All checks are made whatever is found; the exit status is 1 where there is a problem.

examples:
  srcnn doctor --config train.yaml --shards data/shards --run runs/mine
  srcnn doctor --config train.yaml --shards s3://bucket/shards --ranks 16 --machines 2
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file

from srcnn.commands import doctor_machine as machine
from srcnn.commands import doctor_shards
from srcnn.commands.doctor_machine import Finding, note, ok, pluralize, problem
from srcnn.data.device_loader import LARGEST_SHARE, check_fits
from srcnn.data.loader import BATCHES_IN_USE
from srcnn.data.manifest import SPLITS
from srcnn.data.shuffle import UniformShuffle
from srcnn.models.base import make_network
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import LOCK, FolderLock
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.settings import parse
from srcnn.runtime.storage import MAX_OPEN_FILES
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.training import checkpoint
from srcnn.training.components import starting_network
from srcnn.training.config import TrainConfig
from srcnn.training.resume import check_resumable, is_same_job, stream_state
from srcnn.training.setup import training_device, unsupported_settings

RESPONSE_SECONDS = 5.0  # a server of shards that needs longer is a problem
FEW_STEPS = 10  # in an epoch
LAUNCHER_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU")  # `distributed_type` in files of `accelerate config`
OTHER_FILES = 128  # open files of a process besides shards


@dataclass(frozen=True)
class DoctorConfig(TrainConfig):
    """The settings of a training, and how it will be launched.

    Args:
        ranks: processes on all machines together; 0: WORLD_SIZE, else Slurm's number of tasks, else one for each GPU.
        machines: number of machines; 0: Slurm's number of nodes, else 1.
        port: port of the rendezvous on the first machine; 0: MASTER_PORT, else 29500, Accelerate's default.
        verify: read every byte of the shards instead of checking their sizes only.
    """

    COMMON = {"how the training will be launched, and what is checked": ("ranks", "machines", "port", "verify"),
              **TrainConfig.COMMON}

    ranks: int = 0
    machines: int = 0
    port: int = 0
    verify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.ranks, self.machines, self.port) < 0:
            raise UserError("ranks, machines and port cannot be negative; 0 takes them from the environment")


@dataclass(frozen=True)
class PlannedTraining:
    """What the checks are given: the settings, the processes, the device of this machine, and the shards, opened."""

    config: TrainConfig
    ranks: int
    machines: int
    port: int
    device: torch.device
    splits: dict[str, doctor_shards.Split]

    @property
    def ranks_here(self) -> int:
        """Ranks on one machine."""
        return -(-self.ranks // self.machines)


def doctor(config: DoctorConfig) -> dict[str, list[Finding]]:
    """The findings about a training with these settings, by subject.

    The checks call the functions that a training calls at its start: what these raise is a problem.
    """
    planned = plan_training(config)
    found: dict[str, list[Finding]] = {}
    for subject, checks in CHECKS.items():
        findings = found.setdefault(subject, [])
        for check in checks:
            try:
                for finding in check(planned):
                    findings.append(finding)
            except (OSError, ValueError) as error:
                findings.append(problem(str(error)))
            except Exception as error:  # the other checks are made all the same
                findings.append(problem(f"{type(error).__name__}: {error}"))
        found[subject] = list(dict.fromkeys(findings))  # two checks of a subject may fail by the same
    return found


def plan_training(config: DoctorConfig) -> PlannedTraining:
    """Finds out where the training will run, and opens its shards, with short timeouts and no cache."""
    access = config.stream.access
    seconds = min(RESPONSE_SECONDS, access.give_up_seconds)
    access = replace(access, give_up_seconds=seconds, timeout_seconds=min(seconds, access.timeout_seconds), cache="")
    training = TrainConfig(**{field.name: getattr(config, field.name) for field in fields(TrainConfig)})
    quick = replace(training, stream=replace(training.stream, access=access))
    names = ("train",) if training.overfit_tiles else SPLITS
    splits = {split: doctor_shards.inspect_split(quick, split, config.verify) for split in names}
    device = training_device()
    num_gpus = 0 if device.type == "cpu" else torch.accelerator.device_count()
    machines = config.machines or _env_int("GROUP_WORLD_SIZE") or _env_int("SLURM_JOB_NUM_NODES") or 1
    ranks = config.ranks or _env_int("WORLD_SIZE") or max(1, _env_int("SLURM_NTASKS"), machines * num_gpus)
    port = config.port or _env_int("MASTER_PORT") or 29500
    return PlannedTraining(training, ranks, machines, port, device, splits)


def _env_int(name: str) -> int:
    """The number in an environment variable; 0 where there is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def check_shards(planned: PlannedTraining) -> Iterator[Finding]:
    for name, split in planned.splits.items():
        yield from doctor_shards.check_split(planned.config, name, split)
    yield from doctor_shards.check_cache(planned.config, planned.splits, planned.machines)


def check_network(planned: PlannedTraining) -> Iterator[Finding]:
    network = starting_network(planned.config, torch.device("cpu"))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    text = f"{network.name}, {num_parameters:,} parameters; a pixel depends on {network.receptive_radius} to each side"
    yield ok(f"{text}; starts from {planned.config.weights or 'random weights'}")


def check_batches(planned: PlannedTraining) -> Iterator[Finding]:
    """Whether batch size, number of ranks, number of samples and intervals fit each other."""
    config, ranks, size = planned.config, planned.ranks, planned.config.global_batch_size(planned.ranks)
    num_steps = -(-config.total_samples // size)
    where = f"{pluralize(ranks, 'rank')} on {pluralize(planned.machines, 'machine')}"
    yield ok(f"{where}, batches of {size}, {num_steps:,} steps in all")
    if size % ranks:
        yield note(f"batch_size {size} is not a multiple of {ranks} ranks: some wait for the others at every step")
    if dataset := planned.splits["train"].dataset:
        num_samples, lanes = dataset.num_samples, config.stream.make_shuffle(config.seed, dataset).num_lanes
        if size > num_samples:
            yield problem(f"a batch of {size} is larger than the training split of {num_samples} tiles",
                          "lower batch_size or batch_size_per_process, use fewer ranks, or make shards of more photos")
        elif size * FEW_STEPS > num_samples and not config.overfit_tiles:
            yield note(f"an epoch of {num_samples} tiles is only {num_samples / size:.1f} steps of {size}")
        if config.total_samples < num_samples:
            yield note(f"total_samples {config.total_samples} is less than an epoch of {num_samples} tiles")
        if ranks > 1 and config.stream.resident == "no" and size % lanes and lanes % size:
            yield note(f"batches of {size} and {lanes} lanes: ranks share lanes, and read runs several times",
                       "set stream.num_lanes to a multiple or a divisor of the batch")
    if "val" in planned.splits and (val := planned.splits["val"].dataset) and val.num_samples < ranks:
        yield note(f"{val.num_samples} validation pairs for {ranks} ranks: some validate nothing")
    for key in ("log_every_samples", "validate_every_samples"):
        every = getattr(config, key)
        if every > config.total_samples:
            yield note(f"{key} {every} is more than total_samples {config.total_samples}: done at the end only")
        elif every < size:
            yield note(f"{key} {every} is less than a batch of {size}: done at every step", "raise it")
    if (warmup := config.optimizer.warmup_samples) >= config.total_samples:
        yield note(f"optimizer.warmup_samples {warmup} does not end within total_samples {config.total_samples}")


def check_memory(planned: PlannedTraining) -> Iterator[Finding]:
    """Whether the tiles that a machine's ranks hold fit its memory, and their open files the limit."""
    dataset, stream = planned.splits["train"].dataset, planned.config.stream
    if dataset is None:
        yield note("not checked, as the training split could not be opened")
        return
    num_shards = [len(split.manifest.shards) for split in planned.splits.values() if split.manifest]
    files = sum(min(MAX_OPEN_FILES, number) for number in num_shards)
    yield from machine.check_open_files(
        OTHER_FILES + (files if dataset.is_local else 2 * stream.access.num_connections))
    if stream.resident != "no":
        device = planned.device if stream.resident == "device" else torch.device("cpu")
        check_fits(dataset, device, planned.ranks_here)
        yield ok(f"all {dataset.num_samples:,} training samples fit ({stream.resident})")
        return
    size = planned.config.batch_size or planned.config.batch_size_per_process * planned.ranks
    num_pairs = size * (stream.prefetch_batches + BATCHES_IN_USE)
    if not isinstance(stream.make_shuffle(planned.config.seed, dataset), UniformShuffle):
        num_pairs += stream.window_samples + stream.lead_samples + size
    pair_bytes = dataset.num_members * torch.Size(dataset.tile_shape).numel()
    needed, free = num_pairs * pair_bytes / planned.machines, psutil.virtual_memory().available
    text = f"{needed / 1e9:.2f} GB of tiles in flight on a machine, {free / 1e9:.1f} GB free"
    if needed > LARGEST_SHARE * free:
        yield problem(text, "lower stream.window_samples, stream.lead_samples or stream.prefetch_batches")
    else:
        yield ok(text)


def check_run_dir(planned: PlannedTraining) -> Iterator[Finding]:
    """Whether the run folder can be written, has room, and is not used by another training."""
    run = Path(planned.config.run)
    check_run_folder(run)
    num_checkpoints = planned.config.keep_checkpoints + 3  # the best, the one being written, the one being replaced
    needed_bytes, needed_files = num_checkpoints * checkpoint_bytes(planned.config), 10 * num_checkpoints
    for folder in (run, run / "checkpoints") if (run / "checkpoints").is_dir() else (run,):
        yield from machine.check_folder(folder, needed_bytes, needed_files)
    if (run / LOCK).is_file():
        try:
            FolderLock(run, seconds=0)
        except BlockingIOError:
            if is_same_job(run):
                yield note(f"{run}: earlier processes of this job still write here; the ranks will wait for them")
            else:
                yield problem(f"{run}: another training is writing here", "stop it, or choose another --run")


def checkpoint_bytes(config: TrainConfig) -> int:
    """An upper estimate of the size of a checkpoint on the disk, with the weights beside it."""
    model = make_network(config.architecture)
    moments = 1 if config.optimizer.name == "sgd" else 2
    num_copies = 3 + moments + bool(config.optimizer.average_halflife_samples)
    return num_copies * 4 * sum(parameter.numel() for parameter in model.parameters()) + (1 << 16)


def check_resume(planned: PlannedTraining) -> Iterator[Finding]:
    """Whether the training can resume from the checkpoints in the run folder."""
    config, run = planned.config, Path(planned.config.run)
    check_run_folder(run)
    folders = checkpoint.step_folders(run)
    if not folders or config.fresh:
        yield ok(f"{run}: {'is kept under another name for a new run (--fresh)' if folders else 'a new run'}")
        return
    folder, dataset = checkpoint.latest(run), planned.splits["train"].dataset
    if folder is None or dataset is None:
        yield note(f"{run}: holds a run; whether it can be resumed is not known without its shards")
        return
    try:
        state = checkpoint.load_training(folder)
        changed = check_resumable(config, state, stream_state(config, 0, dataset))
        samples = state["samples"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: cannot be resumed: {type(error).__name__} {error}") from error
    if corrupt := [other.name for other in folders if other.name > folder.name]:
        yield note(f"{run}: damaged checkpoints, to be skipped: {', '.join(corrupt)}")
    if samples >= config.total_samples:
        yield note(f"{run}: is finished, after {samples:,} tiles", "raise total_samples, or --fresh, or another --run")
    else:
        yield ok(f"{run}: resumes after {samples:,} of {config.total_samples:,} tiles")
    yield from (note(f"{run}: resumes with {text}") for text in changed)


def check_launcher(planned: PlannedTraining) -> Iterator[Finding]:
    """Whether this training supports what the environment wants, and what `accelerate launch` does by default."""
    problems = unsupported_settings()
    yield from map(problem, problems)
    path = Path(default_config_file)
    if not path.is_file():
        yield from () if problems else (ok("nothing in the environment changes the training"),)
        return
    settings = read_yaml(path)
    kind = str(settings.get("distributed_type", "NO"))
    if kind not in LAUNCHER_TYPES:
        yield note(f"{path}, which `accelerate launch` takes if given no other file: distributed_type {kind} is not "
                   "supported", "launch with --config_file and a file of configs/accelerate")
    elif not problems:
        yield ok(f"`accelerate launch` takes {path} where it is given no other --config_file")


CHECKS: dict[str, tuple[Callable[[PlannedTraining], Iterator[Finding]], ...]] = {
    "packages": (lambda planned: machine.check_packages(),),
    "shards": (
        check_shards,
        lambda planned: doctor_shards.check_refused(planned.config, planned.splits),
        lambda planned: doctor_shards.check_both_splits(planned.config, planned.splits),
    ),
    "network": (check_network,),
    "batches": (check_batches,),
    "memory": (check_memory,),
    "run folder": (check_run_dir, check_resume),
    "launcher": (check_launcher,),
    "device": (lambda planned: machine.check_device(
        planned.device, planned.ranks_here, planned.config.compile_mode is not None),),
    "precision": (lambda planned: machine.check_precision(
        planned.config.mixed_precision, planned.config.architecture, planned.device),),
    "rendezvous": (lambda planned: machine.check_rendezvous(planned.ranks, planned.machines, planned.port),),
    "trackers": (lambda planned: machine.check_trackers(planned.config.trackers, planned.config.run),),
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the findings; returns the exit status: 1 where there is a problem."""
    logging.getLogger("srcnn").addHandler(logging.NullHandler())  # the findings say what is logged as a warning
    found = doctor(parse(DoctorConfig, "srcnn doctor", __doc__ or "", arguments))
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    for subject, findings in found.items():
        print(subject)
        for level, text, hint in findings:
            line = f"  {marks[level]} {text}{f' -> {hint}' if hint else ''}"
            print(without_credentials(line.replace("\n", " ")))
    levels = [finding.level for findings in found.values() for finding in findings]
    print(f"{pluralize(levels.count('problem'), 'problem')}, {pluralize(levels.count('note'), 'note')}")
    return int("problem" in levels)
