"""Small control messages between ranks over gloo, and their rendezvous. Gradients and scores use the device backend."""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import os
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # it does not list them

from srcnn.runtime.errors import EXPECTED
from srcnn.runtime.parallel import call_with_timeout
from srcnn.runtime.signals import StopRequested, exit_now

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}  # Accelerate's
INTERFACE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
RESOLVE_SECONDS = 5.0
GLOO_TRANSPORT = re.compile(r"\[\S*gloo/transport/\S+\.cc:\d+\] ")
logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class DistributedError(RuntimeError):
    """What some rank could not do; every rank raises this at the same step, with the reasons of all."""


class PeerLostError(RuntimeError):
    """Lost contact with another rank; `status` is the exit status, by which schedulers start the run again or not."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def new_cpu_group(timeout: timedelta | None = None) -> Any:
    """A group of all ranks for messages between CPUs; None for a single process. All ranks call it together."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return dist.new_group(backend="gloo", timeout=timeout) if several else None


def all_gather_json(message: Any, group: Any) -> list[Any]:
    """The messages of all ranks, by rank, as JSON has them; all of them call it together.

    Not Accelerate's gather_object, which goes through the GPUs and unpickles what it receives.
    """
    text = json.dumps(message).encode()
    if group is None:
        return [json.loads(text)]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(text)]), group=group)
    padded = torch.frombuffer(bytearray(text.ljust(int(max(sizes)))), dtype=torch.uint8)
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded, group=group)
    return [json.loads(each.numpy().tobytes()) for each in received]


def broadcast_state(state: Any, group: Any) -> Any:
    """Rank 0's nested dicts of tensors and plain values, on all ranks; all of them call it together."""
    if group is None:
        return state
    buffer = io.BytesIO()
    torch.save(state, buffer)
    size = torch.tensor([buffer.tell()])
    dist.broadcast(size, 0, group=group)
    content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    if dist.get_rank():
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0, group=group)
    return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)


def run_on_all_ranks(work: Callable[[], ResultT], group: Any) -> ResultT:
    """`work()`, which every rank does. Raises as `raise_if_any_rank_failed` where it fails on one of them."""
    result, local_error = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others have to know
        local_error = error
    raise_if_any_rank_failed(local_error, group)
    return cast(ResultT, result)


def raise_if_any_rank_failed(local_error: Exception | None, group: Any) -> None:
    """All ranks call this together, with their own error or None.

    Raises (on all ranks, where any has an error):
        DistributedError: some rank failed.
        StopRequested: none failed, but some rank was asked to stop.
    """
    mine = local_error and (isinstance(local_error, StopRequested), _describe(local_error))
    errors = [error for error in all_gather_json(mine, group) if error]
    if failures := dict.fromkeys(text for is_stop, text in errors if not is_stop):
        raise DistributedError("; ".join(failures)) from local_error
    if errors:
        raise StopRequested(errors[0][1])


def _describe(error: Exception) -> str:
    """The message of an expected error; of any other one its traceback too, which no other rank could print."""
    if isinstance(error, (*EXPECTED, StopRequested, DistributedError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}".rstrip()


def is_connection_error(error: RuntimeError) -> bool:
    """Whether a collective failed, as where another rank is gone. Gloo has no type for that: it raises plain
    RuntimeErrors that begin with the line of its transport's source, [.../gloo/transport/tcp/pair.cc:561].
    """
    return isinstance(error, dist.DistError) or type(error) is RuntimeError and bool(GLOO_TRANSPORT.match(str(error)))


@contextmanager
def rendezvous(timeout: timedelta) -> Iterator[None]:
    """Within, the ranks connect to each other; if they cannot before the `timeout`, the process ends with a message.

    Gloo waits five times its timeout for a first connection (waitUntilConnected in gloo/transport/tcp/pair.cc).

    Raises:
        DistributedError: they cannot at all.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    choose_interface()
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    hint = (f"start the same command on every machine, check that each can reach {address}, and run "
            f"`srcnn doctor --machines N` on each; gloo uses {INTERFACE} {os.environ.get(INTERFACE, '(not set)')}")
    line = f"rendezvous timed out after {timeout.total_seconds():g} s (timeout_minutes)"
    timer = threading.Timer(timeout.total_seconds(), exit_now, (f"srcnn: {line}: {hint}", 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:  # a GPU's too, which are no fault of the network
        is_of_network = is_connection_error(error) or "gloo" in str(error).lower()
        raise DistributedError(f"rendezvous failed: {error}: {hint}" if is_of_network else _describe(error)) from error
    finally:
        timer.cancel()


def rejoin_after_restart(device_type: str, timeout: timedelta) -> None:
    """Joins the ranks that a launcher has restarted; does nothing where Accelerate can do it.

    The store of a static rendezvous, `accelerate launch`'s own, outlives the ranks, and in it they would find the
    addresses of those that died (PyTorch #135712, fixed for other rendezvous): hence a prefix for each restart.
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
    """Sets gloo's interface to the one to the other machines where gloo would use the loopback: many a /etc/hosts,
    Debian's for one, has 127.0.1.1 for the machine's own name. What is set in the environment stays.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if is_one_machine or INTERFACE in os.environ or not is_loopback(gloo_address()):
        return
    if interface := interface_to(os.environ.get("MASTER_ADDR", "")):
        os.environ[INTERFACE] = interface
        logger.info("host name %s resolves to a loopback address; gloo uses interface %s (%s)", socket.gethostname(),
                    interface, INTERFACE)


def gloo_address() -> str:
    """The address gloo uses by default: the first of the machine's own name that is its own, else the loopback
    (createDefaultDevice of PyTorch's ProcessGroupGloo.cpp).
    """
    try:
        return next(filter(is_own_address, addresses_of(socket.gethostname())), LOOPBACK)
    except OSError:
        return LOOPBACK


def interface_to(host: str) -> str:
    """The interface of this machine by which it reaches a host; if that is unknown, the only one it has, or ""."""
    own = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries
           if entry.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(entry.address)}
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


def addresses_of(host: str) -> list[str]:
    """The addresses of a name. Raises OSError where there is none or no answer in RESOLVE_SECONDS."""
    try:  # the system's own wait can be minutes and has no limit
        entries = call_with_timeout(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM), RESOLVE_SECONDS)
    except UnicodeError as error:
        raise OSError(f"not a host name: {error}") from error
    return [str(entry[4][0]) for entry in entries]
