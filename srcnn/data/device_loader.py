"""This rank's batches on the device: read ahead and copied, or out of a split that lies in memory as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch

from srcnn.data.dataset import Allocate, PairBuffer, PairDataset, ShardDataset
from srcnn.data.loader import Batch, StreamConfig, train_batches, val_batches
from srcnn.data.shuffle import BatchNumbers, BatchPlan, batch_numbers
from srcnn.data.training_pairs import PairMaker
from srcnn.runtime.distributed import run_on_all_ranks

LARGEST_SHARE = 0.8  # of the free memory that a resident set may take


def device_batches(
    dataset: ShardDataset, config: StreamConfig, plan: BatchPlan, device: torch.device, group: Any,
    maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """This rank's parts of the global batches, uint8 tensors on the device.

    The tensors are valid until the next batch is asked for. Of clean tiles the `maker` makes pairs, on the host.

    Raises:
        DistributedError: on all ranks, at once: a resident set cannot be read or does not fit into the memory.
        OSError, ValueError: on this rank alone, in place of the batch that cannot be had.
    """
    if config.resident == "device":
        tiles = run_on_all_ranks(lambda: load_resident(dataset, config, device), group)
        return _resident_batches(dataset, tiles, batch_numbers(config.order_of(plan.seed, dataset), plan))
    source: PairDataset = dataset
    if config.resident == "host":
        source = run_on_all_ranks(lambda: ResidentDataset(dataset, config), group)
    return on_device(train_batches(source, config, plan, _allocator(device), maker), device)


class ResidentDataset:
    """All pairs of a dataset in the memory of the host. Raises ValueError where they do not fit."""

    in_memory, needs_crops = True, False

    def __init__(self, dataset: ShardDataset, config: StreamConfig) -> None:
        self.num_samples, self.tile_shape, self.is_local = dataset.num_samples, dataset.tile_shape, dataset.is_local
        self.num_members, self.conditions = dataset.num_members, dataset.conditions
        self._tiles = [tiles.numpy() for tiles in load_resident(dataset, config, torch.device("cpu"))]

    def read(
        self, samples: np.ndarray, buffer: PairBuffer | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `ShardDataset.read`."""
        buffer = buffer or PairBuffer(len(samples), self.tile_shape, num_members=self.num_members)
        for tiles, out in zip(self._tiles, (buffer.clean, buffer.degraded)):
            np.take(tiles, samples, axis=0, out=out, mode="clip")  # "raise" would go through another buffer
        return buffer.clean, buffer.degraded


def load_resident(dataset: ShardDataset, config: StreamConfig, device: torch.device) -> tuple[torch.Tensor, ...]:
    """All (clean, degraded) tiles of the split in the device's memory, uint8; the clean ones where there are no others.

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


def check_fits(dataset: ShardDataset, device: torch.device, ranks_here: int = 0) -> None:
    """Raises ValueError where the split does not fit into the memory of the device, or is not of one size.

    `ranks_here` share the memory of the host; 0: as many as the launcher started.
    """
    if dataset.manifest.encoding == "any":
        raise ValueError(f"{dataset.location}: pictures of several sizes cannot be resident: --stream.resident no")
    needed = dataset.num_members * dataset.num_samples * int(np.prod(dataset.tile_shape))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // (ranks_here or int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if needed > LARGEST_SHARE * free:
        sizes = f"{needed / 1e9:.1f} GB of tiles, {free / 1e9:.1f} GB free on {device} for this rank"
        raise ValueError(f"{dataset.location}: {sizes}: --stream.resident no")


def _resident_batches(
    dataset: ShardDataset, tiles: tuple[torch.Tensor, ...], batches: Iterator[BatchNumbers]
) -> Iterator[Batch]:
    """Batches out of pairs (clean, degraded) that are on the device."""

    def moved(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if tiles[0].is_cuda:  # which waits for what is queued before it copies memory that is not pinned
            tensor = tensor.pin_memory()
        return tensor.to(tiles[0].device, non_blocking=True)

    for numbers in batches:
        samples, symmetries = moved(numbers.samples), moved(numbers.symmetries)
        conditions = dataset.conditions(numbers.samples)
        clean, degraded = (member.index_select(0, samples) for member in (tiles[0], tiles[-1]))
        yield Batch(clean, degraded, samples, symmetries, None if conditions is None else moved(conditions))


def _allocator(device: torch.device) -> Allocate | None:
    """Makes arrays that a GPU can copy by itself; None where plain ones do."""
    if device.type != "cuda":
        return None
    return lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches of arrays -> of tensors on the device; a GPU copies the next one while it works on this one."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.map(lambda array: torch.from_numpy(array).to(device))
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
    before: tuple[Batch, Any] | None = None
    failure = None
    try:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = batch.map(lambda array: torch.from_numpy(array).to(device, non_blocking=True))
                before, ready = (copy, stream.record_event()), before
            if ready:
                yield _arrived(*ready)
    except (OSError, ValueError) as error:
        failure = error  # in the place of its batch: the one before comes first
    if before:
        yield _arrived(*before)
    if failure:
        raise failure


def _arrived(batch: Batch, copied: Any) -> Batch:
    """A batch that the copying stream has begun to bring, for use on the current one; its arrays are free then."""
    copied.synchronize()
    batch.map(lambda tensor: tensor.record_stream(torch.cuda.current_stream(tensor.device)))
    return batch
