"""The network for other programs: ONNX, and torch.export's .pt2. Any size of photo, checked before it is written.

The ONNX graph is put together by us (onnx_graph.py), the same bytes for the same weights. What is needed to use it
stands in the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from srcnn.models.base import Network
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.runtime.files import atomic_file

TOLERANCE = 1e-5  # of pixels in [0, 1]; of results beyond 1, the same part of them
CHANNELS = {1: "luma, BT.601, full range: 0.299 R + 0.587 G + 0.114 B", 3: "RGB"}
EXTRA_FILE = "srcnn.json"  # in a .pt2, beside the program
CONDITION = (f"float32 (N, {CONDITION_SIZE}): all zeros where nothing is known of the JPEG; else 1, then 1 where its "
             "chroma has half the resolution, then log2(step) / 8 of the first ten frequencies (zigzag) of the luma's "
             "quantization table and of the chroma's (zeros for greyscale)")
Inputs = tuple[torch.Tensor, ...]  # degraded, and the condition of a conditioned network
Function = Callable[..., torch.Tensor]


def export_onnx(model: Network, path: Path, about: Mapping[str, str] | None = None) -> float | None:
    """Writes an ONNX file: "degraded" (N, C, H, W) float32 in [0, 1] -> "restored", the same shape, not clipped.

    That of a conditioned network has another input, "condition": `CONDITION`; `with_condition` gives one without.
    N is any, H and W are any from the network's `min_pixels`. The file's metadata_props are those of `metadata`.

    Returns:
        The largest difference from the PyTorch network that ONNX Runtime showed; None where it is not installed, and
        so nothing was compared.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the package onnx is missing, or the check failed; no file is left behind.
    """
    try:
        import onnx.checker

        from srcnn.models.onnx_graph import onnx_model
    except ImportError as error:
        raise ValueError(f"{path}: an ONNX file needs the package onnx: pip install 'srcnn[export]'") from error
    plain = _ready(model, path)
    built = onnx_model(plain, metadata(plain, about))
    content = built.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{path}: not written, the checker of ONNX refuses it: {error}") from error
    network = _in_onnxruntime(content)
    difference = None if network is None else _largest_difference(plain, network, plain.min_pixels, path)
    with atomic_file(path) as file:
        file.write(content)
    return difference


def export_torch(model: Network, path: Path, about: Mapping[str, str] | None = None) -> float:
    """Writes a .pt2 of torch.export: `torch.export.load(path).module()(degraded)`, which needs PyTorch only; of a
    conditioned network it wants (degraded, condition), see `export_onnx`.

    (N, C, H, W) float32 in [0, 1] on the CPU -> the same shape, not clipped; sizes as of `export_onnx`, from 2. What
    `metadata` says is in the file as JSON, named "srcnn.json" in `extra_files`. The file is a zip that holds pickles:
    load only those that you or somebody you trust wrote.

    Returns:
        The largest difference from the network that the file showed, read again.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the check failed; no file is left behind.
    """
    plain = _ready(model, path)
    buffer = io.BytesIO()
    side = max(2, plain.min_pixels)  # a single pixel is a special case to the tracer
    notes = json.dumps(metadata(plain, {"min_pixels": str(side), **(about or {})}), indent=1)
    torch.export.save(_program(plain, side), buffer, extra_files={EXTRA_FILE: notes})
    buffer.seek(0)
    difference = _largest_difference(plain, torch.export.load(buffer).module(), side, path)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
    return difference


def metadata(model: Network, about: Mapping[str, str] | None = None) -> dict[str, str]:
    """What somebody has to know who uses the network without this package; `about` adds to it, or says it better."""
    config = model.config
    return {
        "name": model.name,
        "license": "Apache-2.0",
        "layout": "NCHW",
        "range": "[0, 1] in; the output is not clipped",
        "channel": CHANNELS.get(config.channels, f"{config.channels} channels"),
        "channels": str(config.channels),
        "halo": str(model.halo),
        "multiple": str(model.multiple),
        "min_pixels": str(model.min_pixels),
        **({"condition": CONDITION} if model.conditioned else {}),
        **(about or {}),
    }


def _ready(model: Network, path: Path) -> Network:
    """A copy to be written: float32 weights for pixels as they are, on the CPU."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    return model.without_centering().requires_grad_(False).eval()


def _in_onnxruntime(content: bytes) -> Function | None:
    """The file's network as ONNX Runtime computes it on the CPU; None where that is not installed."""
    try:
        import onnxruntime  # type: ignore[import-untyped]

        from srcnn.models.onnx_graph import OUTPUT
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def network(*inputs: torch.Tensor) -> torch.Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return network


def _program(model: Network, side: int) -> torch.export.ExportedProgram:
    """The network traced for any size from `side` pixels."""
    from torch.fx.experimental import _config  # no public way: Dim.DYNAMIC refuses maps of a single pixel

    batch = torch.export.Dim("batch", min=1)
    sizes = {0: batch, 2: torch.export.Dim("height", min=side), 3: torch.export.Dim("width", min=side)}
    example = _inputs(model, torch.zeros(2, model.config.channels, side + 12, side + 14))
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(model, example, dynamic_shapes=(sizes, {0: batch})[: len(example)])
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine
    return program


def _inputs(model: Network, degraded: torch.Tensor) -> Inputs:
    """With conditions, where the network takes them: unknown, and others."""
    conditions = torch.linspace(0, 1, CONDITION_SIZE) * torch.arange(len(degraded))[:, None]
    return (degraded, conditions) if model.conditioned else (degraded,)


def _examples(model: Network, side: int) -> Iterator[Inputs]:
    """Noise in the smallest size, and in odd ones."""
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in ((1, side, side), (3, side, side + 1), (2, side + 28, side + 14), (1, side + 40, 99)):
        yield _inputs(model, torch.rand(batch, model.config.channels, height, width, generator=generator))


def _largest_difference(model: Network, network: Function, side: int, path: Path) -> float:
    """Over the examples, between the network and what was made of it. Raises ValueError where it is too large."""
    largest = 0.0
    for inputs in _examples(model, side):
        with torch.no_grad():
            expected, found = model(*inputs), network(*inputs)
        if expected.shape != found.shape:
            raise ValueError(f"{path}: not written, it makes {tuple(found.shape)} of {tuple(expected.shape)}")
        largest = max(largest, float((found - expected).abs().max()))
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(f"{path}: not written, it differs from the network by {largest:.2g}, "
                             f"more than {TOLERANCE:g}, on a photo of {found.shape[3]}x{found.shape[2]} pixels")
    return largest
