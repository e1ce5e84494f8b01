"""How a run goes to the disk and comes back, as if it had never stopped: on any number of ranks, or not at all."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from srcnn import checkpoint, files, signals
from srcnn.config import flat, plain, to_yaml, without_credentials
from srcnn.dataset import ShardDataset
from srcnn.distributed import DistributedError, all_gather_objects, run_on_all_ranks
from srcnn.loader import StreamState
from srcnn.meter import Meter
from srcnn.optimizer import complete_state
from srcnn.state import Run, interval_elapsed
from srcnn.train_config import TrainConfig
from srcnn.weights_io import load_model

FORMAT = 2  # of the training state
IMMUTABLE_KEYS = ("model", "unet", "initialization", "centred", "weights", "seed", "overfit_tiles", "degradation",
           "optimizer.name")
DATA_KEYS = ("stream.", "shards", "run", "fresh")  # where the order and the data matter, the stream's state knows
JOB = ".job"
LOCK_SECONDS = 60.0  # a killed training needs some to go
AGAIN_SECONDS, LAST_SAVE_SECONDS = 5.0, 120.0  # how often, and how long, the last checkpoint of a run is tried
COUNTERS = ("step", "samples", "skipped_steps", "skipped_in_a_row", "logged_samples", "validated_samples",
            "best_step")
logger = logging.getLogger(__name__)


def resume(config: TrainConfig, run: Run, meter: Meter, reader: ShardDataset) -> None:
    """Takes hold of the run folder and of its latest checkpoint, if there is one; all ranks call it together.

    Raises (on all ranks):
        DistributedError: the checkpoint is of another network, seed or data, or the ranks do not all find it, or
            another training holds the folder.
    """
    is_main = run.accelerator.is_main_process
    run_on_all_ranks(lambda: acquire_run_dir(config, run) if is_main else None, run.group)
    run_on_all_ranks(lambda: load_latest(config, run, meter, reader), run.group)
    found, ids = zip(*all_gather_objects((run.samples, run.tracker_id), run.group), strict=True)
    run.tracker_id = ids[0]
    run_on_all_ranks(lambda: check_ranks_agree(config, list(found)), run.group)
    run_on_all_ranks(lambda: write_config(config) if is_main else None, run.group)


def write_config(config: TrainConfig) -> None:
    with files.atomic_file(Path(config.run, "config.yaml")) as file:
        file.write(to_yaml(saved_config(config)).encode())


def acquire_run_dir(config: TrainConfig, run: Run) -> None:
    """The main process's: the folder is there, is nobody else's while this process lives, and has no half files."""
    folder = Path(config.run).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = min(LOCK_SECONDS, 30 * config.timeout_minutes)  # the other ranks wait too
    lock = files.FolderLock(folder, seconds)
    if config.fresh and not is_restart(folder) and checkpoint.step_folders(folder):
        kept = next(name for number in range(1, 10**6) if not (name := Path(f"{folder}.before-{number}")).exists())
        os.rename(folder, kept)
        logger.info("begun anew; what was in %s is in %s", folder, kept)
        folder.mkdir()
        lock = files.FolderLock(folder, seconds)
    (folder / JOB).write_text(_job())
    (folder / "checkpoints").mkdir(exist_ok=True)
    checkpoint.clear_leftovers(folder)
    run.writer = checkpoint.AsyncCheckpointWriter(folder, config.keep_checkpoints, lock)


def is_restart(folder: Path) -> bool:
    """Whether a launcher or scheduler, not a person, began this process, to go on with what is in the folder.

    Launchers do not count it as a restart when a node joins; the job is the same then. Slurm's count says nothing: the
    job may have been requeued before it came here.
    """
    return is_same_job(folder) or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_same_job(folder: Path) -> bool:
    """Whether the job that this process is of was the last to train into a folder."""
    return (folder / JOB).is_file() and (folder / JOB).read_text() == _job() != ""


def _job() -> str:
    """What names the job that this process is of, also after a restart; "" where nothing does."""
    names = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "KUBERNETES_JOB_UID", "TORCHELASTIC_RUN_ID"))
    return next((name for name in names if name not in ("", "none")), "")


def load_latest(config: TrainConfig, run: Run, meter: Meter, reader: ShardDataset) -> None:
    """Puts the latest whole checkpoint into the run and the meter, and notes what is set otherwise now.

    Raises:
        ValueError: it is of another training, or its content is not what a checkpoint holds.
    """
    folder = checkpoint.latest(Path(config.run))
    if folder is None:
        return
    state = checkpoint.load_training(folder)
    try:
        notes = check_resumable(config, state, stream_state(config, run.samples, reader))
        load_state(run, meter, state)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{folder}: not the state of such a training: {type(error).__name__} {error}") from error
    if run.accelerator.is_main_process:
        for note in notes:
            logger.info("continued with %s", note)
        if run.values:
            repair_best_link(config, run)


def repair_best_link(config: TrainConfig, run: Run) -> None:
    """Makes the run folder's best what the state says it is: a kill may have come before that, or somebody else."""
    folder = checkpoint.step_folder(Path(config.run), run.best_step)
    if problem := checkpoint.find_corruption(folder):
        run.best_psnr = float("-inf")
        logger.warning("%s, the best so far: %s; the next validation takes its place", folder, problem)
    else:
        checkpoint.mark_best(Path(config.run), folder, load_model(folder))


