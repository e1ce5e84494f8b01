"""One optimizer step, enqueued asynchronously: on a GPU its outcome is read while the next gradient is computed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import Batch
from srcnn.data.shuffle import derive_key
from srcnn.runtime.distributed import all_gather_json, raise_if_any_rank_failed
from srcnn.runtime.errors import DivergedError
from srcnn.runtime.torch_internals import skip_update_if
from srcnn.runtime.untrusted import InvalidInput, open_regular
from srcnn.training.components import Components, PendingStep
from srcnn.training.loss import conditions_for
from srcnn.training.optimizer import lr_factor, set_lr, update_average

SKIPPED = "skipped.jsonl"
NAME_BYTES = 100  # of a tar header: where the name of a member stands
logger = logging.getLogger(__name__)


def train_step(trainer: Components, batch: Batch) -> None:
    """One optimizer step over one global batch: the mean loss over all pixels of all ranks' tiles.

    The ranks need no further collective to agree. A loss that is not finite on one of them makes the gradient NaN on
    all, and none takes the step. That a rank cannot go on (`trainer.error`) makes the gradient of `stop_flag` 1: all
    ranks stop after the same step, which is whole, as each had its batch.

    Where `trainer.async_steps`, the host reads the outcome while the device works on the next gradient, which is not
    applied before. So at most one step is pending; `state.step` and `state.samples` count it already.

    Raises:
        DistributedError, StopRequested: some rank cannot go on, or was asked to stop; on all ranks, between two steps.
        DivergedError: too many steps in a row were skipped; on all ranks.
    """
    config, state, accelerator = trainer.config, trainer.state, trainer.accelerator
    batch_size = config.global_batch_size(accelerator.num_processes)
    sums = compute_gradient(trainer, batch)
    resolve_pending_step(trainer)
    with trainer.phase("optimizer"):
        parameters = trainer.network.parameters()
        gradient_norm = accelerator.clip_grad_norm_(parameters, config.optimizer.clip_norm or math.inf)
        learning_rate = update_weights(trainer, gradient_norm)
    state.step, state.samples = state.step + 1, state.samples + batch_size
    outcome = copy_scalars_async(torch.stack([gradient_norm, cast(torch.Tensor, trainer.stop_flag.grad)]))
    trainer.pending = PendingStep(state.step, state.samples, batch_size, batch.samples, sums, learning_rate, outcome)
    if not trainer.async_steps:
        resolve_pending_step(trainer)


def fix_gradient_buckets(trainer: Components, batch: Batch) -> None:
    """Computes gradients that nobody uses, before the first step after a start; all ranks call it together.

    DDP lays out its buckets anew after its first backward pass, with a static graph after the second. From three ranks
    on, an element's place in a bucket decides in which order the ranks' gradients are added: without this, a start
    would change the bits.
    """
    if trainer.accelerator.num_processes > 2:
        for _ in range(2):
            compute_gradient(trainer, batch)


def compute_gradient(trainer: Components, batch: Batch) -> torch.Tensor:
    """Leaves the gradient of a global batch, summed over all ranks; returns this rank's sums, as a `Meter` takes them.
    """
    config, accelerator = trainer.config, trainer.accelerator
    with trainer.phase("bytes to floats"):
        clean, degraded = trainer.to_float_batch(batch, config.augment)
    batch_size = config.global_batch_size(accelerator.num_processes)
    weight = accelerator.num_processes / batch_size  # DDP averages over the ranks, whose parts may be unequal
    arrays = [clean, degraded, *conditions_for(trainer.network, batch)]
    at_once = config.tiles_at_once(accelerator.device.type, len(clean))
    sums = torch.zeros_like(trainer.meter.sums)
    # For networks and losses that draw random numbers. torch.manual_seed takes 0.3 ms where there is no GPU.
    seed = int(derive_key(config.seed, trainer.state.samples + accelerator.process_index))
    torch.default_generator.manual_seed(seed)
    if accelerator.device.type == "cuda":
        torch.cuda.manual_seed(seed)
    # Gradients keep their memory: a CUDA graph overwrites its own outputs with the next micro-batch's.
    trainer.model.zero_grad(set_to_none=False)

    def accumulate(*arrays: torch.Tensor) -> None:
        with trainer.phase("forward"):
            loss, scores = trainer.model(*arrays)
        with trainer.phase("backward"):
            weights = torch.full_like(loss, weight).masked_fill(~loss.detach().isfinite(), math.nan)
            accelerator.backward(loss * weights + trainer.stop_flag * float(trainer.error is not None))
        sums.add_(scores)

    micro_batches = list(zip(*(torch.split(array, at_once) for array in arrays), strict=True))
    with accelerator.no_sync(trainer.model):  # one all-reduce, with the last micro-batch
        for micro_batch in micro_batches[:-1]:
            accumulate(*micro_batch)
    accumulate(*micro_batches[-1])
    return sums


def update_weights(trainer: Components, gradient_norm: torch.Tensor) -> float:
    """The optimizer's update, unless the gradient is not finite, as the device decides; returns the learning rate."""
    config = trainer.config
    set_lr(trainer.optimizer, lr_factor(config.optimizer, trainer.state.samples, config.total_samples))
    optimizer = trainer.optimizer.optimizer
    if optimizer.defaults.get("fused"):
        skip_update_if(optimizer, (~gradient_norm.isfinite()).float())
    elif not (trainer.accelerator.scaler or gradient_norm.isfinite()):  # waits for the device, as no fused one does
        return float(optimizer.param_groups[0]["lr"])
    trainer.optimizer.step()
    return float(trainer.optimizer.param_groups[0]["lr"])


