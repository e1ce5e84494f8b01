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
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from srcnn.models.device import prefers_bf16
from srcnn.models.srcnn import ModelConfig
from srcnn.models.unet import UNetConfig
from srcnn.runtime import files
from srcnn.runtime.distributed import INTERFACE, addresses_of, gloo_address, interface_to, is_loopback, is_own_address
from srcnn.tracking.mlflow_tracker import mlflow_problem
from srcnn.tracking.wandb_tracker import wandb_mode

BESIDE_BYTES = 100_000_000  # what metrics, report and the trackers' pictures of a long run stay below


class Finding(NamedTuple):
    """What a check found: as it should be ("ok"), perhaps not as wanted ("note"), or what a job would fail by."""

    level: Literal["ok", "note", "problem"]
    what: str
    hint: str = ""


ok, note, problem = (partial(Finding, level) for level in ("ok", "note", "problem"))


def check_versions(package: str) -> Iterator[Finding]:
    """The packages that `package` requires, and what they require of each other, as `pip check` does for all."""
    wanted = {canonicalize_name(item.name): item for item in requirements_of(package)}
    for user in (package, *wanted):
        for item in requirements_of(user):
            if canonicalize_name(item.name) in wanted and (mismatch := _mismatch(item)):
                yield problem(f"{item.name} {mismatch}, {user} needs {item.specifier or 'it'}",
                              f"pip install --upgrade '{item.name}{item.specifier}' {user}")
    try:
        import_module("torchvision")
    except Exception as error:  # of another release of PyTorch: ImportError, RuntimeError, AttributeError, ...
        yield problem(f"torchvision cannot be imported: {error}",
                      "install the two of one release together: pip install --upgrade torch torchvision")
    found = [f"{name} {metadata.version(name)}" for name, item in wanted.items() if not _mismatch(item)]
    yield ok(", ".join([f"python {platform.python_version()}", *found]))


def requirements_of(package: str) -> list[Requirement]:
    """What an installed package requires here, without its extras; nothing where it is not installed."""
    try:
        required = map(Requirement, metadata.requires(package) or ())
    except metadata.PackageNotFoundError:
        return []
    return [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]


def _mismatch(item: Requirement) -> str:
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
        yield ok(f"no GPU is seen here; {pluralize(cores, 'core')}")
        if Path("/dev/nvidiactl").exists():
            yield note(f"this machine has an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU",
                       "look at nvidia-smi, CUDA_VISIBLE_DEVICES and the build of PyTorch")
        if ranks_here > cores:
            yield note(f"{ranks_here} ranks for {pluralize(cores, 'core')}", "take at most one for each core")
        if compiles and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
            yield problem("compile needs a C++ compiler, and there is none", "install g++, or --compile false")
        return
    num_gpus = torch.accelerator.device_count()
    if ranks_here > num_gpus:
        hint = f"--ranks {num_gpus} and as many for the launcher, or --machines where they are on several"
        yield problem(f"{ranks_here} ranks on a machine with {pluralize(num_gpus, 'GPU')}", hint)
    elif ranks_here < num_gpus:
        yield note(f"{ranks_here} of {num_gpus} GPUs of a machine are used", f"--num_processes {num_gpus} for more")
    else:
        yield ok(f"{pluralize(num_gpus, 'GPU')}, a rank for each")


def check_precision(
    wanted: str | None, network: ModelConfig | UNetConfig, device: torch.device
) -> Iterator[Finding]:
    """Whether the device is fast with `mixed_precision`, and what "auto" or null comes to."""
    native = prefers_bf16(network, device)
    precision = wanted or os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if wanted == "auto":
        precision = "bf16" if native else "no"
    if precision == "fp16" and device.type == "cpu":
        hint = "check where the job is to run, or take --mixed_precision auto"
        yield problem("mixed_precision fp16 needs a GPU, none is seen here", hint)
    elif precision == "bf16" and not native:
        hint = "--mixed_precision auto takes it only where it is faster"
        yield note(f"mixed_precision bf16 is slower than float32 with this network on this {device.type}", hint)
    elif not precision:
        yield note("mixed_precision is null: what the launcher is given will count", "--mixed_precision auto")
    else:
        yield ok(f"mixed_precision {wanted or 'from the launcher'}: {precision}")


