"""Convolutions as products, ReLU and padding on a CPU: values and gradients as PyTorch's own."""

from contextlib import suppress
from operator import attrgetter

import pytest
import torch
from torch import nn
from torch.nn import functional

from srcnn.models.device import full_precision
from srcnn.models.layers import Col2imConv, Conv, Im2colConv, Relu, im2col, pad, relu, shift_and_add
from srcnn.models.srcnn import SRCNN, ModelConfig

SHAPES = [(1, 1, 13, 17), (3, 1, 9, 30), (2, 3, 19, 11)]


def gradients(function, *tensors):
    """The result of `function` and the gradients of all its inputs, for the same random gradient of the result."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = function(*inputs)
    result.backward(torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype))
    return result.detach(), *(tensor.grad for tensor in inputs)


def weights(num_out, num_in, kernel, dtype=torch.float64):
    return torch.randn(num_out, num_in, kernel, kernel, dtype=dtype), torch.randn(num_out, dtype=dtype)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 35, 20)])
@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_im2col_conv_is_a_convolution_with_its_gradients(shape, kernel, dtype):
    tensors = torch.randn(shape, dtype=dtype), *weights(5, shape[1], kernel, dtype)
    for ours, theirs in zip(gradients(Im2colConv.apply, *tensors), gradients(functional.conv2d, *tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_the_first_layer_has_the_same_gradient_on_every_processor(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer, maps = Conv(1, 64, 9), torch.randn(2, 1, 40, 40)
    layer(maps).square().mean().backward()
    ours, layer.weight.grad = layer.weight.grad, None
    functional.conv2d(maps, layer.weight, layer.bias).square().mean().backward()
    torch.testing.assert_close(ours, layer.weight.grad)


@pytest.mark.parametrize("num_out", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_scatter_is_a_convolution_with_its_gradients(num_out, kernel):
    tensors = torch.randn(2, 7, 11, 14, dtype=torch.float64), *weights(num_out, 7, kernel)
    ours, theirs = gradients(Col2imConv.apply, *tensors), gradients(functional.conv2d, *tensors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_columns_are_those_of_unfold():
    maps = torch.randn(3, 10, 8)
    torch.testing.assert_close(im2col(maps, 3), functional.unfold(maps[None], 3)[0])


def test_sum_shifted_of_a_hand_made_case():
    planes = torch.arange(2 * 2 * 3 * 3, dtype=torch.float32).view(1, 2, 2, 3, 3)
    expected = [[sum(planes[0, i, j, y + i, x + j] for i in (0, 1) for j in (0, 1)) for x in (0, 1)] for y in (0, 1)]
    assert shift_and_add(planes).tolist() == [expected]


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2), (9, 12)])
def test_padding_is_replicate_padding_with_its_gradient(monkeypatch, size, width, on_cpu):
    monkeypatch.setattr("srcnn.models.layers.use_cpu_kernels", lambda maps: on_cpu)
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    ours = gradients(lambda maps: pad(maps, width), maps)
    theirs = gradients(lambda maps: functional.pad(maps, (width,) * 4, mode="replicate"), maps)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_relu_in_bfloat16_equals_pytorchs_and_keeps_every_nan():
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)  # every bfloat16 there is
    expected = torch.relu(numbers)
    result = Relu.apply(numbers.clone())
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result[~result.isnan()], expected[~expected.isnan()])
    maps = torch.randn(3, 5, dtype=torch.bfloat16)
    for ours, theirs in zip(gradients(lambda m: relu(m * 1), maps), gradients(torch.relu, maps), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kernels", [(9, 1, 5), (9, 3, 5), (9, 5, 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_agrees_with_plain_convolutions_in_float64(kernels, channels, precision):
    torch.manual_seed(0)
    model = SRCNN(ModelConfig(kernels, channels=channels))
    exact = SRCNN(model.config).double()
    for name in ("conv1", "conv2", "conv3"):  # the same weights in PyTorch's own layers
        ours = getattr(model, name)
        plain = nn.Conv2d(ours.in_channels, ours.out_channels, ours.kernel_size).double()
        plain.load_state_dict(ours.state_dict())
        setattr(exact, name, plain)
    degraded = torch.rand(2, channels, 37, 29)
    clean = torch.rand(2, channels, 37, 29)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        restored = model(degraded)
    assert restored.dtype == torch.float32
    expected = exact(degraded.double())
    (restored - clean).square().mean().backward()
    (expected - clean).square().mean().backward()
    bound = 1e-5 if precision == "float32" else 1e-2
    assert (restored - expected).norm() <= bound * expected.norm()
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= bound * theirs.grad.norm(), ours.shape


def test_a_layer_takes_maps_of_any_layout_and_a_gradient_reaches_them():
    layer = Conv(3, 4, 3)
    plain = nn.Conv2d(3, 4, 3)
    plain.load_state_dict(layer.state_dict())
    wide = torch.randn(2, 3, 9, 20)[..., ::2]
    for maps in (wide, wide.contiguous(memory_format=torch.channels_last)):
        for ours, theirs in zip(gradients(layer, maps), gradients(plain, maps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        assert pad(Conv(1, 2, 3)(torch.rand(1, 1, 5, 5)), 1).grad_fn is None


def precisions():
    """Of each operation, and of PyTorch's older interface, which cannot be read where operations differ."""
    operations = [f"{backend}.{name}" for backend, names in BACKENDS.items() for name in names]
    found = {name: attrgetter(name)(torch.backends).fp32_precision for name in operations}
    with suppress(RuntimeError):
        found["older"] = torch.get_float32_matmul_precision()
    return found


BACKENDS = {"cudnn": ("conv", "rnn"), "cuda": ("matmul",), "mkldnn": ("matmul", "conv", "rnn")}
SETTINGS = {
    "none": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "one device": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "cudnn": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_precision_is_full_within_and_as_before_after(setting):
    try:
        SETTINGS[setting]()
        before = precisions()
        with full_precision():
            within = precisions()
        assert precisions() == before
        assert within.pop("older") == "highest" and set(within.values()) == {"ieee"}
    finally:  # PyTorch's defaults
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        for name in BACKENDS["mkldnn"]:
            getattr(torch.backends.mkldnn, name).fp32_precision = "none"


def test_the_precision_of_convolutions_comes_back_whichever_thread_ends_first():
    cudnn, convolution = torch.backends.cudnn, torch.backends.cudnn.conv
    before = convolution.fp32_precision
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert convolution.fp32_precision == "ieee" and not cudnn.allow_tf32
    with cudnn.flags(enabled=True, allow_tf32=False):
        assert not cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert convolution.fp32_precision == before and cudnn.allow_tf32 == (before == "tf32")
