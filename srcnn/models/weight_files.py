"""Weights in files, .safetensors or .pth: found, written, and read as dense tensors of finite numbers within bounds.

Nothing in them is executed: pickles are read by PyTorch's `weights_only` loader, after a check for what would fill
the memory.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import save as safetensors_bytes

from srcnn.runtime.files import atomic_file
from srcnn.runtime.untrusted import InvalidInput, open_regular

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_WEIGHTS = "srcnn-915-q20"
MAX_WEIGHTS_BYTES = 256 << 20  # 64 million weights, a thousand times the largest that is shipped
MAX_PARTS = 10_000  # tensors, or files in a .pth: what Adam keeps of a deep network is some thousands
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
State = dict[str, torch.Tensor]


def find_weights(source: str | Path) -> Path:
    """The file of weights that `source` means: a shipped name, a run folder (its best checkpoint) or a file."""
    path = Path(source)
    for candidate in (path, path / "best" / "model.safetensors", path / "model.safetensors"):
        if candidate.is_file():
            return candidate
    if (shipped := WEIGHTS / f"{source}.safetensors").is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
    raise FileNotFoundError(f"{source}: no such file, run folder or shipped model; shipped: {names}")


def write_weights(
    path: Path, state: Mapping[str, torch.Tensor], config: DataclassInstance, about: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Writes safetensors, float32 or (`half`) float16, with the network's config and `about` in the file's header.

    Raises:
        ValueError: values that float16 cannot hold.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if half and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds values that float16 cannot")
    metadata = {"format": "pt", "srcnn": json.dumps(asdict(config)), **(about or {})}
    with atomic_file(path) as file:
        file.write(safetensors_bytes(tensors, metadata))


def save_tensors(content: Any, path: Path) -> None:
    """torch.save by way of memory: a full disk is an OSError, not one that torch raises while it cleans up."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of a file, float32, by name, and the config that came with them ({} where there is none).

    A .pth may hold a state_dict, or a checkpoint with one under "state_dict".

    Raises:
        ValueError: no such file, or something in it that is no finite dense tensor.
    """
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES):  # which may be replaced after it, by its owner
            state, about = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
        config = json.loads(about) if about else {}
        if not isinstance(config, dict):
            raise InvalidInput("its config is damaged")
        return {name: _checked(name, tensor) for name, tensor in state.items()}, config
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from error
    except InvalidInput as error:
        raise ValueError(f"{path}: {error}") from error
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # what torch raises on a damaged or unsafe file has no common base
        raise ValueError(f"{path}: not a file of plain weights: {str(error)[:200]}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], str | None]:
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        if len(names) > MAX_PARTS:
            raise InvalidInput(f"holds {len(names)} tensors")
        return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("srcnn")


def _read_pth(path: Path) -> tuple[dict[str, Any], str | None]:
    state = load_plain(path, MAX_WEIGHTS_BYTES)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise InvalidInput(f"not the weights of an SRCNN: {type(state).__name__}")
    about = getattr(state, "_metadata", {})  # where `save_state_dict` puts it
    return dict(state), about.get("", {}).get("srcnn")


def load_plain(path: Path, max_bytes: int) -> Any:
    """What torch.save wrote, now or before PyTorch 1.6: tensors and plain values, of so many bytes at most.

    Not by torch.load's mmap, which takes whatever bytes follow for those of a tensor whose record is too short.

    Raises:
        InvalidInput: more, or a pickle that names something else.
        Exception: whatever PyTorch raises on a damaged file.
    """
    with open_regular(path, max_bytes) as file:
        if file.read(2) == b"PK":
            parts = zipfile.ZipFile(file).infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if not stored or len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > max_bytes:
                raise InvalidInput("not a file of plain weights: too many or compressed parts")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:  # the one call that torch allows and that makes much of few bytes
                raise InvalidInput("not a file of plain weights: it names bytearray")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InvalidInput("not a file of plain weights: its pickle is damaged, or names functions or objects, "
                              "which are not loaded; save the model's state_dict() alone") from error


def _checked(name: Any, tensor: Any) -> torch.Tensor:
    """The tensor as float32."""
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise InvalidInput(f"not the weights of an SRCNN: {str(name)[:99]} is {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise InvalidInput(f"{name[:99]} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected floats")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidInput(f"{name[:99]} has shape {tuple(tensor.shape)}, more than it holds")
    found = tensor.detach().to(torch.float32)
    if not torch.isfinite(found).all():
        raise InvalidInput(f"{name[:99]} holds values that are not finite")
    return found


def config_differs(config: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What a file says of its network that its tensors do not; "" where they agree."""
    both = {key: (value, found[key]) for key, value in config.items() if key in found}
    differing = {key: value for key, (value, other) in both.items() if type(value) is not type(other) or value != other}
    return ", ".join(f"{key} {str(value)[:99]}, its weights say {found[key]}" for key, value in differing.items())
