"""The device, memory layout and precision that networks run with."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch

from srcnn.models.base import NetworkConfig, NetworkT
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.runtime.errors import UserError
from srcnn.runtime.torch_internals import X86, cpu_convolves_bf16, cpu_has, cpu_has_bf16

MALLOC_THRESHOLD_BYTES = 31 << 20  # the most that glibc's dynamic threshold reaches is 32 MB


class _Precisions(NamedTuple):
    """The process's precision of float32: of the older interface, None where it cannot be read; and by operation."""

    matmul: str | None
    of_operations: tuple[str, ...]


_precision_lock = threading.Lock()
_precisions_before: list[_Precisions] = []  # an entry for each thread in full_precision


def device_here() -> torch.device:
    """The accelerator of this machine, or its CPU; not MPS, which lacks float64 for exact sums."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None or accelerator.type == "mps" else accelerator


def restoring_device() -> torch.device:
    """Where photos are restored: the device that SRCNN_DEVICE names (cpu, cuda:1, mps), else `device_here()`.

    Restoring is computed in float32 or bfloat16 only, so that MPS can do it.

    Raises:
        UserError: PyTorch has no such device here.
    """
    name = os.environ.get("SRCNN_DEVICE")
    if not name:
        return device_here()
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: CUDA is not in this build
        reason = str(error).partition("\n")[0]
        raise UserError(f"SRCNN_DEVICE={name}: PyTorch cannot compute there: {reason}") from error
    return torch.device(name)


def to_device(model: NetworkT, device: torch.device) -> NetworkT:
    """Moves the network to the device, with the memory layout that is fast there."""
    is_matrix_products = device.type == "cpu" and isinstance(model, SRCNN)
    is_contiguous = device.type == "mps" or is_matrix_products or not model.takes_channels_last
    return model.to(device).to(memory_format=torch.contiguous_format if is_contiguous else torch.channels_last)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has hardware for bfloat16 instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return cpu_has_bf16()


def prefers_bf16(config: NetworkConfig, device: torch.device) -> bool:
    """Whether a network of this config is faster on the device in bfloat16 than in float32.

    On x86 all but an SRCNN need AMX to be faster: with AVX512_BF16 alone the convolutions of a U-Net took 1.5 to 1.7
    times as long as in float32, in training and restoring alike (oneDNN of PyTorch 2.14; one core of a Xeon without
    AMX).
    """
    if device.type == "cpu" and not isinstance(config, ModelConfig) and platform.machine() in X86:
        return cpu_has("amx_tile")
    return computes_bf16(device)


def restores_in_bf16(device: torch.device) -> bool:
    """Whether networks restore faster on the device in bfloat16 than in float32.

    A CPU needs AMX for it: with AVX512_BF16 alone the convolutions of SRCNN took 1.2 times as long as in float32
    (PyTorch 2.14, AMX hidden from its oneDNN).
    """
    return cpu_convolves_bf16() if device.type == "cpu" else computes_bf16(device)


@contextmanager
def full_precision() -> Iterator[None]:
    """Computes convolutions and matrix products of float32 in full float32, not in TF32 or bfloat16.

    The settings belong to the process: they are as before when the last thread leaves. Meanwhile both of PyTorch's
    interfaces can read them, `cudnn.allow_tf32` and `cudnn.conv.fp32_precision`.
    """
    with _precision_lock:
        _precisions_before.append(_precisions_before[0] if _precisions_before else _get_precisions())
        _set_precisions(_Precisions("highest", ("ieee",) * len(_operations())))
    try:
        yield
    finally:
        with _precision_lock:
            before = _precisions_before.pop()
            if not _precisions_before:
                _set_precisions(before)


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul,
            backends.mkldnn.conv, backends.mkldnn.rnn)


def _get_precisions() -> _Precisions:
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer interface was used, and differs between devices
        matmul = None
    return _Precisions(matmul, tuple(operation.fp32_precision for operation in _operations()))


def _set_precisions(precisions: _Precisions) -> None:
    """Sets those of the older interface first, which change others: PyTorch fails to read it where they disagree."""
    torch.backends.cudnn.allow_tf32 = precisions.of_operations[0] == "tf32"
    if precisions.matmul:
        torch.set_float32_matmul_precision(precisions.matmul)
    for operation, precision in zip(_operations(), precisions.of_operations, strict=True):
        operation.fp32_precision = precision


def raise_malloc_threshold() -> None:
    """Makes the C library reuse freed memory instead of returning it to the system.

    glibc returns freed blocks above a threshold, and the page faults of the next allocation take a quarter of the time
    of a training step, and half of that of restoring in float32. The threshold rises to the largest block freed so far:
    this one, of which no page is touched.
    """
    torch.empty(MALLOC_THRESHOLD_BYTES, dtype=torch.uint8)


def release_cached_memory(device: torch.device) -> None:
    """Gives memory that is freed but kept for reuse back to the device, or to the system, where the C library can.

    What `raise_malloc_threshold` keeps cannot become what oneDNN maps itself: the code of its kernels.
    """
    if device.type != "cpu":
        torch.accelerator.empty_cache()
    elif sys.platform == "linux":
        with suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)
