"""What a machine has for a training job: packages, device, names and ports, disks. The checks of `srcnn doctor`."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from srcnn import files
from srcnn.meeting import INTERFACE, addresses_of, gloo_address, interface_to, is_here, is_loopback
from srcnn.mlflow_tracker import mlflow_problem
from srcnn.model import ModelConfig, prefers_bf16
from srcnn.unet import UNetConfig
from srcnn.wandb_tracker import wandb_mode

BESIDE_BYTES = 100_000_000  # what metrics, report and the trackers' pictures of a long run stay below


class Finding(NamedTuple):
    """What a check found: as it should be ("ok"), perhaps not as wanted ("note"), or what a job would fail by."""

    level: Literal["ok", "note", "problem"]
    what: str
    cure: str = ""


ok, note, problem = (partial(Finding, level) for level in ("ok", "note", "problem"))


def check_versions(package: str, extras: Sequence[str] = ()) -> Iterator[Finding]:
    """The packages that `package` requires against its minimum and each other's, and whether torchvision's fits."""
    wanted = {canonicalize_name(item.name): item for item in requirements_of(package, extras)}
    for user in (package, *wanted):
        for item in requirements_of(user, extras if user == package else ()):
            if canonicalize_name(item.name) in wanted and (trouble := _unmet(item)):
                needs = f"{item.name} {trouble}, {user} needs {item.specifier or 'it'}"
                yield problem(needs, f"pip install --upgrade '{item.name}{item.specifier}' {user}")
    try:
        import_module("torchvision")
    except Exception as error:  # of another release of PyTorch: ImportError, RuntimeError, AttributeError, ...
        cure = "install the two of one release together: pip install --upgrade torch torchvision"
        yield problem(f"torchvision cannot be imported: {error}", cure)
    found = [f"{name} {metadata.version(name)}" for name in wanted if not _unmet(wanted[name])]
    yield ok(", ".join([f"python {platform.python_version()}", *found]))


def requirements_of(package: str, extras: Sequence[str] = ()) -> Iterator[Requirement]:
    """What an installed package requires here, with these of its extras; nothing where it is not installed."""
    with suppress(metadata.PackageNotFoundError):
        for item in map(Requirement, metadata.requires(package) or ()):
            if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                yield item


def _unmet(item: Requirement) -> str:
    """Why a requirement is not met; "" where it is."""
    try:
        version = metadata.version(item.name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    return "" if item.specifier.contains(version, prereleases=True) else f"is {version}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(device: torch.device, ranks_here: int, compiles: bool) -> Iterator[Finding]:
    """GPUs or cores against the ranks of this machine, and a compiler where one is needed."""
    if device.type == "cpu":
        cores = num_cores()
        yield ok(f"no GPU is seen here; {counted(cores, 'core')}")
        if Path("/dev/nvidiactl").exists():
            told = f"this machine has an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU"
            yield note(told, "look at nvidia-smi, CUDA_VISIBLE_DEVICES and the build of PyTorch")
        if ranks_here > cores:
            yield note(f"{ranks_here} ranks for {counted(cores, 'core')}", "take at most one for each core")
        if compiles and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
            yield problem("compile needs a C++ compiler, and there is none", "install g++, or --compile false")
        return
    num_gpus = torch.accelerator.device_count()
    if ranks_here > num_gpus:
        cure = f"--ranks {num_gpus} and as many for the launcher, or --machines where they are on several"
        yield problem(f"{ranks_here} ranks on a machine with {counted(num_gpus, 'GPU')}", cure)
    elif ranks_here < num_gpus:
        yield note(f"{ranks_here} of {num_gpus} GPUs of a machine are used", f"--num_processes {num_gpus} for more")
    else:
        yield ok(f"{counted(num_gpus, 'GPU')}, a rank for each")


def check_precision(
    wanted: str | None, network: ModelConfig | UNetConfig, device: torch.device
) -> Iterator[Finding]:
    """Whether the device is fast with `mixed_precision`, and what "auto" or null comes to."""
    native = prefers_bf16(network, device)
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    precision = ("bf16" if native else "no") if wanted == "auto" else wanted or told
    if precision == "fp16" and device.type == "cpu":
        cure = "check where the job is to run, or take --mixed_precision auto"
        yield problem("mixed_precision fp16 needs a GPU, none is seen here", cure)
    elif precision == "bf16" and not native:
        cure = "--mixed_precision auto takes it only where it is faster"
        yield note(f"mixed_precision bf16 is slower than float32 with this network on this {device.type}", cure)
    elif not precision:
        yield note("mixed_precision is null: what the launcher is told will count", "--mixed_precision auto")
    else:
        yield ok(f"mixed_precision {wanted or 'from the launcher'}: {precision}")


def check_meeting(ranks: int, machines: int, port: int) -> Iterator[Finding]:
    """Whether the ranks can find each other: the first machine's name and port, this machine's own name."""
    if ranks == 1:
        yield ok("a single rank needs no port and no names")
        return
    address = os.environ.get("MASTER_ADDR", "")
    try:
        addresses = addresses_of(address) if address else [""]
    except OSError as error:
        cure = "give the name or address of the first machine: MASTER_ADDR, or --main_process_ip of the launcher"
        yield problem(f"MASTER_ADDR {address} cannot be resolved: {error}", cure)
    else:
        yield from _check_port(addresses, address, port)
    yield from _check_own_name(machines)


def _check_port(addresses: Sequence[str], address: str, port: int) -> Iterator[Finding]:
    if not any(map(is_here, addresses)):
        yield ok(f"{address} is {addresses[0]}, another machine; whether its port {port} is free shows there")
        return
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        cure = f"take another with --main_process_port (and --port here), such as {_free_port()}"
        yield problem(f"port {port} of this machine cannot be used: {getattr(error, 'strerror', error)}", cure)
    else:
        yield ok(f"port {port} is free")


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _check_own_name(machines: int) -> Iterator[Finding]:
    """Whether gloo will take an address that other machines reach."""
    if machines == 1:
        return
    if told := os.environ.get(INTERFACE):
        known = psutil.net_if_addrs()
        if unknown := [name for name in told.split(",") if name not in known]:
            cure = f"set it to one of {', '.join(known)}, the same network for all machines"
            yield problem(f"{INTERFACE} {told}: this machine has no {', '.join(unknown)}", cure)
        return
    if not is_loopback(gloo_address()):
        return
    name = socket.gethostname()
    try:
        is_what = f"is {addresses_of(name)[0]}, where no other machine finds it"
    except OSError as error:
        is_what = f"cannot be resolved: {error}"
    if interface := interface_to(os.environ.get("MASTER_ADDR", "")):
        cure = f"{interface} will be taken; set {INTERFACE} for another, or mend /etc/hosts"
        yield note(f"this machine's own name {name} {is_what}", cure)
    else:
        cure = f"set {INTERFACE} to the network interface between the machines, or mend /etc/hosts"
        yield problem(f"this machine's own name {name} {is_what}", cure)


def check_open_files(needed: int) -> Iterator[Finding]:
    """Whether a process may have so many files open."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        yield problem(f"a process may open {allowed} files, a rank needs up to {needed}", f"ulimit -n {2 * needed}")


