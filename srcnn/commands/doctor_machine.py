"""The checks of `srcnn doctor` on the machine: packages, device, ports and names, memory, disk, trackers."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

from srcnn.models.base import NetworkConfig
from srcnn.models.device import prefers_bf16
from srcnn.runtime import files
from srcnn.runtime.distributed import INTERFACE, addresses_of, gloo_address, interface_to, is_loopback, is_own_address
from srcnn.runtime.parallel import num_cores
from srcnn.tracking.mlflow_tracker import mlflow_server
from srcnn.tracking.wandb_tracker import wandb_mode

OTHER_FILES_BYTES = 100_000_000  # upper bound for metrics, report and the trackers' pictures of a long run


class Finding(NamedTuple):
    """The result of a check: as it should be ("ok"), perhaps not intended ("note"), or something a job fails by."""

    level: Literal["ok", "note", "problem"]
    text: str
    hint: str = ""


ok, note, problem = partial(Finding, "ok"), partial(Finding, "note"), partial(Finding, "problem")


def check_packages() -> Iterator[Finding]:
    """The versions in use, and whether torchvision fits PyTorch. What is missing otherwise, `pip check` tells."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "accelerate", "numpy", "pillow")]
    yield ok(", ".join([f"python {platform.python_version()}", *versions]))
    try:
        import torchvision.utils  # noqa: F401  # imported by the report, at the end of a training
    except Exception as error:  # with another release of PyTorch: ImportError, RuntimeError, AttributeError, ...
        yield problem(f"torchvision, which the report needs, cannot be imported: {error}",
                      "install matching releases: pip install --upgrade torch torchvision")


def check_device(device: torch.device, ranks_here: int, compiles: bool) -> Iterator[Finding]:
    """GPUs or cores for the ranks of this machine, and the compiler that torch.compile needs on a CPU."""
    if device.type == "cpu":
        cores = num_cores()
        yield ok(f"no GPU; {pluralize(cores, 'core')}")
        if Path("/dev/nvidiactl").exists():
            yield note(f"this machine has an NVIDIA driver, but PyTorch {torch.__version__} finds no GPU",
                       "check nvidia-smi, CUDA_VISIBLE_DEVICES and the build of PyTorch")
        if ranks_here > cores:
            yield note(f"{ranks_here} ranks on {pluralize(cores, 'core')}", "use at most one rank for each core")
        if compiles and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
            yield problem("compile needs a C++ compiler, none is installed", "install g++, or --compile false")
        return
    num_gpus = torch.accelerator.device_count()
    if ranks_here > num_gpus:
        yield problem(f"{ranks_here} ranks on a machine with {pluralize(num_gpus, 'GPU')}",
                      f"use --ranks {num_gpus} and --num_processes {num_gpus}, or --machines for several machines")
    elif ranks_here < num_gpus:
        yield note(f"{ranks_here} of {num_gpus} GPUs of a machine are used", f"--num_processes {num_gpus} for all")
    else:
        yield ok(f"{pluralize(num_gpus, 'GPU')}, one rank on each")


def check_precision(setting: str | None, network: NetworkConfig, device: torch.device) -> Iterator[Finding]:
    """The precision that `mixed_precision` results in, and whether the device supports it and is fast with it."""
    is_fast = prefers_bf16(network, device)
    precision = setting or os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if setting == "auto":
        precision = "bf16" if is_fast else "no"
    if precision == "fp16" and device.type == "cpu":
        yield problem("mixed_precision fp16 needs a GPU, none is found here",
                      "run the check where the job will run, or use --mixed_precision auto")
    elif precision == "bf16" and not is_fast:
        yield note(f"mixed_precision bf16 is slower than float32 with this network on this {device.type}",
                   "--mixed_precision auto uses it only where it is faster")
    elif not precision:
        yield note("mixed_precision is null: the setting of `accelerate launch` applies", "--mixed_precision auto")
    else:
        yield ok(f"mixed_precision {setting or 'from the launcher'}: {precision}")


def check_rendezvous(ranks: int, machines: int, port: int) -> Iterator[Finding]:
    """Whether the ranks can connect: the address and port of the first machine, the interface of this one."""
    if ranks == 1:
        yield ok("a single rank needs no port")
        return
    host = os.environ.get("MASTER_ADDR", "")
    try:
        address = addresses_of(host)[0] if host else ""
    except OSError as error:
        yield problem(f"MASTER_ADDR {host} cannot be resolved: {error}",
                      "set the name or address of the first machine: MASTER_ADDR, or --main_process_ip")
    else:
        if is_own_address(address):
            yield _check_port(port)
        else:
            yield ok(f"{host} is {address}, another machine; run the check there to see whether port {port} is free")
    if machines > 1:
        yield from _check_interface()


