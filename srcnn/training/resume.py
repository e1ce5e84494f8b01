"""Saves and restores the state of a training: bit-exact, on any number of ranks."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderState
from srcnn.models.weights import load_model
from srcnn.runtime import files, signals
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.distributed import DistributedError, all_gather_json, broadcast_state, run_on_all_ranks
from srcnn.runtime.errors import UserError
from srcnn.runtime.run_folder import check_run_folder
from srcnn.runtime.settings import flat, plain, to_yaml
from srcnn.runtime.untrusted import read_json
from srcnn.training import checkpoint
from srcnn.training.components import Components
from srcnn.training.config import TrainConfig
from srcnn.training.optimizer import OPTIMIZERS, complete_state, group_settings

FORMAT = 2  # of the training state
IMMUTABLE_KEYS = ("model", "unet", "network", "initialization", "centred", "weights", "seed", "overfit_tiles",
                  "degradation", "optimizer.name")
DATA_KEYS = ("stream.", "shards", "run", "fresh")  # where the order and the data matter, the stream's state has them
JOB, MAX_JOB_BYTES = ".job", 1 << 20
LOCK_SECONDS = 60.0  # a killed training needs some to end
RETRY_SECONDS, LAST_SAVE_SECONDS = 5.0, 120.0  # how often, and how long, the last checkpoint of a run is tried
COUNTERS = ("step", "samples", "skipped_steps", "skipped_in_a_row", "logged_samples", "validated_samples", "best_step")
logger = logging.getLogger(__name__)


def resume(trainer: Components) -> None:
    """Acquires the run folder and restores its latest checkpoint, if there is one; all ranks call it together.

    Only the main process reads the checkpoint: the others receive it, and need not see the folder.

    Raises (on all ranks):
        DistributedError: the checkpoint is of another network, seed or data, or another training holds the folder.
    """
    group, is_main = trainer.group, trainer.accelerator.is_main_process
    launchers = all_gather_json(signals.launcher_id(), group)
    run_on_all_ranks(lambda: acquire_run_dir(trainer, launchers) if is_main else None, group)
    state = broadcast_state(run_on_all_ranks(lambda: load_latest(trainer) if is_main else None, group), group)
    if state is not None and not is_main:
        load_state(trainer, state)
    trainer.state.tracker_id = all_gather_json(trainer.state.tracker_id, group)[0]
    run_on_all_ranks(lambda: write_config(trainer.config) if is_main else None, group)


def write_config(config: TrainConfig) -> None:
    files.write_file(Path(config.run, "config.yaml"), to_yaml(saved_config(config)).encode())


def acquire_run_dir(trainer: Components, launchers: Sequence[str]) -> None:
    """Makes the run folder this process's while it lives, without half-written files; main process only.

    `launchers`: of all ranks, as `signals.launcher_id` has them.
    """
    config = trainer.config
    folder = Path(config.run).resolve()
    check_run_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = min(LOCK_SECONDS, 30 * config.timeout_minutes)  # the other ranks wait too
    lock = files.FolderLock(folder, seconds)
    if config.fresh and checkpoint.step_folders(folder):
        if is_restart(folder, launchers):
            logger.info("--fresh: %s was started by this job already and is continued", folder)
        else:
            kept = next(name for number in range(1, 10**6) if not (name := Path(f"{folder}.before-{number}")).exists())
            os.rename(folder, kept)
            logger.info("--fresh: moved %s to %s", folder, kept)
            folder.mkdir()
            lock = files.FolderLock(folder, seconds)
    files.write_json(folder / JOB, _job(launchers))
    (folder / "checkpoints").mkdir(exist_ok=True)
    checkpoint.clear_leftovers(folder)
    trainer.writer = checkpoint.AsyncCheckpointWriter(folder, config.keep_checkpoints, lock)


def is_restart(folder: Path, launchers: Sequence[str] = ()) -> bool:
    """Whether a launcher or scheduler, not a person, started this process, to go on with what is in the folder."""
    return is_same_job(folder, launchers) or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_same_job(folder: Path, launchers: Sequence[str] = ()) -> bool:
    """Whether this process's job trained into a folder before, and is not just running another command.

    A job may run several commands, an allocation of Slurm as well as a rendezvous of torchrun. It is the same command
    where a launcher is left of those before (it does not count it as a restart when a node joins), after another
    requeue of Slurm, and in a pod that Kubernetes replaces.
    """
    now, before = _job(launchers), {}
    with suppress(OSError, ValueError):
        before = read_json(folder / JOB, MAX_JOB_BYTES, follow=False)
    if not (now["id"] and isinstance(before, dict) and before.get("id") == now["id"]):
        return False
    is_pod = now["id"] == os.environ.get("KUBERNETES_JOB_UID")
    is_requeued = before.get("requeues") != now["requeues"]
    launchers_before = before.get("launchers")
    is_left = isinstance(launchers_before, list) and any(one in launchers_before for one in now["launchers"])
    return is_pod or is_requeued or is_left


def _job(launchers: Sequence[str]) -> dict[str, Any]:
    """The id of this process's job, kept over restarts, "" for none; how often Slurm requeued it; its launchers."""
    ids = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "KUBERNETES_JOB_UID", "SLURM_JOB_ID")]
    return {"id": next((one for one in ids if one not in ("", "none")), ""),
            "requeues": os.environ.get("SLURM_RESTART_COUNT", "0"), "launchers": sorted({*launchers} - {""})}


