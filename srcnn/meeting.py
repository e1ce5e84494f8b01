"""How the ranks of a training find each other: by which network interface, for how long, and what is said if not."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, Queue

import psutil
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # it does not list them

from srcnn.ranks import RankFailed
from srcnn.signals import end

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}  # Accelerate's
INTERFACE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
RESOLVE_SECONDS = 5.0
logger = logging.getLogger(__name__)


@contextmanager
def meeting(timeout: timedelta) -> Iterator[None]:
    """Within, the ranks connect to each other; where they cannot before the `timeout`, the process ends and says so.

    Gloo waits five times its timeout for a first connection (waitUntilConnected in gloo/transport/tcp/pair.cc).

    Raises:
        RankFailed: they cannot at all.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    choose_interface()
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    cure = (f"start the same command on every machine, let each reach {where}, and look with "
            f"`srcnn doctor --machines N` on each; gloo takes {INTERFACE} {os.environ.get(INTERFACE, '(not set)')}")
    line = f"the ranks did not meet within {timeout.total_seconds():g} s (timeout_minutes)"
    timer = threading.Timer(timeout.total_seconds(), end, (f"srcnn: {line}: {cure}", 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        raise RankFailed(f"the ranks do not meet: {error}: {cure}") from error
    finally:
        timer.cancel()


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
        return next(filter(is_here, addresses_of(socket.gethostname())), LOOPBACK)
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


def is_here(address: str) -> bool:
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
