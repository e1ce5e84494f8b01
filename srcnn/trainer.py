"""Training: `train(config)` reads as a table of contents; a step (srcnn/step.py) can be taken alone."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from srcnn import signals
from srcnn.config import plain
from srcnn.dataset import ShardDataset
from srcnn.device_loader import device_batches
from srcnn.distributed import DistributedError, all_gather_objects, run_on_all_ranks
from srcnn.jpeg_quality import CONDITION_SIZE
from srcnn.loader import Batch
from srcnn.meter import Meter
from srcnn.queued import Queued
from srcnn.report import pair_rows, write_report
from srcnn.resume import (
    LAST_SAVE_SECONDS,
    checkpoint_overdue,
    resume,
    save_checkpoint,
    save_due,
    save_now,
    saved_config,
)
from srcnn.run_log import Tracking
from srcnn.shuffle import BatchPlan
from srcnn.signals import StopRequested
from srcnn.skipped import report_skipped
from srcnn.state import Run, interval_elapsed, open_shards, start_accelerator, start_run
from srcnn.step import resolve_pending_step, train_step
from srcnn.train_config import TrainConfig
from srcnn.training_pairs import PairMaker
from srcnn.validation import validate

logger = logging.getLogger(__name__)
# dB above the input on tiles that are overfitted. A residual network starts at 0; how far it comes within a minute is
# up to the tiles: with configs/debug.yaml 1.72 dB on drawn ones, 0.18 dB on those of a hazy photograph.
LEARNED_GAIN = 0.1


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to `total_samples` and returns the last validation; every rank runs the same number of steps.

    Raises:
        FileNotFoundError, ShardError: no shards, or not what their manifest says.
        DistributedError: the run folder belongs to another network, seed or data, or samples cannot be read, or a
            checkpoint cannot be written; on all ranks.
        FloatingPointError: loss or gradient is not finite, again and again.
        Stopped: a rank was told to stop. As after DistributedError within training, a checkpoint after the last whole
            step is left.
    """
    accelerator = start_accelerator(config)
    train_reader, val_reader = open_shards(config)
    run = start_run(config, accelerator)
    if run.network.conditioned:
        for reader in (train_reader, val_reader):
            reader.read_qualities()
    meter = Meter(accelerator.device)
    try:
        resume(config, run, meter, train_reader)
        announce(config, run, train_reader, val_reader)
        tracking = start_tracking(config, run)
        signals.enable_graceful_stop()
        try:
            loop(config, run, meter, train_reader, val_reader, tracking)
            write_results(config, run, tracking, val_reader)
        except (DistributedError, StopRequested) as stop:
            if isinstance(stop, StopRequested):
                tracking.preempted(str(stop))
            save_now(config, run, meter, train_reader)
            raise
        finally:
            tracking.finish()
    finally:
        train_reader.close()
        if run.writer:
            run.writer.close()
    return run.values


def loop(
    config: TrainConfig, run: Run, meter: Meter, train_reader: ShardDataset, val_reader: ShardDataset,
    tracking: Tracking,
) -> None:
    """Measure, save, step, until all samples are seen and all is written."""

    def tell(skipped: Queued | None) -> None:
        if skipped and report_skipped(config, run, skipped, train_reader):
            tracking.skipped(skipped.step)

    parts = batches(config, run, train_reader, meter)
    meter.began = time.perf_counter()
    while True:
        if any(measures_due(config, run)) or save_due(config, run):
            tell(resolve_pending_step(config, run, meter))
        if measure(config, run, meter, val_reader, tracking) or save_due(config, run):
            with meter.paused():
                save_checkpoint(config, run, meter, train_reader)
        if run.samples >= config.total_samples:
            save_now(config, run, meter, train_reader, LAST_SAVE_SECONDS if config.on_save_failure == "continue" else 0)
            return
        batch, trouble = next_batch(config, run, train_reader, parts)
        tell(train_step(config, run, batch, meter, trouble))
        tracking.advance(run.samples)


def announce(config: TrainConfig, run: Run, train_reader: ShardDataset, val_reader: ShardDataset) -> None:
    """Says once what is about to happen."""
    accelerator = run.accelerator
    if accelerator.is_main_process:
        where = f"{accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}"
        data = f"{train_reader.num_samples} training and {val_reader.num_samples} validation tiles"
        order = config.stream.order_of(config.seed, train_reader)
        logger.info("%s on %s, %s, order: %s; %d of %d tiles done, %d a step", run.network.name, where, data, order,
                    run.samples, config.total_samples, config.global_batch_size(accelerator.num_processes))


def start_tracking(config: TrainConfig, run: Run) -> Tracking:
    """The record of the run, which goes on where the checkpoint knows it to be."""
    trackers = config.trackers if run.accelerator.is_main_process else None
    logged = max(run.logged_samples, run.validated_samples)
    hosts = all_gather_objects(socket.gethostname(), run.group)
    return Tracking(Path(config.run), trackers, plain(asdict(saved_config(config))), config.total_samples, run.samples,
                    logged, run.tracker_id, hosts=hosts, alerts=config.alerts)