def check_resumable(config: TrainConfig, state: dict[str, Any], stream: StreamState) -> list[str]:
    """What is set otherwise than when `state` was saved, and may be.

    Raises:
        ValueError: with both values, where the run would continue as another one.
    """
    if (found := state.get("format", 1)) != FORMAT:
        raise ValueError(f"{config.run}: its checkpoints have format {found}, this srcnn reads {FORMAT}; "
                         "--fresh begins anew and keeps them")
    saved, wanted = flat(state["config"]), flat(plain(asdict(saved_config(config))))
    saved = flat(plain(asdict(TrainConfig()))) | saved  # settings that are newer than the run
    saved |= {f"data.{key}": value for key, value in state["stream"].items()}
    wanted |= {f"data.{key}": value for key, value in asdict(stream).items()}
    # Settings of damages have names of their own: those that are gone count too.
    gone = [key for key in saved if key.startswith("degradation.") and key not in wanted]
    notes = []
    for key, value in (wanted | dict.fromkeys(gone)).items():
        if saved.get(key) == value or key in ("data.epoch", "data.consumed_samples"):
            continue
        if key.startswith(("data.", *IMMUTABLE_KEYS)):
            raise ValueError(f"{config.run} was begun with {key} {saved.get(key)}, not {value}; choose another run "
                             "folder (--run) or the old setting, or begin anew (--fresh)")
        if not key.startswith(DATA_KEYS):
            notes.append(f"{key} {value}, before {saved.get(key)}")
    return notes


def check_ranks_agree(config: TrainConfig, found: list[int]) -> None:
    """Raises ValueError where the ranks stand at different samples."""
    if len(set(found)) > 1:
        raise ValueError(f"{config.run}: the ranks find checkpoints after {found} tiles; put it where all nodes see it")


