"""Other ranks: how they find each other, and small messages between CPUs. Gradients and scores go their own way."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, Queue
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # it does not list them

from srcnn.signals import StopRequested, exit_now

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}  # Accelerate's
INTERFACE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
RESOLVE_SECONDS = 5.0
logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT")


class DistributedError(RuntimeError):
    """What some rank could not do; every rank raises this at the same step, with the reasons of all."""


def new_cpu_group(timeout: timedelta | None = None) -> Any:
    """A group of all ranks for messages between CPUs; None for a single process. All ranks call it together."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return dist.new_group(backend="gloo", timeout=timeout) if several else None


def all_gather_objects(mine: MessageT, group: Any) -> list[MessageT]:
    """What every rank has to tell, by rank; all of them call it together."""
    if group is None:
        return [mine]
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, mine, group=group)
    return told


def run_on_all_ranks(work: Callable[[], ResultT], group: Any) -> ResultT:
    """`work()`, which every rank does. Raises as `raise_together` where one of them cannot, or was told to stop."""
    result, trouble = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others shall hear of it
        trouble = error
    raise_if_any_rank_failed(trouble, group)
    return cast(ResultT, result)


def raise_if_any_rank_failed(trouble: Exception | None, group: Any) -> None:
    """All ranks call this together, with their own trouble or None.

    Raises (on all ranks, where any has trouble):
        DistributedError: some rank failed.
        Stopped: none failed, but some rank was told to stop.
    """
    told = all_gather_objects((isinstance(trouble, StopRequested), _named(trouble)) if trouble else None, group)
    failures = dict.fromkeys(text for stopped, text in filter(None, told) if not stopped)
    if failures:
        raise DistributedError("; ".join(failures)) from trouble
    for message in filter(None, told):
        raise StopRequested(message[1])


def _named(trouble: Exception) -> str:
    plain = isinstance(trouble, (OSError, ValueError, StopRequested)) and str(trouble)
    return str(trouble) if plain else f"{type(trouble).__name__}: {trouble}"


def sum_over_ranks(sums: torch.Tensor) -> torch.Tensor:
    """Adds float64 sums of all ranks (in place where there are several); every rank gets the total."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


@contextmanager
def rendezvous(timeout: timedelta) -> Iterator[None]:
    """Within, the ranks connect to each other; where they cannot before the `timeout`, the process ends and says so.

    Gloo waits five times its timeout for a first connection (waitUntilConnected in gloo/transport/tcp/pair.cc).

    Raises:
        DistributedError: they cannot at all.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    choose_interface()
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    cure = (f"start the same command on every machine, let each reach {where}, and look with "
            f"`srcnn doctor --machines N` on each; gloo takes {INTERFACE} {os.environ.get(INTERFACE, '(not set)')}")
    line = f"the ranks did not meet within {timeout.total_seconds():g} s (timeout_minutes)"
    timer = threading.Timer(timeout.total_seconds(), exit_now, (f"srcnn: {line}: {cure}", 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(f"the ranks do not meet: {error}: {cure}") from error
    finally:
        timer.cancel()


def rejoin_after_restart(device_type: str, timeout: timedelta) -> None:
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


def choose_interface() -> None:
    """Tells gloo the interface to the other machines, where it would take the loopback: many a /etc/hosts, Debian's
    for one, has 127.0.1.1 for the machine's own name. What is set in the environment counts.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if is_one_machine or INTERFACE in os.environ or not is_loopback(gloo_address()):
        return
    if interface := interface_to(os.environ.get("MASTER_ADDR", "")):
        os.environ[INTERFACE] = interface
        logger.info("this machine's own name %s is a loopback address; gloo is told to take %s (%s)",
                    socket.gethostname(), interface, INTERFACE)


def gloo_address() -> str:
    """The address gloo takes when it is not told another: the first of the machine's own name that is its own, else
    the loopback (createDefaultDevice of PyTorch's ProcessGroupGloo.cpp).
    """
    try:
        return next(filter(is_own_address, addresses_of(socket.gethostname())), LOOPBACK)
    except OSError:
        return LOOPBACK


def interface_to(host: str) -> str:
    """The interface of this machine by which it reaches a host; if that cannot be told, the only one it has, or ""."""
    own = {row.address: name for name, rows in psutil.net_if_addrs().items() for row in rows
           if row.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(row.address)}
    try:
        (address, *_) = addresses_of(host)
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            interface = own.get(probe.getsockname()[0], "")
    except (OSError, ValueError):
        interface = ""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup} & set(own.values())
    return interface or (up.pop() if len(up) == 1 else "")


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_own_address(address: str) -> bool:
    """Whether an address is this machine's."""
    try:
        with socket.socket(_family(address)) as probe:
            probe.bind((address, 0))
        return True
    except OSError:
        return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def addresses_of(host: str, seconds: float = RESOLVE_SECONDS) -> list[str]:
    """The addresses of a name. Raises OSError where there is none or no answer in time."""
    answers: Queue[list[str] | OSError] = Queue()

    def ask() -> None:
        try:
            answers.put([str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()  # the system's own wait can be minutes and has no limit
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
