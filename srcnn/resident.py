"""A whole split in the memory of the host or of the device, with the order and the guarantees of the stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import torch

from srcnn.reader import Pairs, ShardReader
from srcnn.stream import Batch, Picks, StreamConfig, val_batches

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
