"""Training: `train(config)`, and the `Trainer` that it runs. One optimizer step is in srcnn/training/step.py."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from srcnn.data.device_loader import device_batches
from srcnn.data.loader import Batch
from srcnn.data.shuffle import BatchPlan
from srcnn.data.training_pairs import PairMaker
from srcnn.runtime import signals
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.distributed import (
    DistributedError,
    PeerLostError,
    all_gather_json,
    is_connection_error,
    run_on_all_ranks,
)
from srcnn.runtime.errors import EXPECTED
from srcnn.runtime.settings import plain
from srcnn.runtime.signals import StopRequested
from srcnn.runtime.watchdog import warn_if_slow
from srcnn.tracking.run_log import Tracking
from srcnn.tracking.tracker import DatasetRecord
from srcnn.training.components import Components
from srcnn.training.config import TrainConfig
from srcnn.training.machine import busy_cores, describe_machine, device_name, precision_name
from srcnn.training.report import pair_rows, write_report
from srcnn.training.resume import (
    LAST_SAVE_SECONDS,
    checkpoint_overdue,
    resume,
    save_and_wait,
    save_checkpoint,
    saved_config,
)
from srcnn.training.state import TrainState
from srcnn.training.step import fix_gradient_buckets, resolve_pending_step, train_step
from srcnn.training.validation import validate

# dB above the input on tiles that are overfitted. A residual network starts at 0; how far it comes within a minute is
# up to the tiles: with configs/debug.yaml 1.72 dB on drawn ones, 0.18 dB on those of a hazy photograph.
LEARNED_GAIN = 0.1
logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, float]:
    """Trains to `total_samples` and returns the last validation; every rank runs the same number of steps.

    Raises:
        UserError, FileNotFoundError, ShardError: no shards, or not what their manifest says, or not for this network.
        DistributedError: the run folder belongs to another network, seed or data, or samples cannot be read, or a
            checkpoint cannot be written; on all ranks.
        DivergedError: loss or gradient is not finite, again and again.
        StopRequested: a rank was asked to stop. As after DistributedError within training, a checkpoint after the last
            whole step is left.
        PeerLostError: another rank is gone.
    """
    trainer = Trainer(config)
    try:
        return trainer.train()
    finally:
        trainer.close()


class Trainer(Components):
    """A training: its components, and the loop over them. `train` is all of it; its steps can be called one by one."""

    def train(self) -> dict[str, float]:
        """Resumes or starts, trains to `total_samples`, writes the report; returns the last validation."""
        self.resume()
        self.announce()
        self.tracking = self.start_tracking()
        first = replace(self.state)
        signals.enable_graceful_stop(60 * self.config.timeout_minutes)
        try:
            self.run_to_end_or_stop(self.tracking)
        except RuntimeError as error:
            if not is_connection_error(error):
                raise
            # Without a new checkpoint, the next start would probably fail as this one: not to be requeued for ever.
            may_requeue = signals.stop_requested() is not None or self.has_saved_since(first)
            raise PeerLostError(f"lost contact with another rank (exited, hung, or network down): {error}",
                                signals.EXIT_REQUEUE if may_requeue else 1) from error
        finally:
            self.tracking.finish()
        return self.state.values

    def run_to_end_or_stop(self, tracking: Tracking) -> None:
        """All steps and the results; a checkpoint where all ranks stop together before."""
        try:
            self.run_steps(tracking)
            self.write_results(tracking)
        except (DistributedError, StopRequested) as stop:
            if isinstance(stop, StopRequested):
                tracking.preempted(str(stop))
            save_and_wait(self)
            raise

    def has_saved_since(self, first: TrainState) -> bool:
        """Whether a later checkpoint than `first` was written; all but the main process only know of one begun."""
        if self.writer is None:
            return self.state.saved_samples > first.samples
        self.writer.wait()
        return self.writer.written_step > first.step

    def resume(self) -> None:
        """Takes hold of the run folder and goes on from its latest checkpoint, if there is one; see `resume.resume`."""
        with warn_if_slow(f"{self.config.run}: looking for a checkpoint"):
            resume(self)

    def train_step(self, batch: Batch) -> None:
        """One optimizer step over this rank's part of a global batch; see `step.train_step`."""
        train_step(self, batch)

    def save(self) -> None:
        """Hands a checkpoint of the state after the last step to the thread that writes it."""
        with self.meter.paused():
            save_checkpoint(self)

    def close(self) -> None:
        """Ends the reading and, once all is written, lets go of the run folder."""
        self.dataset.close()
        if self.writer:
            self.writer.close()

    def run_steps(self, tracking: Tracking) -> None:
        """Log, validate, save, step, until all samples are seen and all is written."""
        batches = self.batches()
        batch = None if self.is_done else run_on_all_ranks(lambda: next(batches), self.group)
        if batch is not None:
            fix_gradient_buckets(self, batch)
        self.meter.start = time.perf_counter()
        while True:
            if any(self.log_or_validation_due()) or self.save_due():
                resolve_pending_step(self)
            if self.log_and_validate(tracking) or self.save_due():
                self.save()
            if batch is None or self.is_done:
                save_and_wait(self, LAST_SAVE_SECONDS if self.config.on_save_failure == "continue" else 0)
                return
            following = self.next_batch(batches, batch)
            self.train_step(batch)
            tracking.advance(self.state.samples)
            batch = following

    def batches(self) -> Iterator[Batch]:
        """The rest of the stream for this rank, read ahead; the time spent waiting for it goes to the meter."""
        config, ranks, dataset = self.config, self.accelerator.num_processes, self.dataset
        maker = None
        if config.degrades:
            maker = PairMaker(config.degradation, config.seed, config.augment, dataset.tile_shape)
        plan = BatchPlan(config.seed, self.state.samples, config.total_samples, config.global_batch_size(ranks),
                         self.accelerator.process_index, ranks)
        shards = without_credentials(config.shards)
        read_ahead = device_batches(dataset, config.stream, plan, self.accelerator.device, self.group, maker)
        while True:
            begin = time.perf_counter()
            with warn_if_slow(f"{shards}: reading samples"):
                batch = next(read_ahead, None)
            self.meter.waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    def next_batch(self, batches: Iterator[Batch], batch: Batch) -> Batch:
        """The batch after `batch`, read before the step on `batch`, so that this step's `stop_flag` can tell the other
        ranks if it cannot be read. Then `batch` is returned again: with async steps this rank still joins one more
        all-reduce, whose update is discarded.
        """
        if self.error is None:
            try:
                self.check_writer()
                batch = next(batches, batch)  # after the last step no other is wanted
                self.error = signals.stop_requested()
            except Exception as error:  # whatever it is, the others have to know
                self.error = error
        return batch

    def check_writer(self) -> None:
        """Logs why checkpoints could not be written. Raises an error that is not of the disk; with `on_save_failure`
        "stop" any.
        """
        for error in self.writer.errors() if self.writer else ():
            logger.warning("a checkpoint cannot be written, the last good one is kept: %s", str(error) or repr(error))
            is_of_disk = isinstance(error, OSError) and not isinstance(error, BlockingIOError)  # of the lock
            if self.config.on_save_failure == "stop" or not is_of_disk:
                raise error

    def interval_elapsed(self, every: int, last: int) -> bool:
        """Whether a multiple of `every` samples, or the end, was passed since `last`."""
        samples = self.state.samples
        return every > 0 and samples > last and (samples // every > last // every or self.is_done)

    def save_due(self) -> bool:
        """Whether it is time for a checkpoint besides those of validations; the first one shows that it can be."""
        saved = self.state.saved_samples
        return saved < 0 or self.interval_elapsed(self.config.save_every_samples, saved)

    def log_or_validation_due(self) -> tuple[bool, bool]:
        """Whether it is time for a log line, and for a validation; at the end for both."""
        return (self.interval_elapsed(self.config.log_every_samples, self.state.logged_samples),
                self.interval_elapsed(self.config.validate_every_samples, self.state.validated_samples))

    def log_and_validate(self, tracking: Tracking) -> bool:
        """Logs and validates where that is due, as one point; returns whether a checkpoint should follow.

        Nothing counts as done until all of it is: stopped in between, the run begins here when it continues.
        """
        state = self.state
        log_due, validation_due = self.log_or_validation_due()
        if not (log_due or validation_due):
            return False
        values: dict[str, float] = {}
        pictures: dict[str, np.ndarray] = {}
        if validation_due:
            with self.meter.paused():
                values = self.validate()
                pictures = run_on_all_ranks(self.pictures, self.group)
        point, save_overdue = self.meter.read(state, checkpoint_overdue(self)) if log_due else ({}, False)
        if validation_due:
            state.values, state.validated_samples = values, state.samples
            if values["val/psnr"] > state.best_psnr:
                state.best_psnr, state.best_step = values["val/psnr"], state.step
        if log_due:
            state.logged_samples = state.samples
            self.meter.restart()
        with warn_if_slow(f"{self.config.run}: writing a log line"):
            tracking.log(state.samples, point | values, pictures)
        return validation_due or save_overdue

    def validate(self) -> dict[str, float]:
        """The scores of the weights that are saved; where these are averaged, the PSNR of the last ones too."""
        stream = self.config.stream
        values = validate(self.eval_network, self.val_dataset, self.accelerator, stream, self.group, self.distances)
        if self.average is not None:
            last = validate(self.network, self.val_dataset, self.accelerator, stream, self.group)
            values["val/psnr_last_weights"] = last["val/psnr"]
        return values

    def pictures(self) -> dict[str, np.ndarray]:
        """The first validation pairs for the trackers: degraded, restored, clean side by side."""
        config = self.config
        if self.accelerator.is_main_process and config.num_pictures and config.trackers:
            return {"degraded, restored, clean": pair_rows(self.val_dataset, self.eval_network, config.num_pictures)}
        return {}

    def announce(self) -> None:
        """Logs once what is about to be trained, on what and for how long."""
        if not self.accelerator.is_main_process:
            return
        for title, text in self.summary().items():
            logger.info("%-10s %s", title, text)
        if hint := busy_cores(self.accelerator.device):
            logger.warning(hint)
        if self.is_done:
            logger.info("%s is complete: nothing to train (--total_samples, or another --run)", self.config.run)

    def summary(self) -> dict[str, str]:
        """Network, data, machine and length, by title, as people read them."""
        config, accelerator, network = self.config, self.accelerator, self.network
        num_weights = sum(parameter.numel() for parameter in network.parameters())
        size, ranks = config.global_batch_size(accelerator.num_processes), accelerator.num_processes
        shape = "x".join(map(str, self.dataset.tile_shape))
        epochs = config.total_samples / self.dataset.num_samples
        damage = ", ".join(config.degradation.damages) or self.dataset.manifest.damage or "damage unknown"
        return {
            "network": f"{network.name}, {network.summary}, {num_weights:,} weights",
            "shards": f"{without_credentials(config.shards)}: {self.dataset.num_samples:,} tiles of {shape}, "
                      f"{self.val_dataset.num_samples:,} to validate; {damage}",
            "order": str(config.stream.make_shuffle(config.seed, self.dataset)),
            "machine": f"{ranks} x {device_name(accelerator.device)}, {precision_name(accelerator)}",
            # launch/slurm/train.sbatch reads the end of this:
            "length": f"{config.total_samples:,} tiles ({epochs:.3g} epochs) in batches of {size}; "
                      f"starting at {self.state.samples} of {config.total_samples}",
            "run": f"{config.run}, trackers: {', '.join(config.trackers) or 'none'}",
        }

    def start_tracking(self) -> Tracking:
        """The record of the run, which goes on where the checkpoint knows it to be."""
        config, state, accelerator = self.config, self.state, self.accelerator
        trackers = config.trackers if accelerator.is_main_process else None
        logged = max(state.logged_samples, state.validated_samples)
        hosts = list(dict.fromkeys(all_gather_json(socket.gethostname(), self.group)))
        return Tracking(Path(config.run), trackers, plain(asdict(saved_config(config))), config.total_samples,
                        state.samples, logged, state.tracker_id, hosts=hosts, alerts=config.alerts,
                        machine=describe_machine(accelerator, len(hosts)) if accelerator.is_main_process else None,
                        dataset=self.dataset_record())

    def dataset_record(self) -> DatasetRecord:
        """The shards for the trackers."""
        manifests = {"train": self.dataset.manifest, "val": self.val_dataset.manifest}
        return DatasetRecord(self.config.shards, {
            split: {"sha256": manifest.hash(), "tiles": manifest.num_samples,
                    "photos": manifest.photos.num_photos if manifest.photos else None, "damage": manifest.damage}
            for split, manifest in manifests.items()})

    def write_results(self, tracking: Tracking) -> None:
        """The report and the verdict, on the main process."""
        config = self.config
        if not self.accelerator.is_main_process:
            return
        tracking.ended("complete")
        gain = self.state.values.get("val/gain", 0.0)
        if config.overfit_tiles:
            verdict = ("the loop learns" if gain > LEARNED_GAIN else
                       "too little: something is wrong, or total_samples too low")
            logger.info("gained %.2f dB on the %d tiles trained on: %s", gain, config.overfit_tiles, verdict)
        try:
            with warn_if_slow(f"{config.run}: writing the report"):
                page = write_report(Path(config.run), self.val_dataset)
        except (OSError, ValueError) as error:
            logger.warning("no report could be written (`srcnn report %s` tries again): %s", config.run, error,
                           exc_info=not isinstance(error, EXPECTED))
        else:
            logger.info("%-10s %s", "report", page)
        best, psnr = Path(config.run, "best"), self.state.best_psnr
        gain = psnr - self.state.values.get("val/psnr_in", psnr)
        plugins = "".join(f" --plugins {file}" for file in config.plugins)
        logger.info("%-10s PSNR %.2f dB (%+.2f dB over the input): %s; restore with it: "
                    "srcnn restore PHOTO --model %s%s",
                    "best", psnr, gain, best, config.run, plugins)
        if config.upload_best:
            tracking.log_artifact(f"{Path(config.run).name}-best", best, ("best", f"step-{self.state.best_step:08d}"))
