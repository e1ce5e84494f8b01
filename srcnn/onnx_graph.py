"""The networks as ONNX graphs, put together node by node, of the operators' versions that nearly every runtime has."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from srcnn.model import SRCNN
from srcnn.network import Network
from srcnn.unet import Block, UNet

OPSET = 13  # of 2020; the operators used have gained nothing since that is of use here
INPUT, OUTPUT = "degraded", "restored"
SIDES = ("batch", "channels", "height", "width")


class Graph:
    """Nodes and constants that grow; what a node gives is named by what its caller wants it called, or its number."""

    def __init__(self, model: Network) -> None:
        weights = model.state_dict().items()
        self.values = [numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in weights]
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *inputs: str, to: str = "", **settings: Any) -> str:
        result = to or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [result], name=f"{len(self.nodes)} {kind}", **settings))
        return result

    def whole_numbers(self, name: str, *numbers: int) -> str:
        self.values.append(helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))
        return name

    def convolution(self, layer: nn.Conv2d | nn.ConvTranspose2d, name: str, maps: str, to: str = "") -> str:
        kind = "Conv" if isinstance(layer, nn.Conv2d) else "ConvTranspose"
        pads, strides = [*layer.padding, *layer.padding], list(layer.stride)
        return self.add(kind, maps, f"{name}.weight", f"{name}.bias", to=to, pads=pads, strides=strides)


def onnx_model(model: Network, notes: dict[str, str]) -> onnx.ModelProto:
    """The network as ONNX: "degraded" (N, C, H, W) -> "restored"; `notes` are its metadata_props."""
    graph = Graph(model)
    kind = _unet(graph, model) if isinstance(model, UNet) else _srcnn(graph, model)
    shape = [model.config.channels if side == "channels" else side for side in SIDES]
    start, end = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (INPUT, OUTPUT))
    opsets = [helper.make_opsetid("", OPSET)]
    version = helper.find_min_ir_version_for(opsets)
    whole = helper.make_graph(graph.nodes, kind, [start], [end], initializer=graph.values)
    built = helper.make_model(whole, producer_name="srcnn", opset_imports=opsets, ir_version=version)
    helper.set_model_props(built, notes)
    return built


def _srcnn(graph: Graph, model: Network) -> str:
    """Pad, Conv, Relu, Pad, ..., Conv, and Add where it is residual."""
    assert isinstance(model, SRCNN)
    last = INPUT
    for number, width in enumerate(model.pads, 1):
        if width:
            pads = graph.whole_numbers(f"pads{number}", *[0, 0, width, width] * 2)
            last = graph.add("Pad", last, pads, to=f"padded{number}", mode="edge")
        result = OUTPUT if number == 3 and not model.residual else f"maps{number}"
        last = graph.add("Conv", last, f"conv{number}.weight", f"conv{number}.bias", to=result)
        if number < 3:
            last = graph.add("Relu", last, to=f"relu{number}")
    if model.residual:
        graph.add("Add", INPUT, last, to=OUTPUT)
    return "SRCNN"


def _unet(graph: Graph, model: UNet) -> str:
    """As UNet.forward, with the sizes counted by the graph itself: it holds for any photo."""
    names = {module: name for name, module in model.named_modules()}

    def layer(module: nn.Module, maps: str) -> str:
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        return graph.convolution(module, names[module], maps)

    def blocks(sequence: nn.Module, maps: str) -> str:
        for block in sequence.children():
            assert isinstance(block, Block)
            maps = graph.add("Add", maps, layer(block.conv2, graph.add("Relu", layer(block.conv1, maps))))
        return maps

    sides = graph.add("Slice", graph.add("Shape", INPUT), graph.whole_numbers("two", 2), graph.whole_numbers("four", 4))
    missing = graph.add("Mod", graph.add("Neg", sides), graph.whole_numbers("multiple", model.multiple))
    after = graph.add("Add", missing, graph.whole_numbers("one", 1))
    pads = graph.add("Concat", graph.whole_numbers("before", 0, 0, 1, 1, 0, 0), after, axis=0)
    maps = layer(model.head, graph.add("Pad", INPUT, pads, mode="edge"))
    skipped = []
    for before, down in zip(model.before, model.down, strict=True):
        skipped.append(blocks(before, maps))
        maps = layer(down, skipped[-1])
    maps = blocks(model.bottom, maps)
    for up, then in zip(reversed(model.up), reversed(model.after), strict=True):
        maps = blocks(then, graph.add("Add", layer(up, maps), skipped.pop()))
    corner, axes = graph.whole_numbers("corner", 0, 0), graph.whole_numbers("rows and columns", 2, 3)
    graph.add("Add", INPUT, graph.add("Slice", layer(model.tail, maps), corner, sides, axes), to=OUTPUT)
    return "U-Net"
