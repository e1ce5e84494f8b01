"""A whole split in the memory of the host or of the device, with the order and the guarantees of the stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import torch

from srcnn.dataset import Allocate, Pairs, ShardReader
from srcnn.loader import Batch, Picks, StreamConfig, picks, train_batches, val_batches
from srcnn.ranks import together
from srcnn.training_pairs import PairMaker

LARGEST_SHARE = 0.8  # of the free memory that a resident set may take


class ResidentReader:
    """Stands in for the reader it was loaded from. Raises ValueError where the split does not fit."""

    in_memory, needs_crops = True, False

    def __init__(self, reader: ShardReader, config: StreamConfig) -> None:
        self.num_samples, self.tile_shape, self.is_local = reader.num_samples, reader.tile_shape, reader.is_local
        self.num_members, self.conditions = reader.num_members, reader.conditions
        self._tiles = [tiles.numpy() for tiles in load_resident(reader, config, torch.device("cpu"))]

    def read(
        self, samples: np.ndarray, room: Pairs | None = None, crops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `ShardReader.read`."""
        room = room or Pairs(len(samples), self.tile_shape, num_members=self.num_members)
        for tiles, out in zip(self._tiles, (room.clean, room.degraded)):
            np.take(tiles, samples, axis=0, out=out, mode="clip")  # "raise" would go through another buffer
        return room.clean, room.degraded


def load_resident(reader: ShardReader, config: StreamConfig, device: torch.device) -> tuple[torch.Tensor, ...]:
    """All (clean, degraded) tiles of the split in the device's memory, uint8; the clean ones where there are no others.

    Raises:
        ValueError: they do not fit, or are pictures of several sizes.
    """
    check_fits(reader, device)
    shape = (reader.num_samples, *reader.tile_shape)
    members = tuple(torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(reader.num_members))
    for batch in val_batches(reader, config, 256):
        first, last = int(batch.samples[0]), int(batch.samples[-1]) + 1
        for tiles, part in zip(members, (batch.clean, batch.degraded)):
            tiles[first:last] = torch.from_numpy(part)
    return members


def check_fits(reader: ShardReader, device: torch.device, ranks_here: int = 0) -> None:
    """Raises ValueError where the split does not fit into the memory of the device, or is not of one size.

    `ranks_here` share the memory of the host; 0: as many as the launcher started.
    """
    if reader.manifest.encoding == "any":
        raise ValueError(f"{reader.location}: pictures of several sizes cannot be resident: --stream.resident no")
    needed = reader.num_members * reader.num_samples * int(np.prod(reader.tile_shape))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // (ranks_here or int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if needed > LARGEST_SHARE * free:
        told = f"{needed / 1e9:.1f} GB of tiles, {free / 1e9:.1f} GB free on {device} for this rank"
        raise ValueError(f"{reader.location}: {told}: --stream.resident no")


def gathered(
    tiles: tuple[torch.Tensor, ...], parts: Iterator[Picks], conditions: Callable[[np.ndarray], np.ndarray | None]
) -> Iterator[Batch]:
    """Batches out of pairs (clean, degraded) that are on the device; `conditions` as `ShardReader.conditions`."""

    def moved(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if tiles[0].is_cuda:  # which waits for what is queued before it copies memory that is not pinned
            tensor = tensor.pin_memory()
        return tensor.to(tiles[0].device, non_blocking=True)

    for part in parts:
        samples, told = moved(part.samples), conditions(part.samples)
        clean, degraded = (half.index_select(0, samples) for half in tiles)
        yield Batch(clean, degraded, samples, moved(part.symmetries), None if told is None else moved(told))


def feed(
    reader: ShardReader, config: StreamConfig, seed: int, start: int, stop: int, batch_size: int, rank: int,
    num_ranks: int, device: torch.device, group: Any, maker: PairMaker | None = None,
) -> Iterator[Batch]:
    """This rank's parts of the global batches, uint8 tensors on the device.

    The tensors are valid until the next batch is asked for. Of clean tiles the `maker` makes pairs, on the host.

    Raises:
        RankFailed: on all ranks, at once: a resident set cannot be read or does not fit into the memory.
        OSError, ValueError: on this rank alone, in place of the batch that cannot be had.
    """
    if config.resident == "device":
        tiles = together(lambda: load_resident(reader, config, device), group)
        parts = picks(config.order_of(seed, reader), start, stop, batch_size, rank, num_ranks)
        return gathered(tiles, parts, reader.conditions)
    source = together(lambda: ResidentReader(reader, config), group) if config.resident == "host" else reader
    batches = train_batches(source, config, seed, start, stop, batch_size, rank, num_ranks, allocator(device), maker)
    return on_device(batches, device)


def allocator(device: torch.device) -> Allocate | None:
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
    waiting: list[tuple[Batch, Any]] = []
    failure = None
    try:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = batch.map(lambda array: torch.from_numpy(array).to(device, non_blocking=True))
                waiting.append((copy, stream.record_event()))
            if len(waiting) > 1:
                yield _arrived(*waiting.pop(0))
    except (OSError, ValueError) as error:
        failure = error  # in the place of its batch: those before it come first
    for copied in waiting:
        yield _arrived(*copied)
    if failure:
        raise failure


def _arrived(batch: Batch, copied: Any) -> Batch:
    """A batch that the copying stream has begun to bring, for use on the current one; its arrays are free then."""
    copied.synchronize()
    batch.map(lambda tensor: tensor.record_stream(torch.cuda.current_stream(tensor.device)))
    return batch