def load_state(run: Run, meter: Meter, state: dict[str, Any]) -> None:
    """Puts a checkpoint's training state into the run; the optimizer's settings stay those of the config.

    Raises:
        ValueError: tensors of other names or shapes, or values that no training has.
    """
    counters = {key: state[key] for key in COUNTERS}
    if any(type(value) is not int or value < 0 for value in counters.values()):
        raise ValueError(f"counters {counters}: expected whole numbers from 0")
    load_weights(run.network, state["network"])
    if run.average is not None:
        load_weights(run.average, state["network"] if state["average"] is None else state["average"])
    ours = run.optimizer.state_dict()["param_groups"]
    check_optimizer(run, state["optimizer"]["state"], ours)
    run.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": ours})
    complete_state(run.optimizer)
    if run.accelerator.scaler and state["scaler"]:
        run.accelerator.scaler.load_state_dict(check_scaler(run.accelerator.scaler.state_dict(), state["scaler"]))
    meter.load(state["meter"], run.accelerator.process_index, run.accelerator.num_processes)
    for key, value in counters.items():
        setattr(run, key, value)
    run.saved_samples = run.samples
    run.best_psnr, run.tracker_id = float(state["best_psnr"]), checkpoint.tracker_id_of(state)
    run.values = {str(key): float(value) for key, value in state["values"].items()}


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ValueError, naming the tensor, unless names and shapes are the model's and all values are finite."""
    expected = model.state_dict()
    if set(tensors) != set(expected):
        raise ValueError(f"weights named {', '.join(map(str, tensors))}, expected {', '.join(expected)}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, expected[name].shape)
    model.load_state_dict(tensors)


def check_optimizer(run: Run, state: dict[int, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Raises ValueError unless `state` holds finite numbers, or tensors like the parameters, for these groups."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, values in state.items():
        shape = dict(zip(numbers, (parameter.shape for parameter in parameters), strict=True))[number]
        for name, value in values.items():
            if value is not None:
                scalar = not isinstance(value, torch.Tensor) or value.ndim == 0
                _check_tensor(f"optimizer.{number}.{name}", torch.as_tensor(value), torch.Size() if scalar else shape)


def check_scaler(ours: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """`saved`. Raises ValueError unless it holds finite numbers of the kinds that `ours` does, under the same names."""
    kinds = {key: type(value) for key, value in ours.items()}
    if {key: type(value) for key, value in saved.items()} != kinds or not all(map(math.isfinite, saved.values())):
        raise ValueError(f"scaler {saved}: expected numbers like {ours}")
    return saved


def _check_tensor(name: str, tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected floats {tuple(shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds values that are not finite")


def stream_state(config: TrainConfig, samples: int, reader: ShardDataset) -> StreamState:
    """Where the stream stands after so many samples."""
    order = str(config.stream.order_of(config.seed, reader))
    return StreamState(config.seed, samples // reader.num_samples, samples, reader.manifest.hash(), order)


def saved_config(config: TrainConfig) -> TrainConfig:
    """The settings as they may be written down: to be used again, and without secrets."""
    shards, weights = without_credentials(config.shards), without_credentials(config.weights)
    return replace(config, fresh=False, shards=shards, weights=weights)


def save_due(config: TrainConfig, run: Run) -> bool:
    """Whether it is time for a checkpoint beside those of validations; at the very start it shows that it can be."""
    return run.saved_samples < 0 or interval_elapsed(config, run, config.save_every_samples, run.saved_samples)


def checkpoint_overdue(config: TrainConfig, run: Run) -> bool:
    """Whether the last checkpoint is too old by the main process's clock."""
    minutes = (time.monotonic() - run.saved_at) / 60
    return run.writer is not None and 0 < config.save_every_minutes < minutes


def save_now(config: TrainConfig, run: Run, meter: Meter, reader: ShardDataset, patience: float = 0.0) -> None:
    """A checkpoint of where the run stands is on the disk when this returns; all ranks call it together.

    Raises:
        DistributedError: it cannot be written, not for `patience` seconds or until this is told to stop.
    """

    def wait() -> None:
        for problem in run.writer.wait() if run.writer else ():
            raise problem

    deadline, is_saved = time.monotonic() + patience, run.samples == run.saved_samples
    while True:
        try:
            run_on_all_ranks(wait, run.group)
            if is_saved:
                return
        except DistributedError as problem:
            given_up = is_saved and (time.monotonic() > deadline or signals.stop_requested() is not None)
            if any(all_gather_objects(given_up, run.group)):
                raise
            if is_saved and run.writer:
                logger.warning("the last checkpoint cannot be written, tried again: %s", problem)
            time.sleep(AGAIN_SECONDS if is_saved else 0)
        save_checkpoint(config, run, meter, reader)
        is_saved = True


def save_checkpoint(config: TrainConfig, run: Run, meter: Meter, reader: ShardDataset) -> None:
    """Begins to write where the run stands; all ranks call it together."""
    assert run.queued is None, "a step that may yet be taken back"
    sums = all_gather_objects(meter.state(), run.group)
    run.saved_samples, run.saved_at = run.samples, time.monotonic()
    if run.writer:
        run.writer.submit(snapshot(config, run, sums, reader))


def snapshot(config: TrainConfig, run: Run, sums: list[dict[str, Any]], reader: ShardDataset) -> checkpoint.Snapshot:
    """All that continuing needs, copied; randomness comes from (seed, position) and needs nothing."""
    scaler = run.accelerator.scaler
    training = {
        "format": FORMAT,
        **{key: getattr(run, key) for key in COUNTERS},
        "best_psnr": run.best_psnr,
        "values": dict(run.values),
        "tracker_id": run.tracker_id,
        "meter": sums,
        "stream": asdict(stream_state(config, run.samples, reader)),
        "config": plain(asdict(saved_config(config))),
        "network": checkpoint.detach_to_cpu(run.network.state_dict()),
        "average": checkpoint.detach_to_cpu(run.average.state_dict()) if run.average is not None else None,
        "optimizer": checkpoint.detach_to_cpu(run.optimizer.state_dict()),
        "scaler": checkpoint.detach_to_cpu(scaler.state_dict()) if scaler else None,
    }
    about = {key: f"{value:.4f}" for key, value in run.values.items()} | {"samples": str(run.samples)}
    is_best = bool(run.values) and run.validated_samples == run.samples and run.best_step == run.step
    return checkpoint.Snapshot(run.step, run.result.without_centering().cpu(), training, about, is_best)
