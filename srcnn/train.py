"""Training: `train(config)` reads as a table of contents; `train_step` can be called alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from srcnn.config import plain
from srcnn.feed import StreamFailed, feed
from srcnn.meter import Meter
from srcnn.optimize import rate, set_rate, update_average
from srcnn.reader import ShardReader
from srcnn.report import pair_rows, write_report
from srcnn.run import (
    Run,
    TrainConfig,
    continue_run,
    open_shards,
    save_checkpoint,
    start_accelerator,
    start_run,
)
from srcnn.stream import Batch
from srcnn.tracking import Tracking
from srcnn.validate import crop, validate

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to `total_samples` and returns the last validation; every rank runs the same number of steps.

    Raises:
        FileNotFoundError, ShardError: no shards, or not what their manifest says.
        ValueError: the run folder belongs to another network, seed or data.
        FloatingPointError: the loss is no longer finite.
        StreamFailed: samples cannot be read, or are damaged; a checkpoint after the last whole step is left.
    """
    accelerator = start_accelerator(config)
    train_reader, val_reader = open_shards(config)
    run = start_run(config, accelerator)
    continue_run(config, run, train_reader)
    announce(config, run, train_reader, val_reader)
    tracking = Tracking(Path(config.run), config.trackers if accelerator.is_main_process else None,
                        plain(asdict(config)), config.total_samples, run.samples, run.tracker_id)
    meter = Meter(accelerator.device)
    try:
        for batch in batches(config, run, train_reader, meter):
            train_step(config, run, batch, meter)
            tracking.advance(run.samples)
            if crossed(config, run, config.log_every_samples):
                tracking.log(run.samples, meter.read(run))
            if crossed(config, run, config.validate_every_samples):
                run.values = validate_run(config, run, val_reader)
                tracking.log(run.samples, run.values)
                show_pictures(config, run, val_reader, tracking)
                save_checkpoint(config, run, train_reader)
                meter.restart()
    except StreamFailed:
        save_checkpoint(config, run, train_reader, validated=False)
        raise
    finally:
        train_reader.close()
    finish(config, run, tracking, val_reader)
    return run.values


def announce(config: TrainConfig, run: Run, train_reader: ShardReader, val_reader: ShardReader) -> None:
    """Says once what is about to happen."""
    accelerator = run.accelerator
    if accelerator.is_main_process:
        kernels = "-".join(map(str, config.model.kernels))
        where = f"{accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}"
        data = f"{train_reader.num_samples} training and {val_reader.num_samples} validation tiles"
        order = config.stream.order_of(config.seed, train_reader)
        logger.info("SRCNN %s on %s, %s, order: %s; %d of %d tiles done", kernels, where, data, order, run.samples,
                    config.total_samples)


def validate_run(config: TrainConfig, run: Run, reader: ShardReader) -> dict[str, float]:
    """The scores of the weights that are saved, and where these are averaged, the PSNR of the last ones too."""
    score = partial(validate, reader=reader, accelerator=run.accelerator, stream=config.stream, group=run.group)
    values = score(run.result)
    if run.average is not None:
        values["val/psnr_last_weights"] = score(run.network)["val/psnr"]
    return values


def batches(config: TrainConfig, run: Run, reader: ShardReader, meter: Meter) -> Iterator[Batch]:
    """The rest of the stream for this rank, read ahead; the time spent waiting for it goes to the meter."""
    ranks = run.accelerator.num_processes
    ahead = feed(reader, config.stream, config.seed, run.samples, config.total_samples, config.global_batch_size(ranks),
                 run.accelerator.process_index, ranks, run.accelerator.device, run.group)
    while True:
        begin = time.perf_counter()
        batch = next(ahead, None)
        meter.waited += time.perf_counter() - begin
        if batch is None:
            return
        yield batch


def train_step(config: TrainConfig, run: Run, batch: Batch, meter: Meter) -> None:
    """One optimizer step over one global batch: mean squared error over all pixels of all ranks' tiles."""
    accelerator = run.accelerator
    clean, degraded = run.as_floats(batch, config.augment)
    batch_size = config.global_batch_size(accelerator.num_processes)
    weight = accelerator.num_processes / batch_size  # gradients are averaged over the ranks, whose parts may be unequal
    border = run.network.receptive_radius if config.loss_crop else 0
    at_once = config.tiles_at_once(accelerator.device.type, len(clean))

    def accumulate(clean: torch.Tensor, degraded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        restored = run.model(degraded)
        loss = crop(restored - clean, border).square().mean() * len(clean)
        accelerator.backward(loss * weight)
        return loss.detach(), restored.detach()

    *first, last = zip(torch.split(clean, at_once), torch.split(degraded, at_once), strict=True)
    with accelerator.no_sync(run.model):  # the gradients travel once
        parts = [accumulate(*chunk) for chunk in first]
    losses, restored = zip(*parts, accumulate(*last), strict=True)
    meter.add(torch.stack(losses).sum(), clean, degraded, torch.cat(restored))
    clip = config.optimizer.clip_norm or float("inf")
    meter.gradient_norm = accelerator.clip_grad_norm_(run.network.parameters(), clip)
    set_rate(run.optimizer, rate(config.optimizer, run.samples, config.total_samples))
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step, run.samples = run.step + 1, run.samples + batch_size
    run.skipped_steps += int(run.optimizer.step_was_skipped)
    if run.average is not None:
        update_average(run.average, run.network, config.optimizer, run.samples, batch_size)


def crossed(config: TrainConfig, run: Run, every: int) -> bool:
    """Whether the last step passed a multiple of `every` samples, or the end."""
    before = run.samples - config.global_batch_size(run.accelerator.num_processes)
    return run.samples // every > before // every or run.samples >= config.total_samples


def show_pictures(config: TrainConfig, run: Run, reader: ShardReader, tracking: Tracking) -> None:
    """Sends the first validation pairs to the trackers: degraded, restored, clean side by side."""
    if run.accelerator.is_main_process and config.num_pictures and config.trackers:
        rows = pair_rows(reader, run.result, config.num_pictures)
        tracking.log_picture(run.samples, "degraded, restored, clean", rows)


def finish(config: TrainConfig, run: Run, tracking: Tracking, reader: ShardReader) -> None:
    """The report and the last words, on the main process."""
    if run.accelerator.is_main_process:
        gain = run.values.get("val/gain", 0.0)
        if config.overfit_tiles:
            verdict = "the loop learns" if gain > 1 else "too little: something is wrong, or total_samples too low"
            logger.info("gained %.2f dB on the %d tiles trained on: %s", gain, config.overfit_tiles, verdict)
        write_report(Path(config.run), reader)
        if config.upload_best:
            tracking.log_artifact(f"{Path(config.run).name}-best", Path(config.run, "best"))
    tracking.finish()
