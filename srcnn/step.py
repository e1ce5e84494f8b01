"""One optimizer step. The host queues it and does not wait: how it ended it hears while the next one is computed."""

from __future__ import annotations

import math
from typing import Any

import torch

from srcnn.distributed import DistributedError, raise_if_any_rank_failed
from srcnn.loader import Batch
from srcnn.meter import Meter
from srcnn.optimizer import lr_factor, set_lr, update_average
from srcnn.queued import Queued, on_its_way
from srcnn.signals import StopRequested
from srcnn.state import Run
from srcnn.train_config import TrainConfig
from srcnn.transforms import conditions_for


def train_step(
    config: TrainConfig, run: Run, batch: Batch, meter: Meter, trouble: Exception | None = None
) -> Queued | None:
    """One optimizer step over one global batch: the mean loss over all pixels of all ranks' tiles.

    The ranks agree on every step without a word: a loss that is not finite on one of them, or its `trouble`, makes the
    gradient NaN, which the all-reduce brings to all. None of them takes such a step then; the device leaves it out by
    itself. The host looks at the length of the gradient, in `settle`, at once or, where `run.lags`, while the device
    works on the gradient of the next step, which is not applied before. So one step at most is open, and it counts in
    `run.step` and `run.samples` already.

    Returns:
        The step that turned out to be skipped, if one did: its samples are used up, the weights are as before. It is
        this step or, where `run.lags`, the one before.

    Raises:
        DistributedError, Stopped: some rank had trouble; on all ranks, and as if that step had not begun.
    """
    accelerator = run.accelerator
    clean, degraded = run.to_float_batch(batch, config.augment)
    batch_size = config.global_batch_size(accelerator.num_processes)
    # Gradients are averaged over the ranks, whose parts may be unequal.
    weight = math.nan if trouble else accelerator.num_processes / batch_size
    arrays = [clean, degraded, *conditions_for(run.network, batch)]
    at_once = config.tiles_at_once(accelerator.device.type, len(clean))
    sums = torch.zeros_like(meter.sums)
    # Gradients keep their memory: what a CUDA graph gave as one would be overwritten by the next part of the batch.
    run.optimizer.zero_grad(set_to_none=False)

    def accumulate(*arrays: torch.Tensor) -> None:
        loss, scores = run.model(*arrays)
        accelerator.backward(loss * (weight + 0 * loss.detach()))  # NaN where the loss is not finite
        sums.add_(scores)

    *first, last = zip(*(torch.split(array, at_once) for array in arrays), strict=True)
    with accelerator.no_sync(run.model):  # the gradients travel once
        for chunk in first:
            accumulate(*chunk)
    accumulate(*last)
    skipped = resolve_pending_step(config, run, meter)
    gradient_norm = accelerator.clip_grad_norm_(run.network.parameters(), config.optimizer.clip_norm or math.inf)
    before = scaler_state(run)
    learning_rate = apply(config, run, gradient_norm)
    run.step, run.samples = run.step + 1, run.samples + batch_size
    run.queued = Queued(run.step, run.samples, batch_size, batch.samples, sums, on_its_way(gradient_norm),
                        learning_rate, trouble, before)
    return skipped if run.lags else resolve_pending_step(config, run, meter)


def apply(config: TrainConfig, run: Run, gradient_norm: torch.Tensor) -> float:
    """Changes the weights, which the device leaves out where the gradient is not finite; returns the learning rate.

    fp16's scaler looks at the gradients itself, on the device too, and lowers its scale where they are not finite.
    """
    set_lr(run.optimizer, lr_factor(config.optimizer, run.samples, config.total_samples))
    run.optimizer.optimizer.found_inf = (~gradient_norm.isfinite()).float()  # as torch.amp.GradScaler tells it
    run.optimizer.step()
    return float(run.optimizer.param_groups[0]["lr"])


def resolve_pending_step(config: TrainConfig, run: Run, meter: Meter) -> Queued | None:
    """Waits for the step that is open, if one is, and counts it; returns it where it was skipped.

    Raises:
        DistributedError, Stopped: as `train_step`.
    """
    step, run.queued = run.queued, None
    if step is None:
        return None
    gradient_norm = step.gradient_norm()
    if math.isfinite(gradient_norm):
        meter.add(step.sums, gradient_norm, step.learning_rate)
        if run.average is not None:
            update_average(run.average, run.network, config.optimizer, step.samples, step.batch_size)
        run.skipped_in_a_row = 0
        return None
    try:
        raise_if_any_rank_failed(step.trouble, run.group)
    except (DistributedError, StopRequested):
        run.step, run.samples = step.step - 1, step.samples - step.batch_size
        for tensor, before in zip(scaler_tensors(run), step.scaler_before, strict=True):
            tensor.copy_(before)
        raise
    run.skipped_steps += 1
    run.skipped_in_a_row += 1
    return step


def scaler_tensors(run: Run) -> list[torch.Tensor]:
    """What a step changes of fp16's scaler; its `state_dict` would wait for the device."""
    scaler: Any = run.accelerator.scaler
    return [scaler._scale, scaler._growth_tracker] if scaler else []


def scaler_state(run: Run) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in scaler_tensors(run)]
