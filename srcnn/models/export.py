"""Exports networks to ONNX and to torch.export's .pt2, for photos of any size.

Every file is compared with the PyTorch network before it is written, and says in its metadata how to use it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from srcnn.models.base import Network
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file
from srcnn.runtime.torch_internals import sizes_of_one_are_dynamic

TOLERANCE = 1e-5  # absolute for pixels in [0, 1], relative beyond
CHANNELS = {1: "luma, BT.601, full range: 0.299 R + 0.587 G + 0.114 B", 3: "RGB"}
EXTRA_FILE = "srcnn.json"  # the metadata in a .pt2
CONDITION = (f"float32 (N, {CONDITION_SIZE}): all zeros where nothing is known of the JPEG; else 1, then 1 where its "
             "chroma has half the resolution, then log2(step) / 8 of the first ten frequencies (zigzag) of the luma's "
             "quantization table and of the chroma's (zeros for greyscale)")
Inputs = tuple[torch.Tensor, ...]  # (degraded,), or (degraded, condition) for a conditioned network
Function = Callable[..., torch.Tensor]


def export_onnx(model: Network, path: str | Path, extra: Mapping[str, str] | None = None) -> float | None:
    """Writes an ONNX file: "degraded" (N, C, H, W) float32 in [0, 1] -> "restored", the same shape, not clipped.

    For any N, and any H and W from the network's `min_pixels`. A conditioned network has a second input, "condition",
    see `CONDITION`; export `model.with_condition(...)` to have none. The metadata_props are `metadata(model, extra)`.

    Returns:
        The largest difference between ONNX Runtime and PyTorch; None (not compared) where onnxruntime is missing.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the package onnx is missing, or the result differs; no file is written.
    """
    try:
        import onnx.checker

        from srcnn.models.onnx_graph import onnx_model
    except ImportError as error:
        raise UserError(f"{path}: an ONNX file needs the package onnx: pip install 'srcnn[export]'") from error
    plain = _for_export(model, path)
    content = onnx_model(plain, metadata(plain, extra)).SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except onnx.checker.ValidationError as error:
        raise UserError(f"{path}: not written, onnx.checker rejects the graph: {error}") from error
    network = _in_onnxruntime(content)
    difference = None if network is None else _largest_difference(plain, network, plain.min_pixels, path)
    with atomic_file(path) as file:
        file.write(content)
    return difference


def export_torch(model: Network, path: str | Path, extra: Mapping[str, str] | None = None) -> float:
    """Writes a .pt2 file of torch.export, which PyTorch alone runs: `torch.export.load(path).module()(degraded)`, or
    `(degraded, condition)` for a conditioned network.

    Input and output as for `export_onnx`, on the CPU, for sides of at least 2 pixels. `metadata(model, extra)` is in
    the file as JSON, "srcnn.json" of `extra_files`. A .pt2 is a zip with pickles: load only files that you trust.

    Returns:
        The largest difference between the file, read again, and the network.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the result differs; no file is written.
    """
    plain = _for_export(model, path)
    buffer = io.BytesIO()
    side = max(2, plain.min_pixels)  # torch.export specializes sizes of 1
    about = json.dumps(metadata(plain, {"min_pixels": str(side), **(extra or {})}), indent=1)
    torch.export.save(_trace(plain, side), buffer, extra_files={EXTRA_FILE: about})
    buffer.seek(0)
    difference = _largest_difference(plain, torch.export.load(buffer).module(), side, path)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
    return difference


def metadata(model: Network, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What one has to know to use the network without this package; `extra` adds keys or replaces them."""
    channels = model.config.channels
    return {
        "name": model.name,
        "license": "Apache-2.0",
        "layout": "NCHW",
        "range": "[0, 1] in; the output is not clipped",
        "channel": CHANNELS.get(channels, f"{channels} channels"),
        "channels": str(channels),
        "halo": str(model.halo),
        "multiple": str(model.multiple),
        "min_pixels": str(model.min_pixels),
        **({"condition": CONDITION} if model.conditioned else {}),
        **(extra or {}),
    }


def _for_export(model: Network, path: str | Path) -> Network:
    """A copy on the CPU, without centering and gradients."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{Path(path).parent}: no such folder")
    return model.without_centering().requires_grad_(False).eval()


def _in_onnxruntime(content: bytes) -> Function | None:
    """The network of an ONNX file, run by ONNX Runtime on the CPU; None where that is not installed."""
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
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return network


def _trace(model: Network, side: int) -> torch.export.ExportedProgram:
    """The network traced for any size from `side` pixels."""
    batch = torch.export.Dim("batch", min=1)
    sizes = {0: batch, 2: torch.export.Dim("height", min=side), 3: torch.export.Dim("width", min=side)}
    example = _inputs(model, torch.zeros(2, model.config.channels, side + 12, side + 14))
    with sizes_of_one_are_dynamic():
        program = torch.export.export(model, example, dynamic_shapes=(sizes, {0: batch})[: len(example)])
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def _inputs(model: Network, degraded: torch.Tensor) -> Inputs:
    """The photos, and for a conditioned network a condition of each: first zeros (unknown), then others."""
    conditions = torch.linspace(0, 1, CONDITION_SIZE) * torch.arange(len(degraded))[:, None]
    return (degraded, conditions) if model.conditioned else (degraded,)


def _largest_difference(model: Network, exported: Function, side: int, path: str | Path) -> float:
    """Between the outputs for noise of the smallest size, and of odd sizes. Raises ValueError above TOLERANCE."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch, height, width in ((1, side, side), (3, side, side + 1), (2, side + 28, side + 14), (1, side + 40, 99)):
        inputs = _inputs(model, torch.rand(batch, model.config.channels, height, width, generator=generator))
        with torch.no_grad():
            expected, found = model(*inputs), exported(*inputs)
        if expected.shape != found.shape:
            raise UserError(f"{path}: not written, its output is {tuple(found.shape)}, not {tuple(expected.shape)}")
        largest = max(largest, float((found - expected).abs().max()))
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(f"{path}: not written, it differs from the network by {largest:.2g}, "
                             f"more than {TOLERANCE:g}, on a photo of {width}x{height} pixels")
    return largest
