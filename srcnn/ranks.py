"""What the ranks tell each other between CPUs: rarely, and small. Gradients and scores go their own way."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # it does not list them

from srcnn.signals import Stopped

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}  # Accelerate's
ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT")


class RankFailed(RuntimeError):
    """What some rank could not do; every rank raises this at the same step, with the reasons of all."""


def meet_again(device_type: str, timeout: timedelta) -> None:
    """Joins ranks that a launcher started anew; nothing where Accelerate can do it.

    The store of a static rendezvous, `accelerate launch`'s own, outlives the ranks, and in it they would find the
    addresses of those that died (PyTorch #135712, mended for other rendezvous): the restart's number tells them apart.
    """
    restart, backend = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), BACKENDS.get(device_type)
    is_static = os.environ.get("TORCHELASTIC_RUN_ID") == "none"
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if restart == "0" or not is_static or backend is None or ranks == 1 or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = PrefixStore(f"restart {restart}", TCPStore(address, port, is_master=False, timeout=timeout))
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=ranks)


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