def load_latest(trainer: Components) -> dict[str, Any] | None:
    """Restores the latest whole checkpoint, notes which settings differ now, and returns what was loaded.

    Raises:
        UserError: it is of another training, or its content is not what a checkpoint holds.
    """
    config = trainer.config
    folder = checkpoint.latest(Path(config.run))
    if folder is None:
        return None
    state = checkpoint.load_training(folder)
    try:
        notes = check_resumable(config, state, stream_state(config, trainer.state.samples, trainer.dataset))
        load_state(trainer, state)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise UserError(f"{folder}: not the state of such a training: {type(error).__name__} {error}") from error
    for note in notes:
        logger.log(logging.WARNING if note.startswith("plugins.") else logging.INFO, "continuing with %s", note)
    if trainer.state.values:
        repair_best_link(trainer)
    return state


def repair_best_link(trainer: Components) -> None:
    """Makes the run folder's `best` what the state says it is: a kill may have come before that, or somebody else."""
    run = Path(trainer.config.run)
    folder = checkpoint.step_folder(run, trainer.state.best_step)
    if problem := checkpoint.find_corruption(folder):
        trainer.state.best_psnr = float("-inf")
        logger.warning("%s, the best so far: %s; the next validation replaces it", folder, problem)
    else:
        checkpoint.mark_best(run, folder, load_model(folder))


def check_resumable(config: TrainConfig, state: dict[str, Any], stream: LoaderState) -> list[str]:
    """The settings that differ from those `state` was saved with, and may.

    Raises:
        UserError: with both values, for a setting that may not differ.
    """
    if (found := state.get("format", 1)) != FORMAT:
        raise UserError(f"{config.run}: its checkpoints have format {found}, this srcnn reads {FORMAT}; "
                        "--fresh starts over and keeps them")
    saved, wanted = flat(state["config"]), flat(plain(asdict(saved_config(config))))
    saved = flat(plain(asdict(TrainConfig()))) | saved  # settings that are newer than the run
    saved |= {f"data.{key}": value for key, value in state["stream"].items()}
    wanted |= {f"data.{key}": value for key, value in asdict(stream).items()}
    # Settings of damages and networks have names of their own: those that are gone count too.
    gone = [key for key in saved if key.startswith(("degradation.", "network.", "loss.")) and key not in wanted]
    notes = []
    for key, value in (wanted | dict.fromkeys(gone)).items():
        if saved.get(key) == value or key in ("data.epoch", "data.consumed_samples"):
            continue
        if key.startswith(("data.", *IMMUTABLE_KEYS)):
            raise UserError(f"cannot resume {config.run}: it was started with {key} {saved.get(key)}, the config has "
                            f"{value}; use the old value, another folder (--run), or start over (--fresh)")
        if not key.startswith(DATA_KEYS):
            notes.append(f"{key} {value} instead of {saved.get(key)}")
    return notes


