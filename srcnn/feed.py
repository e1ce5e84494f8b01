"""From the stream to the network: this rank's batches, resident or read ahead, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from srcnn.distributed import run_on_all_ranks
from srcnn.reader import Allocate, ShardReader
from srcnn.resident import ResidentReader, gathered, load_resident
from srcnn.stream import Batch, StreamConfig, picks, train_batches
from srcnn.training_pairs import PairMaker


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
        tiles = run_on_all_ranks(lambda: load_resident(reader, config, device), group)
        parts = picks(config.order_of(seed, reader), start, stop, batch_size, rank, num_ranks)
        return gathered(tiles, parts, reader.conditions)
    source = run_on_all_ranks(lambda: ResidentReader(reader, config), group) if config.resident == "host" else reader
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