def check_rendezvous(ranks: int, machines: int, port: int) -> Iterator[Finding]:
    """Whether the ranks can find each other: the first machine's name and port, this machine's own name."""
    if ranks == 1:
        yield ok("a single rank needs no port and no names")
        return
    address = os.environ.get("MASTER_ADDR", "")
    try:
        first = addresses_of(address) if address else [""]
    except OSError as error:
        yield problem(f"MASTER_ADDR {address} cannot be resolved: {error}",
                      "give the name or address of the first machine: MASTER_ADDR, or --main_process_ip")
    else:
        if any(map(is_own_address, first)):
            yield _check_port(port)
        else:
            yield ok(f"{address} is {first[0]}, another machine; whether its port {port} is free shows there")
    if machines > 1:
        yield from _check_interface()


def _check_port(port: int) -> Finding:
    try:
        socket.create_server(("", port)).close()
        return ok(f"port {port} is free")
    except (OSError, OverflowError) as error:
        with socket.create_server(("", 0)) as server:
            other = server.getsockname()[1]
        return problem(f"port {port} of this machine cannot be used: {getattr(error, 'strerror', error)}",
                       f"take another with --main_process_port (and --port here), such as {other}")


def _check_interface() -> Iterator[Finding]:
    """Whether gloo will take an address that other machines reach: what `choose_interface` does in a training."""
    if wanted := os.environ.get(INTERFACE):
        known = psutil.net_if_addrs()
        if unknown := [name for name in wanted.split(",") if name not in known]:
            yield problem(f"{INTERFACE} {wanted}: this machine has no {', '.join(unknown)}",
                          f"set it to one of {', '.join(known)}, the same network for all machines")
    elif is_loopback(gloo_address()):
        name = f"this machine's own name {socket.gethostname()} does not lead to it from other machines"
        if interface := interface_to(os.environ.get("MASTER_ADDR", "")):
            yield note(name, f"{interface} will be taken; set {INTERFACE} for another, or correct /etc/hosts")
        else:
            yield problem(name, f"set {INTERFACE} to the network interface between the machines, or correct /etc/hosts")


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
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        yield problem(f"{existing} is no folder", "choose another --run, or move it away")
        return
    disk = os.statvfs(existing)
    free = disk.f_frsize * disk.f_bavail
    room = f"{_size(free)} free, {_size(needed_bytes)} needed for checkpoints"
    try:
        with tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=existing) as inside:
            with files.atomic_file(Path(inside, "checkpoint")) as file:
                if hasattr(os, "posix_fallocate"):  # tells of quotas too
                    os.posix_fallocate(file.fileno(), 0, needed_bytes)
                file.write(b"checkpoint")
            files.flush_folder(Path(inside))
            yield from _check_kind(Path(inside))
    except OSError as error:
        hint = "free some space, or choose a --run on another disk that you may write to"
        yield problem(f"{folder}: cannot be written: {error.strerror}; {room}", hint)
        return
    if disk.f_files and disk.f_favail < needed_files:  # no number of files at all: there is no limit
        yield problem(f"{folder}: {disk.f_favail} more files fit on its disk, {needed_files} are needed", "remove some")
    yield (note if free < needed_bytes + BESIDE_BYTES else ok)(f"{folder}: can be written; {room}")


def _check_kind(folder: Path) -> Iterator[Finding]:
    """Whether the file system knows links and locks."""
    try:
        (folder / "best").symlink_to("checkpoint")
    except OSError as error:
        hint = "choose a --run on a disk that has them: best is one"
        yield problem(f"{folder.parent}: no symbolic links can be made: {error.strerror}", hint)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "take care that only one training writes there"
            yield note(f"{folder.parent}: files cannot be locked: {error.strerror}", hint)


def _size(num_bytes: int) -> str:
    """1234567 -> "1.2 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def check_trackers(trackers: Sequence[str], run: str) -> Iterator[Finding]:
    """Whether the trackers are there, and where wandb and MLflow would keep the run."""
    yield ok("metrics.jsonl is always written")
    for name in trackers:
        if find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            yield problem(f"trackers: {name} is not installed", f"pip install {package}, or leave it out of trackers")
        elif name == "mlflow" and (reason := mlflow_problem()):
            yield problem(f"trackers: {reason}")
        elif name == "wandb":
            try:
                mode, hint = wandb_mode(None), f"wandb login before, or srcnn sync {run} afterwards"
                yield note("wandb is offline", hint) if mode == "offline" else ok(f"wandb is {mode}")
            except ValueError as error:
                yield problem(str(error))
        else:
            yield ok(f"{name} is installed")


def pluralize(number: int, noun: str) -> str:
    """1, "shard" -> "1 shard"; 2000 -> "2,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