def copy_scalars_async(scalars: torch.Tensor) -> Callable[[], tuple[float, ...]]:
    """Begins to copy a vector to the host; the function returned waits for it and gives its numbers."""
    if scalars.device.type != "cuda":
        return lambda: tuple(map(float, scalars))
    copy = scalars.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # leaves the core to readers
    copied.record()

    def wait() -> tuple[float, ...]:
        copied.synchronize()
        return tuple(map(float, copy))

    return wait


def resolve_pending_step(trainer: Components) -> None:
    """Waits for the outcome of the pending step, if there is one, and counts it as applied or skipped.

    Raises:
        DistributedError, StopRequested, DivergedError: as `train_step`.
    """
    pending, trainer.pending = trainer.pending, None
    if pending is None:
        return
    state = trainer.state
    gradient_norm, stop_flag = pending.outcome()
    if math.isfinite(gradient_norm):
        with trainer.phase("meter"):
            trainer.meter.add(pending.sums, gradient_norm, pending.learning_rate)
        if trainer.average is not None and trainer.config.optimizer.average_halflife_samples:
            update_average(trainer.average, trainer.network, trainer.config.optimizer, pending.samples,
                           pending.batch_size)
        state.skipped_in_a_row = 0
    else:
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        report_skipped_step(trainer, pending)
    if stop_flag > 0:
        raise_if_any_rank_failed(trainer.error, trainer.group)


def report_skipped_step(trainer: Components, skipped: PendingStep) -> None:
    """Records a step skipped for a non-finite loss or gradient, with its tiles; not those of fp16's search for a scale.

    Raises:
        DivergedError: too many steps in a row were skipped; on all ranks.
    """
    in_a_row = trainer.state.skipped_in_a_row
    is_too_many = in_a_row > trainer.config.max_skipped_steps
    if trainer.accelerator.scaler and not is_too_many:
        return
    keys = all_gather_json(sample_keys(trainer.dataset, skipped.tiles.tolist()), trainer.group)
    path = Path(trainer.config.run, SKIPPED)
    if trainer.accelerator.is_main_process:
        logger.warning("loss or gradient is not finite: step %d skipped, its tiles are in %s", skipped.step, path)
        try:
            with open_regular(path, follow=False, append=True) as file:
                entry = {"step": skipped.step, "samples": skipped.samples, "keys_of_ranks": keys}
                file.write(json.dumps(entry).encode() + b"\n")
        except (OSError, InvalidInput) as error:
            logger.warning("%s cannot be written: %s", path, error)
    if is_too_many:
        raise DivergedError(f"loss or gradient was not finite in {in_a_row} steps in a row: lower optimizer.lr "
                            f"and start a new run; the tiles of these steps are in {path}")
    if trainer.tracking:
        trainer.tracking.skipped(skipped.step)


def sample_keys(dataset: ShardDataset, samples: list[int]) -> list[str]:
    """The names of the samples' first members in the shards; their numbers where these cannot be read."""
    try:
        headers = [bytes(dataset.fetch(sample, sample + 1)[0][:NAME_BYTES]) for sample in samples]
    except (OSError, ValueError) as error:
        return [f"samples {samples} of {dataset.location} ({error})"]
    return [header.rstrip(b"\0").decode(errors="backslashreplace") for header in headers]
