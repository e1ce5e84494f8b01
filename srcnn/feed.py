"""From the stream to the network: ranks in step with each other, batches on the device, pixels as it wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from srcnn.reader import Allocate, ShardReader
from srcnn.resident import ResidentReader, gathered, load_resident
from srcnn.stream import Batch, StreamConfig, picks, train_batches

ResultT = TypeVar("ResultT")


class StreamFailed(RuntimeError):
    """Samples of some rank cannot be had; every rank raises this after the same step, with all ranks' reasons."""


def feed(
    reader: ShardReader, config: StreamConfig, seed: int, start: int, stop: int, batch_size: int, rank: int,
    num_ranks: int, device: torch.device, group: Any,
) -> Iterator[Batch]:
    """This rank's parts of the global batches, uint8 tensors on the device, in step with the other ranks.

    The tensors are valid until the next batch is asked for.

    Raises:
        StreamFailed: on all ranks, at once where a resident set cannot be read or does not fit into the memory, else
            after the same step.
    """
    if config.resident == "device":
        tiles = together(lambda: load_resident(reader, config, device), group)
        return gathered(tiles, picks(config.order_of(seed, reader), start, stop, batch_size, rank, num_ranks))
    source = together(lambda: ResidentReader(reader, config), group) if config.resident == "host" else reader
    batches = train_batches(source, config, seed, start, stop, batch_size, rank, num_ranks, allocator(device))
    return on_device(in_step(batches, group), device)


def process_group() -> Any:
    """A group of all ranks for small messages between CPUs; None for a single process. All ranks call it together."""
    return dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None


def in_step(batches: Iterable[Batch], group: Any) -> Iterator[Batch]:
    """The same batches, as long as every rank has one: the ranks tell each other about the next while one is in use.

    Raises StreamFailed on all ranks where the batches of one end in an error.
    """
    coming = iter(batches)
    try:
        batch, failure = _next(coming)
        _agree(failure, _vote(failure, group), group)
        while batch is not None:
            following, failure = _next(coming)
            vote = _vote(failure, group)
            yield batch
            _agree(failure, vote, group)
            batch = following
    finally:
        if hasattr(coming, "close"):
            coming.close()


def together(read: Callable[[], ResultT], group: Any) -> ResultT:
    """`read()`, which every rank calls; StreamFailed on all of them where one cannot read."""
    result, failure = None, None
    try:
        result = read()
    except (OSError, ValueError) as error:
        failure = error
    _agree(failure, _vote(failure, group), group)
    return cast(ResultT, result)


def _next(coming: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    try:
        return next(coming, None), None
    except (OSError, ValueError) as error:
        return None, error


def _vote(failure: Exception | None, group: Any) -> tuple[Any, torch.Tensor]:
    """Starts telling the others; gives what to wait for and where the outcome will be."""
    failed = torch.tensor([int(failure is not None)])
    return (dist.all_reduce(failed, dist.ReduceOp.MAX, group=group, async_op=True) if group else None), failed


def _agree(failure: Exception | None, vote: tuple[Any, torch.Tensor], group: Any) -> None:
    work, failed = vote
    if work is not None:
        work.wait()
    if not failed.item():
        return
    reasons: list[str | None] = [str(failure) if failure else None]
    if group:
        mine, reasons = reasons[0], [None] * dist.get_world_size(group)
        dist.all_gather_object(reasons, mine, group=group)
    raise StreamFailed("; ".join(dict.fromkeys(reason for reason in reasons if reason))) from failure


def allocator(device: torch.device) -> Allocate | None:
    """Makes arrays that a GPU can copy by itself; None where plain ones do."""
    if device.type != "cuda":
        return None
    return lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches of arrays -> of tensors on the device; a GPU copies the next one while it works on this one."""
    if device.type != "cuda":
        for batch in batches:
            yield Batch(*(torch.from_numpy(array).to(device) for array in batch))
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
    waiting: list[tuple[Batch, Any]] = []
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = Batch(*(torch.from_numpy(array).to(device, non_blocking=True) for array in batch))
            waiting.append((copy, stream.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0))
    for copied in waiting:
        yield _arrived(*copied)


def _arrived(batch: Batch, copied: Any) -> Batch:
    """A batch that the copying stream has begun to bring, for use on the current one; its arrays are free then."""
    copied.synchronize()
    for tensor in batch:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return batch
