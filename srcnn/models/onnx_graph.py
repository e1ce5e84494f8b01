"""Builds the ONNX graph of a network node by node: the same bytes for the same weights, for nearly every runtime.

That is for the networks of GRAPHS; others are left to PyTorch's exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from srcnn.models.base import Network
from srcnn.models.srcnn import SRCNN
from srcnn.models.unet import LUMA_WEIGHTS, Block, UNet
from srcnn.photos.jpeg_quality import CONDITION_SIZE
from srcnn.runtime.errors import UserError

OPSET = 13  # of 2020; later versions of these operators add nothing needed here
EIGHT_BIT_WEIGHTS = 100_000  # layers with at least so many weights are stored in 8 bits by `compact`
INPUT, CONDITION, OUTPUT = "input", "condition", "output"


class Graph:
    """Nodes and constants of a graph under construction. Methods return the names of values; `to` sets that name."""

    def __init__(self, model: Network, half: bool = False, compact: bool = False) -> None:
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.values: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        for name, tensor in model.state_dict().items():
            (self.compact_constant if compact and tensor.dim() > 1 else self.constant)(name, tensor)

    def add(self, kind: str, *inputs: str, to: str = "", **settings: Any) -> str:
        result = to or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [result], name=f"{len(self.nodes)} {kind}", **settings))
        return result

    def constant(self, name: str, numbers: torch.Tensor) -> str:
        return self._stored(name, numbers, self.dtype)

    def _stored(self, name: str, numbers: torch.Tensor, dtype: Any) -> str:
        with np.errstate(over="ignore"):
            array = numbers.contiguous().numpy().astype(dtype)
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values too large for float16; export float32")
        self.values.append(numpy_helper.from_array(array, name))
        return name

    def compact_constant(self, name: str, numbers: torch.Tensor) -> str:
        """Numbers stored in float16, or as 8-bit whole numbers with a scale for each slice of the first dimension.

        They are computed with in float32: runtimes convert them once, when they load the file.
        """
        if numbers.numel() < EIGHT_BIT_WEIGHTS:
            return self._as_float32(self._stored(f"{name}.float16", numbers, np.float16), to=name)
        scale = numbers.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *[1] * (numbers.dim() - 1)) / 127
        whole = self._as_float32(self._stored(f"{name}.int8", (numbers / scale).round(), np.int8), to=f"{name}.whole")
        return self.add("Mul", whole, self._stored(f"{name}.scale", scale, np.float32), to=name)

    def _as_float32(self, numbers: str, to: str) -> str:
        dtype: dict[str, Any] = {"to": TensorProto.FLOAT}
        self.nodes.append(helper.make_node("Cast", [numbers], [to], name=f"{len(self.nodes)} Cast", **dtype))
        return to

    def whole_numbers(self, name: str, *numbers: int) -> str:
        self.values.append(helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))
        return name

    def convolution(self, layer: nn.Conv2d | nn.ConvTranspose2d, name: str, maps: str) -> str:
        kind = "Conv" if isinstance(layer, nn.Conv2d) else "ConvTranspose"
        pads, strides = [*layer.padding, *layer.padding], list(layer.stride)
        return self.add(kind, maps, f"{name}.weight", f"{name}.bias", pads=pads, strides=strides)

    def split(self, maps: str, sizes: list[int]) -> Iterator[str]:
        """Splits maps into parts of `sizes` channels."""
        names = [f"{maps}.{number}" for number in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [maps, self.whole_numbers(f"{maps}.sizes", *sizes)], names, axis=1))
        return iter(names)


def onnx_model(
    model: Network, metadata: dict[str, str], luma: bool = False, scale: int = 1, half: bool = False,
    compact: bool = False,
) -> onnx.ModelProto:
    """The network as ONNX: "input" (N, C, H, W) -> "output" (N, C, scale * H, scale * W), float32 or float16 (`half`).

    As `srcnn.models.export.PhotoNetwork` computes it, or with `luma` the network alone. A conditioned network has an
    input more, "condition" (N, CONDITION_SIZE).
    """
    graph = Graph(model, half, compact)
    if luma:
        GRAPHS[type(model)](graph, model, INPUT, OUTPUT)
    else:
        _photo_network(graph, model, scale)
    opsets = [helper.make_opsetid("", OPSET)]
    version = helper.find_min_ir_version_for(opsets)
    inputs, output = _ends(model, luma, scale, graph.dtype)
    whole = helper.make_graph(graph.nodes, type(model).__name__, inputs, [output], initializer=graph.values)
    built = helper.make_model(whole, producer_name="srcnn", opset_imports=opsets, ir_version=version)
    helper.set_model_props(built, metadata)
    return built


def traced_onnx_model(
    program: torch.export.ExportedProgram, model: Network, metadata: dict[str, str], luma: bool = False, scale: int = 1,
    half: bool = False,
) -> onnx.ModelProto:
    """The same of a network traced by torch.export, by PyTorch's exporter, in the version of ONNX that this chooses.

    Raises:
        ImportError: the package onnxscript is missing.
        UserError: the exporter does not know an operation of the network.
    """
    names = [INPUT, CONDITION] if model.conditioned else [INPUT]
    try:
        traced = torch.onnx.export(program, (), input_names=names, output_names=[OUTPUT], dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(f"{model.name}: PyTorch cannot export it to ONNX: {reason[:300]}") from error
    assert traced is not None
    built: onnx.ModelProto = traced.model_proto
    inputs, output = _ends(model, luma, scale, np.dtype(np.float16 if half else np.float32))
    for values, ends in ((built.graph.input, inputs), (built.graph.output, [output]), (built.graph.value_info, [])):
        del values[:]
        values.extend(ends)
    built.producer_name = "srcnn"
    helper.set_model_props(built, metadata)
    return built


def _ends(
    model: Network, luma: bool, scale: int, dtype: np.dtype[Any]
) -> tuple[list[onnx.ValueInfoProto], onnx.ValueInfoProto]:
    """The inputs and the output of the graph."""
    channels, kind = model.config.channels if luma else 3, helper.np_dtype_to_tensor_dtype(dtype)
    inputs = [helper.make_tensor_value_info(INPUT, kind, ["batch", channels, "height", "width"])]
    if model.conditioned:
        inputs.append(helper.make_tensor_value_info(CONDITION, kind, ["batch", CONDITION_SIZE]))
    sides = [side if scale == 1 else f"{side}_x{scale}" for side in ("height", "width")]
    return inputs, helper.make_tensor_value_info(OUTPUT, kind, ["batch", channels, *sides])


def _photo_network(graph: Graph, model: Network, scale: int) -> None:
    """PhotoNetwork.forward."""
    image = INPUT
    if scale > 1:
        graph.values.append(helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, scale, scale]))
        image = graph.add("Resize", INPUT, "", "scales", to="enlarged", mode="cubic", cubic_coeff_a=-0.5,
                          exclude_outside=1, coordinate_transformation_mode="half_pixel")
    if model.config.channels == 1:
        luma = graph.add("Conv", image, graph.constant("luma weights", torch.tensor(LUMA_WEIGHTS).view(1, 3, 1, 1)))
        change = graph.add("Sub", GRAPHS[type(model)](graph, model, luma, "luma restored"), luma)
        restored = graph.add("Add", image, change)
    else:
        restored = GRAPHS[type(model)](graph, model, image, "restored")
    black, white = (graph.constant(name, torch.tensor(value)) for name, value in (("black", 0.0), ("white", 1.0)))
    graph.add("Clip", restored, black, white, to=OUTPUT)


def _srcnn(graph: Graph, model: SRCNN, source: str, to: str) -> str:
    """Pad, Conv, Relu, Pad, ..., Conv, and Add where the network is residual."""
    last = source
    for number, width in enumerate(model.pads, 1):
        if width:
            pads = graph.whole_numbers(f"pads{number}", *[0, 0, width, width] * 2)
            last = graph.add("Pad", last, pads, to=f"padded{number}", mode="edge")
        result = to if number == 3 and not model.config.residual else f"maps{number}"
        last = graph.add("Conv", last, f"conv{number}.weight", f"conv{number}.bias", to=result)
        if number < 3:
            last = graph.add("Relu", last, to=f"relu{number}")
    return graph.add("Add", source, last, to=to) if model.config.residual else last


def _unet(graph: Graph, model: UNet, source: str, to: str) -> str:
    """The same as UNet.forward; the graph computes the padding from the size of the photo."""
    names = {module: name for name, module in model.named_modules()}
    modulations = _modulations(graph, model)

    def layer(module: nn.Module, maps: str) -> str:
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        return graph.convolution(module, names[module], maps)

    def blocks(sequence: nn.Module, maps: str) -> str:
        for block in sequence.children():
            assert isinstance(block, Block)
            inner = layer(block.conv1, maps)
            if model.conditioned:
                scale, shift = modulations[block]
                inner = graph.add("Add", graph.add("Add", inner, graph.add("Mul", inner, scale)), shift)
            maps = graph.add("Add", maps, layer(block.conv2, graph.add("Relu", inner)))
        return maps

    shape = graph.add("Shape", source)
    sides = graph.add("Slice", shape, graph.whole_numbers("two", 2), graph.whole_numbers("four", 4))
    missing = graph.add("Mod", graph.add("Neg", sides), graph.whole_numbers("multiple", model.multiple))
    edge = model.config.unshuffle
    after = graph.add("Add", missing, graph.whole_numbers("edge", edge))
    pads = graph.add("Concat", graph.whole_numbers("before", 0, 0, edge, edge, 0, 0), after, axis=0)
    maps = graph.add("Pad", source, pads, mode="edge")
    rearranges = model.config.ycbcr or model.config.unshuffle > 1
    maps = layer(model.head, _planes(graph, model, maps) if rearranges else maps)
    skipped = []
    for before, down in zip(model.before, model.down, strict=True):
        skipped.append(blocks(before, maps))
        maps = layer(down, skipped[-1])
    maps = blocks(model.bottom, maps)
    for up, then in zip(reversed(model.up), reversed(model.after), strict=True):
        maps = blocks(then, graph.add("Add", layer(up, maps), skipped.pop()))
    corner, axes = graph.whole_numbers("corner", 0, 0), graph.whole_numbers("rows and columns", 2, 3)
    maps = layer(model.tail, maps)
    change = graph.add("Slice", _pixels(graph, model, maps) if rearranges else maps, corner, sides, axes)
    return graph.add("Add", source, change, to=to)


def _modulations(graph: Graph, model: UNet) -> dict[nn.Module, tuple[str, str]]:
    """The scale and the shift of each block, (N, C, 1, 1)."""
    if not model.conditioned:
        return {}
    hidden = graph.add("Relu", graph.add("Gemm", CONDITION, "modulation.0.weight", "modulation.0.bias", transB=1))
    both = graph.add("Gemm", hidden, "modulation.2.weight", "modulation.2.bias", transB=1)
    both = graph.add("Unsqueeze", both, graph.whole_numbers("after the channels", 2, 3))
    inner = [block for blocks in model.stages for block in blocks if isinstance(block, Block)]
    parts = graph.split(both, [block.conv1.out_channels for block in inner for _ in range(2)])
    return {block: (next(parts), next(parts)) for block in inner}


def _planes(graph: Graph, model: UNet, pixels: str) -> str:
    """UNet.to_planes as one convolution."""
    channels, side = model.config.channels, model.config.unshuffle
    num_planes = channels * side**2
    unit_pixels = torch.eye(num_planes).view(num_planes, channels, side, side)
    kernels = model.to_planes(unit_pixels).flatten(1).t().reshape(unit_pixels.shape)
    return graph.add("Conv", pixels, graph.constant("to planes", kernels), strides=[side, side])


def _pixels(graph: Graph, model: UNet, planes: str) -> str:
    """UNet.to_pixels as one transposed convolution."""
    side = model.config.unshuffle
    kernels = model.to_pixels(torch.eye(model.config.channels * side**2)[..., None, None])
    return graph.add("ConvTranspose", planes, graph.constant("to pixels", kernels), strides=[side, side])


# Each adds the layers of a network from one value to another: (graph, model, source, to).
GRAPHS: dict[type[Network], Callable[[Graph, Any, str, str], str]] = {SRCNN: _srcnn, UNet: _unet}
