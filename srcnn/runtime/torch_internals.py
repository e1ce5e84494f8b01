"""What srcnn takes from PyTorch beside its public interface, and why; tested with PyTorch 2.14.

tests/runtime/test_torch_internals.py fails where one of these means something else.
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

X86 = ("x86_64", "AMD64")  # values of platform.machine()
# oneDNN's convolution with what follows it in one pass, as torch.compile calls it; None in a build without oneDNN.
FUSED_CONV: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
FUSED_CONV_ADD: Any = getattr(getattr(torch.ops.mkldnn, "_convolution_pointwise_", None), "binary", None)


def cpu_has(feature: str) -> bool:
    """Whether an x86 CPU has "avx512_bf16" or "amx_tile"."""
    if capabilities := getattr(torch.cpu, "get_capabilities", None):  # public, but newer than 2.9
        return bool(capabilities().get(feature, False))
    return bool(getattr(torch.cpu, f"_is_{feature}_supported")())


def cpu_has_bf16() -> bool:
    """Whether this CPU has hardware for bfloat16. oneDNN reports any AVX-512 as such, so it is not asked on x86."""
    if platform.machine() in X86:
        return cpu_has("avx512_bf16") or cpu_has("amx_tile")
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_convolves_bf16() -> bool:
    """Whether this CPU has AMX, and oneDNN may use it (it heeds ONEDNN_MAX_CPU_ISA)."""
    return platform.machine() in X86 and cpu_has("amx_tile") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def skip_update_if(optimizer: torch.optim.Optimizer, condition: torch.Tensor) -> None:
    """Makes a fused optimizer's next step change nothing if a float32 tensor () on its device is 1.

    By `found_inf`, through which torch.amp.GradScaler tells fused optimizers. No public way leaves the device unasked.
    """
    optimizer.found_inf = condition  # type: ignore[attr-defined]


def zero_where_not_positive(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """int16 -> a copy of `values` with 0 where `of` is 0 or below: the gradient of ReLU.

    torch.where and masked_fill take seven times as long (PyTorch 2.14, one core).
    """
    return torch.ops.aten.threshold_backward(values, of, 0)


def set_state_note(state: Mapping[str, Any], text: str) -> None:
    """Writes a text beside the weights of a module's state_dict: `load_state_dict` ignores it, and refuses a key."""
    state._metadata[""]["srcnn"] = text  # type: ignore[attr-defined]


def state_note(state: Mapping[str, Any]) -> Any:
    """What `set_state_note` wrote; None without. Of a file, anything that its author put there."""
    metadata = getattr(state, "_metadata", {})
    return metadata.get("", {}).get("srcnn")


def sizes_of_one_are_dynamic() -> AbstractContextManager[None]:
    """Within, torch.export takes a dynamic size for one that may be 1; its Dim, Dim.DYNAMIC too, excludes that."""
    from torch.fx.experimental import _config

    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def ranks_ended(launch: Callable[[], Any]) -> tuple[signal.Signals | None, set[int]]:
    """What ended the ranks of `launch()`, a launcher of torchrun's that waits for them.

    Returns:
        The signal to the launcher that stopped them, or None; the statuses of those that failed, negative for signals.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch()
    except SignalException as stop:
        return stop.sigval, set()
    except ChildFailedError as error:
        return None, {failure.exitcode for failure in error.failures.values()}
    return None, set()
