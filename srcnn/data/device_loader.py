"""This rank's batches on the device: read ahead and copied, or taken from a dataset that is held in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

from srcnn.data.dataset import Allocate, PairBuffer, PairDataset, ShardDataset
from srcnn.data.loader import Batch, LoaderConfig, train_batches, val_batches
from srcnn.data.shuffle import BatchNumbers, BatchPlan, batch_numbers
from srcnn.data.training_pairs import PairMaker
from srcnn.runtime.distributed import run_on_all_ranks
from srcnn.runtime.errors import UserError

LARGEST_SHARE = 0.8  # fraction of the free memory that a resident dataset may use


def device_batches(
    dataset: ShardDataset, config: LoaderConfig, plan: BatchPlan, device: torch.device, group: Any,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """Yields this rank's part of each global batch, as tensors on the device.

    The tensors are valid until the next batch is requested. `maker` makes pairs of clean tiles, on the host.

    Raises:
        DistributedError: on all ranks: a resident dataset cannot be read on one, or does not fit into its memory.
        OSError, ValueError: on this rank only, in place of a batch that cannot be read.
    """
    if config.resident == "device":
        tiles = run_on_all_ranks(lambda: load_all(dataset, config, device), group)
        return _resident_batches(dataset, tiles, batch_numbers(config.make_shuffle(plan.seed, dataset), plan))
    source: PairDataset = dataset
    if config.resident == "host":
        source = run_on_all_ranks(lambda: ResidentDataset(dataset, config), group)
    return copy_to_device(train_batches(source, config, plan, _allocator(device), maker), device)


class ResidentDataset:
    """A dataset whose samples are all in the memory of the host. Raises ValueError if they do not fit."""

    in_memory, needs_crops = True, False

    def __init__(self, dataset: ShardDataset, config: LoaderConfig) -> None:
        self.num_samples, self.tile_shape, self.is_local = dataset.num_samples, dataset.tile_shape, dataset.is_local
        self.num_members, self.conditions = dataset.num_members, dataset.conditions
        self._tiles = [tiles.numpy() for tiles in load_all(dataset, config, torch.device("cpu"))]

    def read(
        self, samples: np.ndarray, buffer: PairBuffer | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `ShardDataset.read`."""
        buffer = buffer or PairBuffer(len(samples), self.tile_shape, num_members=self.num_members)
        for tiles, out in zip(self._tiles, (buffer.clean, buffer.degraded)):
            np.take(tiles, samples, axis=0, out=out, mode="clip")  # mode "raise" would copy twice
        return buffer.clean, buffer.degraded


def load_all(dataset: ShardDataset, config: LoaderConfig, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Reads all samples into the memory of a device: (clean, degraded) or (clean,), uint8 (num_samples, *tile_shape).

    Raises:
        ValueError: they do not fit, or are pictures of several sizes.
    """
    check_fits(dataset, device)
    shape = (dataset.num_samples, *dataset.tile_shape)
    members = tuple(torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(dataset.num_members))
    for batch in val_batches(dataset, config, 256):
        first, last = int(batch.samples[0]), int(batch.samples[-1]) + 1
        for tiles, part in zip(members, (batch.clean, batch.degraded)):
            tiles[first:last] = torch.from_numpy(part)
    return members


def check_fits(dataset: ShardDataset, device: torch.device, num_local_ranks: int = 0) -> None:
    """Raises ValueError if the samples do not fit into the memory of the device, or are pictures of several sizes.

    `num_local_ranks` ranks share the memory of the host; 0: as many as the launcher started.
    """
    if dataset.manifest.encoding == "any":
        raise UserError(f"{dataset.location}: pictures of several sizes cannot be resident; use --stream.resident no")
    needed = dataset.num_members * dataset.num_samples * int(np.prod(dataset.tile_shape))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // (num_local_ranks or int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if needed > LARGEST_SHARE * free:
        sizes = f"{needed / 1e9:.1f} GB of tiles, {free / 1e9:.1f} GB free on {device} for this rank"
        raise UserError(f"{dataset.location}: does not fit into memory: {sizes}; use --stream.resident no")


def _resident_batches(
    dataset: ShardDataset, tiles: tuple[torch.Tensor, ...], batches: Iterator[BatchNumbers]
) -> Iterator[Batch]:
    """Yields batches of samples that are on the device."""

    def to_device(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if tiles[0].is_cuda:  # a copy of memory that is not pinned would wait for all queued kernels
            tensor = tensor.pin_memory()
        return tensor.to(tiles[0].device, non_blocking=True)

    for numbers in batches:
        samples, symmetries = to_device(numbers.samples), to_device(numbers.symmetries)
        conditions = dataset.conditions(numbers.samples)
        clean, degraded = (member.index_select(0, samples) for member in (tiles[0], tiles[-1]))
        yield Batch(clean, degraded, samples, symmetries, None if conditions is None else to_device(conditions))


def _allocator(device: torch.device) -> Allocate | None:
    """Allocates pinned memory for a GPU; None for other devices."""
    if device.type != "cuda":
        return None
    return lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def copy_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies batches to the device; on a GPU the next one is copied while the current one is used."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.map(lambda array: torch.from_numpy(array).to(device))
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
    previous: tuple[Batch, torch.cuda.Event] | None = None
    failure = None
    try:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = batch.map(lambda array: torch.from_numpy(array).to(device, non_blocking=True))
                previous, ready = (copy, stream.record_event()), previous
            if ready:
                yield _wait_for_copy(*ready)
    except (OSError, ValueError) as error:
        failure = error  # raised in place of its batch, after the previous one
    if previous:
        yield _wait_for_copy(*previous)
    if failure:
        raise failure


def _wait_for_copy(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Waits until a batch was copied, so that its host arrays can be reused, and makes the current stream use it."""
    copied.synchronize()
    batch.map(lambda tensor: tensor.record_stream(torch.cuda.current_stream(tensor.device)))
    return batch
