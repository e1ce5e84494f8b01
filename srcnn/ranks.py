"""What the ranks tell each other between CPUs: rarely, and small. Gradients and scores go their own way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from srcnn.signals import Stopped

ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT")


class RankFailed(RuntimeError):
    """What some rank could not do; every rank raises this at the same step, with the reasons of all."""


def process_group(timeout: timedelta | None = None) -> Any:
    """A group of all ranks for messages between CPUs; None for a single process. All ranks call it together."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return dist.new_group(backend="gloo", timeout=timeout) if several else None


def all_told(mine: MessageT, group: Any) -> list[MessageT]:
    """What every rank has to tell, by rank; all of them call it together."""
    if group is None:
        return [mine]
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, mine, group=group)
    return told


def together(work: Callable[[], ResultT], group: Any) -> ResultT:
    """`work()`, which every rank does. Raises as `raise_together` where one of them cannot, or was told to stop."""
    result, trouble = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others shall hear of it
        trouble = error
    raise_together(trouble, group)
    return cast(ResultT, result)


def raise_together(trouble: Exception | None, group: Any) -> None:
    """All ranks call this together, with their own trouble or None.

    Raises (on all ranks, where any has trouble):
        RankFailed: some rank failed.
        Stopped: none failed, but some rank was told to stop.
    """
    told = all_told((isinstance(trouble, Stopped), _named(trouble)) if trouble else None, group)
    failures = dict.fromkeys(text for stopped, text in filter(None, told) if not stopped)
    if failures:
        raise RankFailed("; ".join(failures)) from trouble
    for message in filter(None, told):
        raise Stopped(message[1])


def _named(trouble: Exception) -> str:
    plain = isinstance(trouble, (OSError, ValueError, Stopped)) and str(trouble)
    return str(trouble) if plain else f"{type(trouble).__name__}: {trouble}"
