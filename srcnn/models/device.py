"""What a network is computed with: device, memory layout, precision, and freed memory that is kept."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from srcnn.models.base import NetworkConfig, NetworkT
from srcnn.models.srcnn import SRCNN
from srcnn.models.unet import UNetConfig

X86 = ("x86_64", "AMD64")  # as platform.machine() has it
KEPT_BYTES = 31 << 20  # glibc's dynamic threshold goes up to 32 MB
_precision_lock = threading.Lock()
_precisions_before: list[tuple[str, str]] = []  # of convolutions and RNNs, once for every thread in full_precision


def device_here() -> torch.device:
    """What a process on this machine computes with; MPS, which has no float64 for exact sums, counts as none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None or found.type == "mps" else found


def to_device(model: NetworkT, device: torch.device) -> NetworkT:
    """Moves the network there, its weights in the memory layout that is fast there."""
    is_contiguous = device.type == "cpu" and isinstance(model, SRCNN)  # whose layers there are matrix products
    return model.to(device).to(memory_format=torch.contiguous_format if is_contiguous else torch.channels_last)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself instead of emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private, as the public torch.cpu.get_capabilities() is newer than the oldest PyTorch that is supported, 2.9.
    if platform.machine() in X86:  # where oneDNN calls bfloat16 supported with any AVX-512
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


def prefers_bf16(config: NetworkConfig, device: torch.device) -> bool:
    """Whether such a network is faster there in bfloat16 than in float32.

    On x86 a U-Net needs AMX for that: with AVX512_BF16 alone its convolutions took 1.5 to 1.7 times as long as in
    float32, in training and restoring alike (oneDNN of PyTorch 2.14; one core of a Xeon without AMX).
    """
    if device.type == "cpu" and isinstance(config, UNetConfig) and platform.machine() in X86:
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return computes_bf16(device)


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions on an NVIDIA GPU in whole float32 instead of TF32's 10 bits, as on the CPU.

    The setting is the process's: it comes back when the last thread that wanted it is done. Meanwhile it can be read
    by either of PyTorch's interfaces, `cudnn.allow_tf32` and `cudnn.conv.fp32_precision`.
    """
    with _precision_lock:
        _precisions_before.append(_precisions_before[0] if _precisions_before else _cudnn_precisions())
        _set_cudnn_precisions("ieee", "ieee")
    try:
        yield
    finally:
        with _precision_lock:
            before = _precisions_before.pop()
            if not _precisions_before:
                _set_cudnn_precisions(*before)


def _cudnn_precisions() -> tuple[str, str]:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision  # type: ignore[attr-defined]


def _set_cudnn_precisions(convolution: str, rnn: str) -> None:
    """allow_tf32 first, which changes the other two: PyTorch refuses to read it where it disagrees with them."""
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32 = convolution == "tf32"
    cudnn.conv.fp32_precision = convolution  # type: ignore[attr-defined]
    cudnn.rnn.fp32_precision = rnn  # type: ignore[attr-defined]


def raise_malloc_threshold() -> None:
    """Has the C library keep what tiles free for the next ones.

    glibc gives blocks above a threshold back to the system, and page faults to get them again take a quarter of the
    time of a training step, and half of restoring in float32. The threshold rises to the largest block freed so far:
    this one, of which no page is ever touched.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