def check_folder(folder: Path, needed_bytes: int, needed_files: int) -> Iterator[Finding]:
    """Whether a run can write, rename, link and lock in a folder, by doing it; the folder need not be there yet, and
    nothing is left. `needed_bytes` are what its checkpoints take.
    """
    folder = folder.absolute()
    existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not existing.is_dir():
        yield problem(f"{existing} is no folder", "choose another --run, or move it away")
        return
    disk = os.statvfs(existing)
    free = disk.f_frsize * disk.f_bavail
    told = f"{_size(free)} free, {_size(needed_bytes)} needed for checkpoints"
    try:
        with tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=existing) as inside:
            with files.atomic_file(Path(inside, "checkpoint")) as file:
                if hasattr(os, "posix_fallocate"):  # tells of quotas too
                    os.posix_fallocate(file.fileno(), 0, needed_bytes)
                file.write(b"checkpoint")
            files.flush_folder(Path(inside))
            yield from _check_kind(Path(inside))
    except OSError as error:
        cure = "free some space, or choose a --run on another disk that you may write to"
        yield problem(f"{folder}: cannot be written: {error.strerror}; {told}", cure)
        return
    if disk.f_files and disk.f_favail < needed_files:  # no number of files at all: there is no limit
        yield problem(f"{folder}: {disk.f_favail} more files fit on its disk, {needed_files} are needed", "remove some")
    yield (note if free < needed_bytes + BESIDE_BYTES else ok)(f"{folder}: can be written; {told}")


def _check_kind(folder: Path) -> Iterator[Finding]:
    """Whether the file system knows links and locks."""
    try:
        (folder / "best").symlink_to("checkpoint")
    except OSError as error:
        cure = "choose a --run on a disk that has them: best is one"
        yield problem(f"{folder.parent}: no symbolic links can be made: {error.strerror}", cure)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cure = "take care that only one training writes there"
            yield note(f"{folder.parent}: files cannot be locked: {error.strerror}", cure)


def _size(num_bytes: int) -> str:
    """1234567 -> "1.2 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def check_trackers(trackers: Sequence[str], run: str) -> Iterator[Finding]:
    """Whether the trackers are there, and where wandb and MLflow would keep the run."""
    for name in trackers:
        if find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            yield problem(f"trackers: {name} is not installed", f"pip install {package}, or leave it out of trackers")
        elif name == "wandb":
            try:
                mode = wandb_mode(None)
                cure = f"wandb login before, or srcnn sync {run} afterwards"
                yield note("wandb is offline", cure) if mode == "offline" else ok(f"wandb is {mode}")
            except ValueError as error:
                yield problem(str(error))
        elif name == "mlflow" and (trouble := mlflow_problem()):
            yield problem(f"trackers: {trouble}")
        else:
            yield ok(f"{name} is installed")
    yield ok("metrics.jsonl is always written")


def counted(number: int, noun: str) -> str:
    """1, "shard" -> "1 shard"; 2000 -> "2,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
