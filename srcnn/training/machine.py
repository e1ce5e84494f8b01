"""What a training runs on, for its record: hardware, processes, precision, versions and commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator

GIT_SECONDS = 5.0
LOOKS, LOOK_SECONDS = 5, 0.02  # for other programs on the cores
LIBRARIES = ("torch", "accelerate", "numpy", "pillow")


def describe_machine(accelerator: Accelerator, num_machines: int = 1) -> dict[str, str]:
    """Hardware, processes, precision, versions and commit of this training, by title, as people read them."""
    machines = f" on {num_machines} machines" if num_machines > 1 else ""
    facts = {
        "device": device_name(accelerator.device),
        "processes": f"{accelerator.num_processes}{machines}",
        "precision": precision_name(accelerator),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        "srcnn": version_of("srcnn"),
        **{name: version_of(name) for name in LIBRARIES},
        "commit": commit(),
    }
    return {title: fact for title, fact in facts.items() if fact}


def precision_name(accelerator: Accelerator) -> str:
    return "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def device_name(device: torch.device) -> str:
    """The model of the GPU with its memory, or of the processor with the threads that PyTorch uses."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads > 1)}"


def busy_cores(device: torch.device) -> str:
    """A hint, if other programs keep some of PyTorch's threads from their cores: every operation waits for the slowest
    thread. "" if they do not.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return ""
    others = sorted(_num_runnable() - 1 for _ in range(LOOKS))[LOOKS // 2]
    if others + threads <= (os.cpu_count() or threads):
        return ""
    return f"{others} other programs use the cores; if they go on, OMP_NUM_THREADS=1 is several times as fast"


def _num_runnable() -> int:
    """How many threads of the machine run or wait for a core, after LOOK_SECONDS; 1, this one, if that is not known."""
    time.sleep(LOOK_SECONDS)
    with suppress(OSError, ValueError, IndexError), open("/proc/loadavg", encoding="ascii") as file:
        return int(file.read().split()[3].partition("/")[0])
    return 1


def processor_name() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """"" where the package is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def commit(folder: Path = Path(__file__).parent) -> str:
    """The git commit of the source in `folder`, with "-dirty" where it has changed since; "" where git has none of it.

    An installed package may lie in the checkout of another project, which does not keep its files.
    """
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS, env=environment,
                              stdin=subprocess.DEVNULL)
        return done.stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", "--", "."):
            return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return ""