def load_state(trainer: Components, state: dict[str, Any]) -> None:
    """Puts a checkpoint's training state into the trainer; the optimizer's settings stay those of the config.

    Raises:
        UserError: tensors of other names or shapes, or values that no training has.
    """
    counters = {key: state[key] for key in COUNTERS}
    if any(type(value) is not int or value < 0 for value in counters.values()):
        raise UserError(f"counters {counters}: expected whole numbers from 0")
    network, average = state["network"], state["average"]
    load_weights(trainer.network, network)
    if trainer.average is not None:
        load_weights(trainer.average, network if average is None else average)
    groups = trainer.optimizer.state_dict()["param_groups"]
    for group, changed in zip(groups, state["optimizer"].get("changed", ()), strict=False):
        group.update(check_numbers({key: group[key] for key in changed}, changed))
    any_shape = OPTIMIZERS.is_own(trainer.config.optimizer.name)
    check_optimizer(trainer.optimizer, state["optimizer"]["state"], groups, any_shape)
    trainer.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    complete_state(trainer.optimizer)
    scaler = trainer.accelerator.scaler
    if scaler and state["scaler"]:
        scaler.load_state_dict(check_numbers(scaler.state_dict(), state["scaler"]))
    trainer.meter.load(state["meter"])
    for key, value in counters.items():
        setattr(trainer.state, key, value)
    trainer.state.saved_samples = trainer.state.samples
    trainer.state.best_psnr, trainer.state.tracker_id = float(state["best_psnr"]), checkpoint.tracker_id_of(state)
    trainer.state.values = {str(key): float(value) for key, value in state["values"].items()}


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Raises UserError, naming the tensor, unless names and shapes are the model's and all values are finite."""
    expected = model.state_dict()
    if set(tensors) != set(expected):
        raise UserError(f"weights named {', '.join(map(str, tensors))}, expected {', '.join(expected)}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, expected[name].shape)
    model.load_state_dict(tensors)


def check_optimizer(
    optimizer: Any, state: dict[int, dict[str, Any]], groups: list[dict[str, Any]], any_shape: bool = False
) -> None:
    """Raises UserError unless `state` holds finite numbers, or tensors like the parameters (or of `any_shape`, which an
    optimizer of a plugin may have), for these groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, values in state.items():
        shape = dict(zip(numbers, (parameter.shape for parameter in parameters), strict=True))[number]
        for name, value in values.items():
            if value is not None:
                tensor = torch.as_tensor(value)
                expected = tensor.shape if any_shape or tensor.ndim == 0 else shape
                _check_tensor(f"optimizer.{number}.{name}", tensor, expected)


def check_numbers(ours: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """`saved`, of a scaler or an optimizer's groups. Raises UserError unless it holds finite numbers of the kinds that
    `ours` does, under the same names.
    """
    kinds = {key: type(value) for key, value in ours.items()}
    if {key: type(value) for key, value in saved.items()} != kinds or not all(map(math.isfinite, saved.values())):
        raise UserError(f"{saved}: expected numbers like {ours}")
    return saved


def _check_tensor(name: str, tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise UserError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected floats {tuple(shape)}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds values that are not finite")


def stream_state(config: TrainConfig, samples: int, dataset: ShardDataset) -> LoaderState:
    """The position of the stream after so many samples."""
    order = str(config.stream.make_shuffle(config.seed, dataset))
    return LoaderState(config.seed, samples // dataset.num_samples, samples, dataset.manifest.hash(), order)


def saved_config(config: TrainConfig) -> TrainConfig:
    """The settings as they are written to files: to be used again, and without secrets."""
    shards, weights = without_credentials(config.shards), without_credentials(config.weights)
    return replace(config, fresh=False, shards=shards, weights=weights)


def checkpoint_overdue(trainer: Components) -> bool:
    """Whether the last checkpoint is too old by the main process's clock."""
    minutes = (time.monotonic() - trainer.state.saved_at) / 60
    return trainer.writer is not None and 0 < trainer.config.save_every_minutes < minutes


def save_and_wait(trainer: Components, retry_seconds: float = 0.0) -> None:
    """A checkpoint of the current state is on the disk when this returns; all ranks call it together.

    Raises:
        DistributedError: it cannot be written, not within `retry_seconds` or until a stop is requested.
    """
    state, group = trainer.state, trainer.group

    def wait() -> None:
        for error in trainer.writer.wait() if trainer.writer else ():
            raise error

    deadline, is_saved = time.monotonic() + retry_seconds, state.samples == state.saved_samples
    while True:
        try:
            run_on_all_ranks(wait, group)
            if is_saved:
                return
        except DistributedError as error:
            gives_up = is_saved and (time.monotonic() > deadline or signals.stop_requested() is not None)
            if any(all_gather_json(gives_up, group)):
                raise
            if is_saved and trainer.writer:
                logger.warning("the last checkpoint cannot be written, trying again: %s", error)
            time.sleep(RETRY_SECONDS if is_saved else 0)
        save_checkpoint(trainer)
        is_saved = True


def save_checkpoint(trainer: Components) -> None:
    """Begins to write the current state; all ranks call it together."""
    if trainer.pending is not None:
        raise RuntimeError("a checkpoint between a step and its outcome")
    sums = all_gather_json(trainer.meter.state(), trainer.group)
    trainer.state.saved_samples, trainer.state.saved_at = trainer.state.samples, time.monotonic()
    if trainer.writer:
        trainer.writer.submit(snapshot(trainer, sums))


def changed_settings(trainer: Components) -> list[dict[str, Any]]:
    """The settings of the optimizer's groups that have changed since the start: schedulefree keeps state there."""
    return [{key: value for key, value in group.items() if key in before and value != before[key]}
            for group, before in zip(group_settings(trainer.optimizer), trainer.optimizer_settings, strict=True)]


def snapshot(trainer: Components, sums: list[dict[str, Any]]) -> checkpoint.Snapshot:
    """All that continuing needs, copied; randomness comes from (seed, position) and needs nothing."""
    network = trainer.eval_network  # brings the average up to date
    state, scaler, average = trainer.state, trainer.accelerator.scaler, trainer.average
    training = checkpoint.detach_to_cpu({
        "format": FORMAT,
        **{key: getattr(state, key) for key in (*COUNTERS, "best_psnr", "values", "tracker_id")},
        "meter": sums,
        "stream": asdict(stream_state(trainer.config, state.samples, trainer.dataset)),
        "config": asdict(saved_config(trainer.config)),
        "network": trainer.network.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "optimizer": trainer.optimizer.state_dict() | {"changed": changed_settings(trainer)},
        "scaler": scaler.state_dict() if scaler else None,
    })
    about = {key: f"{value:.4f}" for key, value in state.values.items()} | {"samples": str(state.samples)}
    is_best = bool(state.values) and state.validated_samples == state.samples and state.best_step == state.step
    return checkpoint.Snapshot(state.step, network.without_centering(), training, about, is_best)