def _check_port(port: int) -> Finding:
    try:
        socket.create_server(("", port)).close()
        return ok(f"port {port} is free")
    except (OSError, OverflowError) as error:
        with socket.create_server(("", 0)) as server:
            free = server.getsockname()[1]
        return problem(f"port {port} of this machine cannot be used: {getattr(error, 'strerror', error)}",
                       f"use another with --main_process_port (here --port), such as {free}")


def _check_interface() -> Iterator[Finding]:
    """Whether gloo will use an address that other machines can reach, after `choose_interface` of a training."""
    if setting := os.environ.get(INTERFACE):
        existing = psutil.net_if_addrs()
        if unknown := [name for name in setting.split(",") if name not in existing]:
            yield problem(f"{INTERFACE} {setting}: this machine has no interface {', '.join(unknown)}",
                          f"set it to one of {', '.join(existing)}, on the same network for all machines")
    elif is_loopback(address := gloo_address()):
        text = f"host name {socket.gethostname()} resolves to {address}, which other machines cannot reach"
        if interface := interface_to(os.environ.get("MASTER_ADDR", "")):
            yield note(text, f"gloo will use {interface}; set {INTERFACE} for another, or correct /etc/hosts")
        else:
            yield problem(text, f"set {INTERFACE} to the interface between the machines, or correct /etc/hosts")


def check_open_files(needed: int) -> Iterator[Finding]:
    """Whether the limit of open files of a process is high enough."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        yield problem(f"a process may open {limit} files, a rank needs up to {needed}", f"ulimit -n {2 * needed}")


def check_folder(folder: Path, needed_bytes: int, needed_files: int) -> Iterator[Finding]:
    """Whether a run can write, rename, link and lock in a folder, by doing it; the folder need not exist.

    Nothing is left there. `needed_bytes` and `needed_files` are those of the run's checkpoints.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        yield problem(f"{existing} is not a folder", "choose another --run, or move the file away")
        return
    disk = os.statvfs(existing)
    free = disk.f_frsize * disk.f_bavail
    room = f"{free / 1e6:,.1f} MB free, {needed_bytes / 1e6:,.1f} MB needed for checkpoints"
    try:
        with tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=existing) as inside:
            with files.atomic_file(Path(inside, "checkpoint")) as file:
                if hasattr(os, "posix_fallocate"):  # fails where a quota does not allow it, too
                    os.posix_fallocate(file.fileno(), 0, needed_bytes)
                file.write(b"checkpoint")
            files.flush_folder(Path(inside))
            yield from _check_links_and_locks(Path(inside), existing)
    except OSError as error:
        yield problem(f"{folder}: cannot be written: {error.strerror}; {room}",
                      "free some space, or choose a --run on a disk with room and permission")
        return
    if disk.f_files and disk.f_favail < needed_files:  # f_files 0: the file system has no such limit
        yield problem(f"{folder}: its disk has room for {disk.f_favail} more files, {needed_files} are needed",
                      "remove some files")
    level = note if free < needed_bytes + OTHER_FILES_BYTES else ok
    yield level(f"{folder}: can be written; {room}")


def _check_links_and_locks(inside: Path, folder: Path) -> Iterator[Finding]:
    try:
        (inside / "best").symlink_to("checkpoint")
    except OSError as error:
        yield problem(f"{folder}: symbolic links, such as `best`, cannot be made: {error.strerror}",
                      "choose a --run on another disk")
    with (inside / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield note(f"{folder}: files cannot be locked: {error.strerror}", "let only one training write there")


def check_trackers(trackers: Sequence[str], run: str) -> Iterator[Finding]:
    """Whether the trackers are installed, and have an account or a server."""
    yield ok("metrics.jsonl is always written")
    for name in trackers:
        try:
            if find_spec(name) is None:
                package = "mlflow-skinny" if name == "mlflow" else name
                yield problem(f"trackers: {name} is not installed", f"pip install {package}, or take it off the list")
            elif name == "wandb" and wandb_mode(None) == "offline":
                yield note("wandb is offline", f"run `wandb login` before, or `srcnn sync {run}` afterwards")
            elif name == "mlflow":
                yield ok(f"mlflow sends to {mlflow_server()}")
            else:
                yield ok(f"{name} is installed")
        except ValueError as error:
            yield problem(f"trackers: {error}")


def pluralize(number: int, noun: str) -> str:
    """1, "shard" -> "1 shard"; 2000, "shard" -> "2,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
