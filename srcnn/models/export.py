"""Exports networks to ONNX and to torch.export's .pt2, for photos of any size.

Every file is compared with the PyTorch network before it is written, and says in its metadata how to use it.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from srcnn.models.base import Network
from srcnn.models.unet import to_luma
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_file
from srcnn.runtime.torch_internals import sizes_of_one_are_dynamic

TOLERANCE = 1e-5  # absolute for pixels in [0, 1], relative beyond
HALF_TOLERANCE = 2e-3  # the same in float16: half a level of 255
COMPACT_TOLERANCE = 1.6e-2  # the same with weights of 8 bits, on noise; photos differ by a third of a level
SCALES = (1, 2, 3, 4)
BICUBIC_SUPPORT = 2  # pixels of the input to each side
CHANNELS = {1: "luma, BT.601, full range: 0.299 R + 0.587 G + 0.114 B", 3: "RGB"}
EXTRA_FILE = "srcnn.json"  # the metadata in a .pt2
CONDITION = (f"(N, {CONDITION_SIZE}): all zeros where nothing is known of the JPEG; else 1, then 1 where its "
             "chroma has half the resolution, then log2(step) / 8 of the first ten frequencies (zigzag) of the luma's "
             "quantization table and of the chroma's (zeros for greyscale)")
Inputs = tuple[torch.Tensor, ...]  # (input,), or (input, condition) for a conditioned network
Function = Callable[..., torch.Tensor]


class PhotoNetwork(nn.Module):
    """A network as other programs expect one: RGB (N, 3, H, W) in [0, 1] -> RGB, `scale` times as large, in [0, 1].

    A network for luma gets that of the photo, and its change is added to R, G and B. Enlarging is the bicubic
    interpolation of Pillow.
    """

    def __init__(self, network: Network, scale: int = 1) -> None:
        super().__init__()
        if (channels := network.config.channels) not in (1, 3):
            raise UserError(f"the network restores {channels} channels; expected one for luma (1) or RGB (3)")
        if scale not in SCALES:
            raise UserError(f"scale {scale}: expected {', '.join(map(str, SCALES))}")
        self.network, self.scale = network, scale

    def forward(self, image: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        conditions = () if condition is None else (condition,)
        if self.scale > 1:  # with antialias as Pillow does, also at the edges; float32 positions are off at scale 3
            enlarged = functional.interpolate(image.double(), scale_factor=self.scale, mode="bicubic", antialias=True)
            image = enlarged.float()
        if self.network.config.channels == 3:
            restored: torch.Tensor = self.network(image, *conditions)
        else:
            luma = to_luma(image)
            restored = image + (self.network(luma, *conditions) - luma)
        return restored.clamp(0, 1)


def export_onnx(
    model: Network, path: str | Path, extra: Mapping[str, str] | None = None, *, luma: bool = False, scale: int = 1,
    half: bool = False, compact: bool = False,
) -> float | None:
    """Writes an ONNX file: "input" (N, 3, H, W), RGB in [0, 1] -> "output" (N, 3, scale * H, scale * W), the same.

    For any N, and any H and W from the network's `min_pixels`; computed as by `PhotoNetwork`. A conditioned network has
    a second input, "condition", see `CONDITION`; export `model.with_condition(...)` to have none. The metadata_props
    are `metadata(...)`.

    Args:
        extra: metadata to add or to replace.
        luma: write the network for luma alone: (N, 1, H, W) in [0, 1] -> the same shape, not clipped.
        scale: enlarge by bicubic interpolation first, 2, 3 or 4 times, for a network trained for that scale.
        half: weights, input and output are float16.
        compact: the weights of large layers are stored in 8 bits, the others in float16, for files that are downloaded;
            input, output and what is computed are float32.

    Returns:
        The largest difference between ONNX Runtime and PyTorch; None (not compared) where onnxruntime is missing.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a package is missing; PyTorch cannot export an operation; `luma` with another scale or a network for
            RGB; `half` and `compact`; weights too large for float16; or the result differs. No file is written.
    """
    if half and compact:
        raise UserError("half and compact cannot be combined: one computes in float16, the other in float32")
    plain, whole = _for_export(model, path, luma, scale)
    about, shape = metadata(plain, extra, luma=luma, scale=scale), _example_shape(plain, luma, scale)
    try:
        import onnx.checker

        from srcnn.models.onnx_graph import GRAPHS, onnx_model, traced_onnx_model

        if type(plain) not in GRAPHS and (compact or scale != 1):  # ONNX Runtime lacks the exporter's kind of Resize
            raise UserError(f"{path}: {plain.name} can be exported at scale 1 alone, and not compact")
        if type(plain) in GRAPHS:
            content = onnx_model(plain, about, luma, scale, half, compact).SerializeToString()
        else:
            traced = copy.deepcopy(whole).half() if half else whole
            program = _trace(traced, shape, plain.conditioned, torch.float16 if half else torch.float32)
            content = traced_onnx_model(program, plain, about, luma, scale, half).SerializeToString()
    except ImportError as error:
        raise UserError(f"{path}: an ONNX file needs the package {error.name}: pip install 'srcnn[export]'") from error
    try:
        onnx.checker.check_model(content, full_check=True)
    except onnx.checker.ValidationError as error:
        raise UserError(f"{path}: not written, onnx.checker rejects the graph: {error}") from error
    tolerance = HALF_TOLERANCE if half else COMPACT_TOLERANCE if compact else TOLERANCE
    function = _in_onnxruntime(content)
    difference = None if function is None else _largest_difference(
        whole, function, shape, path, plain.conditioned, tolerance)
    write_file(path, content)
    return difference


def export_torch(
    model: Network, path: str | Path, extra: Mapping[str, str] | None = None, *, luma: bool = False, scale: int = 1
) -> float:
    """Writes a .pt2 file of torch.export, which PyTorch alone runs: `torch.export.load(path).module()(image)`, or
    `(image, condition)` for a conditioned network.

    Input and output as for `export_onnx`, on the CPU, for sides of at least 2 pixels. `metadata(...)` is in the file as
    JSON, "srcnn.json" of `extra_files`. A .pt2 is a zip with pickles: load only files that you trust.

    Returns:
        The largest difference between the file, read again, and the network.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: `luma` with another scale or a network for RGB; or the result differs. No file is written.
    """
    plain, whole = _for_export(model, path, luma, scale)
    buffer = io.BytesIO()
    channels, side = _example_shape(plain, luma, scale)
    side = max(2, side)  # torch.export specializes sizes of 1
    about = metadata(plain, {"min_pixels": str(side), **(extra or {})}, luma=luma, scale=scale)
    program = _trace(whole, (channels, side), plain.conditioned)
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(about, indent=1)})
    buffer.seek(0)
    function = torch.export.load(buffer).module()
    difference = _largest_difference(whole, function, (channels, side), path, plain.conditioned)
    write_file(path, buffer.getbuffer())
    return difference


def metadata(
    model: Network, extra: Mapping[str, str] | None = None, *, luma: bool = False, scale: int = 1
) -> dict[str, str]:
    """What one has to know to use the file without this package, in pixels of its input; `extra` adds or replaces."""
    channels, side = _example_shape(model, luma, scale)
    halo = model.halo if scale == 1 else -(-model.halo // scale) + BICUBIC_SUPPORT
    return {
        "name": model.name,
        "scale": str(scale),
        "layout": "NCHW",
        "range": "[0, 1] in; the output is not clipped" if luma else "[0, 1] in and out",
        "channel": CHANNELS[channels],
        "channels": str(channels),
        "halo": str(halo),
        "multiple": str(model.multiple),
        "min_pixels": str(side),
        **({"condition": CONDITION} if model.conditioned else {}),
        **(extra or {}),
    }


def _example_shape(model: Network, luma: bool, scale: int) -> tuple[int, int]:
    """The channels of the file's input, and its smallest side in pixels."""
    return (1 if luma else 3), -(-model.min_pixels // scale)


def _for_export(model: Network, path: str | Path, luma: bool, scale: int) -> tuple[Network, nn.Module]:
    """A copy on the CPU, without centering and gradients, and what is written of it."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{Path(path).parent}: no such folder")
    if luma and (model.config.channels != 1 or scale != 1):
        raise UserError("luma alone can be exported of a network with 1 channel, at scale 1; this one has "
                        f"{model.config.channels}, and the scale is {scale}")
    plain = model.without_centering().requires_grad_(False).eval()
    return plain, plain if luma else PhotoNetwork(plain, scale)


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
    ends = session.get_inputs()
    dtype = torch.float16 if ends[0].type == "tensor(float16)" else torch.float32

    def network(*inputs: torch.Tensor) -> torch.Tensor:
        arrays = {end.name: tensor.to(dtype).numpy() for end, tensor in zip(ends, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0]).float()

    return network


def _trace(
    model: nn.Module, shape: tuple[int, int], conditioned: bool, dtype: torch.dtype = torch.float32
) -> torch.export.ExportedProgram:
    """The network traced for photos of `shape`'s channels and any size from its side."""
    channels, side = shape
    batch = torch.export.Dim("batch", min=1)
    sizes = {0: batch, 2: torch.export.Dim("height", min=side), 3: torch.export.Dim("width", min=side)}
    example = tuple(it.to(dtype) for it in _inputs(torch.zeros(2, channels, side + 12, side + 14), conditioned))
    dynamic = (sizes, {0: batch})[: len(example)]
    with sizes_of_one_are_dynamic():
        program = torch.export.export(model, example, dynamic_shapes=dynamic,
                                      prefer_deferred_runtime_asserts_over_guards=True)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def _inputs(image: torch.Tensor, conditioned: bool) -> Inputs:
    """The photos, and for a conditioned network a condition of each: first zeros (unknown), then others."""
    conditions = torch.linspace(0, 1, CONDITION_SIZE) * torch.arange(len(image))[:, None]
    return (image, conditions) if conditioned else (image,)


def _largest_difference(
    model: nn.Module, exported: Function, shape: tuple[int, int], path: str | Path, conditioned: bool,
    tolerance: float = TOLERANCE,
) -> float:
    """Between the outputs for noise of the smallest size, and of odd sizes. Raises ValueError above the tolerance."""
    generator = torch.Generator().manual_seed(0)
    largest, (channels, side) = 0.0, shape
    for batch, height, width in ((1, side, side), (3, side, side + 1), (2, side + 28, side + 14), (1, side + 40, 99)):
        inputs = _inputs(torch.rand(batch, channels, height, width, generator=generator), conditioned)
        with torch.no_grad():
            expected, found = model(*inputs), exported(*inputs)
        if expected.shape != found.shape:
            raise UserError(f"{path}: not written, its output is {tuple(found.shape)}, not {tuple(expected.shape)}")
        largest = max(largest, float((found - expected).abs().max()))
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            raise UserError(f"{path}: not written, it differs from the network by {largest:.2g}, "
                             f"more than {tolerance:g}, on a photo of {width}x{height} pixels")
    return largest
