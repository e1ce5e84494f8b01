"""Finds, writes and safely reads files of weights: .safetensors or .pth.

Nothing in a file is executed: pickles are read by PyTorch's `weights_only` loader, and not at all where they would
fill the memory. Only dense tensors of finite numbers are accepted.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as safetensors_bytes

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_file
from srcnn.runtime.run_folder import is_inside
from srcnn.runtime.torch_internals import state_note
from srcnn.runtime.untrusted import InvalidInput, open_regular, parse_json

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_MODEL = "unet-jpeg"  # restores photos where no other weights are named
MAX_WEIGHTS_BYTES = 1 << 30  # of networks of other programs NAFNet and FBCNN have some 460 and 290 MB
MAX_PARTS = 10_000  # tensors, or files in a .pth: Adam's state of a deep network has some thousands
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32)  # of counters and indices in networks of other programs
# Averaged weights (BasicSR's params_ema) before those of the last step.
WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and DataParallel, and of torch.compile
State = dict[str, torch.Tensor]


def find_weights(source: str | Path) -> Path:
    """The path of the weights: of a file, of the best checkpoint of a run folder, or of a shipped name."""
    path = Path(source).expanduser()
    for candidate in (path, best := path / "best" / "model.safetensors", path / "model.safetensors"):
        if candidate.is_file():
            if candidate == best and not is_inside(best, path):
                raise UserError(f"{best}: leads out of the run folder; name the weights themselves")
            return candidate
    if (shipped := WEIGHTS / f"{source}.safetensors").is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
    shown = without_credentials(str(source))
    raise FileNotFoundError(f"{shown}: no such file, run folder or shipped model; shipped: {names}")


def write_weights(
    path: str | Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None, half: bool = False,
) -> None:
    """Writes safetensors, float32 or (`half`) float16, with `Network.about` and `metadata` in the file's header.

    Raises:
        ValueError: values that float16 cannot hold.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if half and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values too large for float16; write float32")
    header = {"format": "pt", "srcnn": json.dumps(about), **(metadata or {})}
    write_file(path, safetensors_bytes(tensors, header))


def save_tensors(content: Any, path: str | Path) -> None:
    """torch.save through memory, so that a full disk is an OSError and not an error of torch's cleaning up."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getbuffer())


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of a file by name, floats as float32, and the config stored with them ({} without one).

    A .pth may hold a state_dict, or a checkpoint with one under a key of WRAPPERS, of which the first counts. The
    names may have the prefixes of wrappers of modules, PREFIXES.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or something in it is not a dense tensor of finite numbers.
    """
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES):  # its size and kind
            state, config_json = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
        config = parse_json(config_json) if config_json else {}
        if not isinstance(config, dict):
            raise InvalidInput("its config is damaged")
        tensors = _without_prefixes(state)
        return {name: _checked(name, tensor) for name, tensor in tensors.items()}, config
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, or damaged: {error}") from error
    except InvalidInput as error:
        raise UserError(f"{path}: {error}") from error
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # torch raises unrelated types for damaged files
        raise UserError(f"{path}: not a file of plain weights: {str(error)[:200]}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], str | None]:
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        if len(names) > MAX_PARTS:
            raise InvalidInput(f"holds {len(names)} tensors, more than {MAX_PARTS}")
        return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("srcnn")


def _read_pth(path: Path) -> tuple[dict[str, Any], str | None]:
    state = load_plain(path, MAX_WEIGHTS_BYTES)
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict):
        raise InvalidInput(f"not the weights of an SRCNN: {type(state).__name__}")
    return dict(state), state_note(state)


def _without_prefixes(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors without the prefixes that all their names have, and without the counter of torch's AveragedModel."""
    state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    while prefix := next((it for it in PREFIXES if state and all(str(name).startswith(it) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_plain(path: Path, max_bytes: int) -> Any:
    """Reads tensors and plain values written by torch.save, also before PyTorch 1.6, of at most `max_bytes`.

    Without torch.load's mmap option, which reads past the end of records that are too short for their tensors.

    Raises:
        InvalidInput: more bytes, or a pickle with other objects.
        Exception: whatever PyTorch raises on a damaged file.
    """
    with open_regular(path, max_bytes) as file:
        if file.read(2) == b"PK":
            parts = zipfile.ZipFile(file).infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if not stored or len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > max_bytes:
                raise InvalidInput("not a file of plain weights: too many or compressed parts")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:  # the one call that torch allows and that allocates any size
                raise InvalidInput("not a file of plain weights: its pickle calls bytearray")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InvalidInput("not a file of plain weights: its pickle is damaged, or holds objects or functions, "
                              "which are not loaded; save only the model's state_dict()") from error


def _checked(name: Any, tensor: Any) -> torch.Tensor:
    """The tensor, floats as float32. Raises InvalidInput where it is not a dense, finite tensor."""
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise InvalidInput(f"not the weights of an SRCNN: {str(name)[:99]} is {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES + INTEGERS:
        raise InvalidInput(f"{name[:99]} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected floats")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidInput(f"{name[:99]} has shape {tuple(tensor.shape)}, more values than it holds")
    values = tensor.detach() if tensor.dtype in INTEGERS else tensor.detach().to(torch.float32)
    if not torch.isfinite(values).all():
        raise InvalidInput(f"{name[:99]} has values that are not finite")
    return values


def config_differs(stored: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    """The keys whose values in a stored config contradict the config of the weights, as text; "" where none do."""
    differing = [key for key in stored if key in actual
                 and (type(stored[key]) is not type(actual[key]) or stored[key] != actual[key])]
    return ", ".join(f"{key} is {str(stored[key])[:99]}, its weights say {actual[key]}" for key in differing)
