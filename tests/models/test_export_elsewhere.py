"""ONNX files in the programs that people have: OpenCV, OpenVINO, and chaiNNer by its rules for shapes."""

import numpy as np
import pytest
import torch

from srcnn.models.export import PhotoNetwork, export_onnx
from srcnn.models.weights import load_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.tools.update_model_dims")
NETWORKS = [("srcnn-915-q20", 1), ("srcnn-915-x2", 2), ("srcnn-915-x3", 3), ("srcnn-915-x4", 4),
            ("unet-jpeg", 1)]
EDGE = 8  # pixels of the input


def in_opencv(path, photo):
    network = pytest.importorskip("cv2").dnn.readNetFromONNX(str(path))
    network.setInput(photo)
    return network.forward()


def in_openvino(path, photo):
    core = pytest.importorskip("openvino").Core()
    network = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return network(photo)[0]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network[0])
def exported(request, tmp_path_factory):
    """A shipped network's ONNX file, its scale, a photo, and the photo as PyTorch restores it."""
    name, scale = request.param
    path, model = tmp_path_factory.mktemp(name) / "model.onnx", load_model(name).with_condition(None)
    export_onnx(model, path, scale=scale)
    photo = torch.rand(1, 3, 35, 58, generator=torch.Generator().manual_seed(5))
    return path, scale, photo.numpy(), PhotoNetwork(model, scale)(photo).detach().numpy()


def test_opencv_restores_as_pytorch_does(exported):
    """Its float32 positions of three times enlarged pixels are off by some 1e-6 of a pixel for each pixel."""
    path, scale, photo, expected = exported
    np.testing.assert_allclose(in_opencv(path, photo), expected, atol=2e-5, rtol=0)


def test_openvino_restores_as_pytorch_does_but_enlarges_the_edge_otherwise(exported):
    """It ignores the attribute exclude_outside of Resize: the pixels beyond the edge are those at the edge."""
    path, scale, photo, expected = exported
    inner = (..., *[slice(EDGE * scale, -EDGE * scale)] * 2) if scale > 1 else ...
    np.testing.assert_allclose(in_openvino(path, photo)[inner], expected[inner], atol=1e-5, rtol=0)


def test_chainner_finds_channels_and_scale(exported):
    """As its backend/src/nodes/impl/onnx/utils.py: one input and output, NCHW, sides that are not fixed, and the size
    of the output inferred for an input of 16x16 pixels.
    """
    path, scale, *_ = exported
    model = onnx.load(path)
    (image,), (result,) = model.graph.input, model.graph.output
    batch, channels, height, width = image.type.tensor_type.shape.dim
    assert channels.dim_value == 3 and batch.dim_param and height.dim_param and width.dim_param
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    sizes = [[1, 3, 16, 16], [side.dim_param or side.dim_value for side in result.type.tensor_type.shape.dim]]
    fixed = onnx.tools.update_model_dims.update_inputs_outputs_dims(
        model, {image.name: sizes[0]}, {result.name: sizes[1]})
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True)
    shape = [side.dim_value for side in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert shape[1:] == [3, 16 * scale, 16 * scale]