def measures_due(config: TrainConfig, run: Run) -> tuple[bool, bool]:
    """Whether it is time for a log line, and for a validation; at the end for both."""
    log_due = interval_elapsed(config, run, config.log_every_samples, run.logged_samples)
    return log_due, interval_elapsed(config, run, config.validate_every_samples, run.validated_samples)


def measure(config: TrainConfig, run: Run, meter: Meter, reader: ShardDataset, tracking: Tracking) -> bool:
    """Logs and validates where that is due, as one point; returns whether a checkpoint should follow.

    Nothing counts as done until all of it is: told to stop in between, the run begins here when it continues.
    """
    log_due, validation_due = measures_due(config, run)
    if not (log_due or validation_due):
        return False
    values: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    if validation_due:
        with meter.paused():
            values = validate_run(config, run, reader)
            pictures = run_on_all_ranks(lambda: show_pictures(config, run, reader), run.group)
    point, save_wished = meter.read(run, checkpoint_overdue(config, run)) if log_due else ({}, False)
    if validation_due:
        run.values, run.validated_samples = values, run.samples
        if values["val/psnr"] > run.best_psnr:
            run.best_psnr, run.best_step = values["val/psnr"], run.step
    if log_due:
        run.logged_samples = run.samples
        meter.restart()
    tracking.log(run.samples, point | values, pictures)
    return validation_due or save_wished


def validate_run(config: TrainConfig, run: Run, reader: ShardDataset) -> dict[str, float]:
    """The scores of the weights that are saved, and where these are averaged, the PSNR of the last ones too."""
    score = partial(validate, reader=reader, accelerator=run.accelerator, stream=config.stream, group=run.group)
    values = score(run.result)
    if run.average is not None:
        values["val/psnr_last_weights"] = score(run.network)["val/psnr"]
    return values


def batches(config: TrainConfig, run: Run, reader: ShardDataset, meter: Meter) -> Iterator[Batch]:
    """The rest of the stream for this rank, read ahead; the time spent waiting for it goes to the meter."""
    ranks = run.accelerator.num_processes
    maker = PairMaker(config.degradation, config.seed, config.augment, reader.tile_shape) if config.degrades else None
    plan = BatchPlan(config.seed, run.samples, config.total_samples, config.global_batch_size(ranks),
                     run.accelerator.process_index, ranks)
    ahead = device_batches(reader, config.stream, plan, run.accelerator.device, run.group, maker)
    while True:
        begin = time.perf_counter()
        batch = next(ahead, None)
        meter.waited += time.perf_counter() - begin
        if batch is None:
            return
        yield batch


def next_batch(
    config: TrainConfig, run: Run, reader: ShardDataset, parts: Iterator[Batch]
) -> tuple[Batch, Exception | None]:
    """The next batch, and why this rank wants the run to stop, None as a rule.

    A rank that has no batch takes its part in the next step with a black tile, so that the others hear of it; and in
    the one after, where they hear of it that late.
    """
    trouble = run.queued.trouble if run.queued and run.queued.trouble else signals.stop_requested()
    for problem in run.writer.problems() if run.writer else ():
        logger.warning("a checkpoint could not be written, the last good one is kept: %s", problem)
        if config.on_save_failure == "stop" or isinstance(problem, BlockingIOError):  # the folder is another's now
            trouble = problem
    try:
        if trouble:
            raise trouble
        return next(parts), signals.stop_requested()
    except DistributedError:
        raise
    except Exception as error:  # whatever it is, the others shall hear of it
        shape, device = config.pair_shape(reader.tile_shape), run.accelerator.device
        black = torch.zeros((1, *shape), dtype=torch.uint8, device=device)
        none = torch.zeros(1, dtype=torch.uint8, device=device)
        unknown = torch.zeros((1, CONDITION_SIZE), device=device) if run.network.conditioned else None
        return Batch(black, black, none, none, unknown), error


def show_pictures(config: TrainConfig, run: Run, reader: ShardDataset) -> dict[str, np.ndarray]:
    """The first validation pairs for the trackers: degraded, restored, clean side by side."""
    if run.accelerator.is_main_process and config.num_pictures and config.trackers:
        return {"degraded, restored, clean": pair_rows(reader, run.result, config.num_pictures)}
    return {}


def write_results(config: TrainConfig, run: Run, tracking: Tracking, reader: ShardDataset) -> None:
    """The report and the last words, on the main process."""
    if run.accelerator.is_main_process:
        gain = run.values.get("val/gain", 0.0)
        if config.overfit_tiles:
            verdict = ("the loop learns" if gain > LEARNED_GAIN else
                       "too little: something is wrong, or total_samples too low")
            logger.info("gained %.2f dB on the %d tiles trained on: %s", gain, config.overfit_tiles, verdict)
        try:
            write_report(Path(config.run), reader)
        except (OSError, ValueError) as error:
            logger.warning("no report could be written (`srcnn report %s` tries again): %s", config.run, error)
        if config.upload_best:
            tracking.log_artifact(f"{Path(config.run).name}-best", Path(config.run, "best"))
