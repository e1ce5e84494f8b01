"""Weights in files, .safetensors or .pth: dense tensors of finite numbers in bounds, or a ValueError.

Nothing in them is executed. A .pth is a zip of a pickle and of what its tensors hold. The pickle may name nothing but
what a plain state_dict is made of, and PyTorch gets it in a zip written anew, so that it reads what was looked at.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from srcnn.untrusted import OutOfBounds, open_regular

MAX_WEIGHTS_BYTES = 256 << 20  # 64 million weights, a thousand times the largest that is shipped
MAX_PARTS = 10_000  # tensors, or files in a .pth: what Adam keeps of a deep network is some thousands
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")}
)
State = dict[str, torch.Tensor]


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of a file, float32, by name, and the config that came with them ({} where there is none).

    Raises:
        ValueError: no such file, or something in it that is no finite dense tensor.
    """
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES):  # which may be replaced after it, by its owner
            state, about = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
        config = json.loads(about) if about else {}
        if not isinstance(config, dict):
            raise OutOfBounds("its config is damaged")
        return {name: _checked(name, tensor) for name, tensor in state.items()}, config
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from error
    except OutOfBounds as error:
        raise ValueError(f"{path}: {error}") from error
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # what torch raises on a damaged or unsafe file has no common base
        raise ValueError(f"{path}: not a file of plain weights: {str(error)[:200]}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], str | None]:
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        if len(names) > MAX_PARTS:
            raise OutOfBounds(f"holds {len(names)} tensors")
        return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("srcnn")


def _read_pth(path: Path) -> tuple[dict[str, Any], str | None]:
    state = load_plain(path, MAX_WEIGHTS_BYTES)
    if not isinstance(state, dict):
        raise OutOfBounds(f"not the weights of an SRCNN: {type(state).__name__}")
    about = vars(state).get("_metadata", {}) if hasattr(state, "__dict__") else {}
    return dict(dict.items(state)), about.get("", {}).get("srcnn")


def load_plain(path: Path, max_bytes: int) -> Any:
    """What torch.save wrote: tensors and plain values, of so many bytes at most.

    Raises:
        OutOfBounds: more, or a pickle that names something else.
        Exception: whatever PyTorch raises on a damaged file.
    """
    plain = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(plain, "w") as copy:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > max_bytes:
            raise OutOfBounds("not a file of plain weights: too many or packed parts")
        for part in parts:
            content = archive.read(part)
            if part.filename.endswith(".pkl"):
                _check_pickle(content)
            copy.writestr(part.filename, content)
    plain.seek(0)
    return torch.load(plain, map_location="cpu", weights_only=True)


def _check_pickle(content: bytes) -> None:
    """Raises OutOfBounds where a pickle names anything that a state_dict has no need of."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise OutOfBounds(f"not a file of plain weights: its pickle has {operation.name}")
        if operation.name == "GLOBAL" and argument not in GLOBALS:
            raise OutOfBounds(f"not a file of plain weights: it names {str(argument)[:99]}")


def _checked(name: Any, tensor: Any) -> torch.Tensor:
    """The tensor as float32."""
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise OutOfBounds(f"not the weights of an SRCNN: {str(name)[:99]} is {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise OutOfBounds(f"{name[:99]} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected floats")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise OutOfBounds(f"{name[:99]} has shape {tuple(tensor.shape)}, more than it holds")
    found = tensor.detach().to(torch.float32)
    if not torch.isfinite(found).all():
        raise OutOfBounds(f"{name[:99]} holds values that are not finite")
    return found


def config_differs(config: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What a file says of its network that its tensors do not; "" where they agree."""
    both = {key: (value, found[key]) for key, value in config.items() if key in found}
    told = {key: value for key, (value, other) in both.items() if type(value) is not type(other) or value != other}
    return ", ".join(f"{key} {str(value)[:99]}, its weights say {found[key]}" for key, value in told.items())
