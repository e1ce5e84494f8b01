"""Convolutions as matrix products with their gradients: the fastest on a CPU for layers of few channels in or out.

A direct convolution fills the vector registers of a CPU with channels, of which a photo has one. A matrix product
fills them with pixels: 9-1-5 then trains several times as fast, most of all in bfloat16. The products are computed tile
by tile, so that a tile is still in the cache for its next layer; gradients of weights are summed in float32.

Maps are (N, C, H, W), contiguous; weights (O, C, k, k) and biases (O,), float32 or the dtype of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from srcnn.runtime.torch_internals import FUSED_CONV, FUSED_CONV_ADD, zero_where_not_positive

STRIP_ROWS = 8  # of the float32 matrix of a tile of 128 pixels at a time: 0.3 MB, which stay in the cache
MAX_PLANES = 256  # rows of the im2col matrix: with more, memory and time exceed those of a direct convolution


def im2col(maps: torch.Tensor, kernel: int) -> torch.Tensor:
    """(C, H, W) -> (C * kernel^2, H' * W'): the pixels under each weight of the kernel, at every position it fits."""
    channels, height, width = maps.shape
    rows, columns = height - kernel + 1, width - kernel + 1
    channel, down, right = maps.stride()
    windows = maps.as_strided((channels, kernel, kernel, rows, columns), (channel, down, right, down, right))
    return windows.reshape(channels * kernel**2, rows * columns)


def shift_and_add(planes: torch.Tensor) -> torch.Tensor:
    """(O, k, k, H, W) -> (O, H', W') float32: the sum over k x k of the planes, each shifted by its position there."""
    num_maps, kernel, _, height, width = planes.shape
    channel, kernel_down, kernel_right, down, right = planes.stride()
    size = (num_maps, kernel, kernel, height - kernel + 1, width - kernel + 1)
    shifted = planes.as_strided(size, (channel, kernel_down + down, kernel_right + right, down, right))
    if planes.dtype == torch.bfloat16:
        return shifted.sum((1, 2), dtype=torch.float32)
    total = shifted[:, 0, 0].clone()  # in float32 ten times as fast as `sum`
    for position in range(1, kernel**2):
        total += shifted[:, position // kernel, position % kernel]
    return total


class Im2colConv(torch.autograd.Function):
    """A convolution without padding by `im2col`, for few input channels, and for 1x1 (the maps are the matrix).

    In float32 the output of a larger kernel is PyTorch's own, which is as fast; only the gradient is by `im2col`.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        kernel = weight.shape[-1]
        if kernel > 1 and maps.dtype == torch.float32:
            return functional.conv2d(maps, weight, bias)
        flat, shift = weight.to(maps.dtype).flatten(1), bias.to(maps.dtype)[:, None]
        results = maps.new_empty(len(maps), len(weight), maps.shape[2] - kernel + 1, maps.shape[3] - kernel + 1)
        for tile, result in zip(maps, results):
            torch.addmm(shift, flat, im2col(tile, kernel), out=result.flatten(1))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        kernel, flat = weight.shape[-1], weight.to(maps.dtype).flatten(1)
        grads = grads.contiguous()
        grad_weight = torch.zeros_like(weight).flatten(1)
        rows = STRIP_ROWS if kernel > 1 and maps.dtype == torch.float32 else grads.shape[2]
        for tile, grad in zip(maps, grads):
            for top in range(0, grads.shape[2], rows):
                columns = im2col(tile[:, top : top + rows + kernel - 1], kernel)
                grad_weight += grad[:, top : top + rows].flatten(1) @ columns.t()
        grad_maps = None
        if ctx.needs_input_grad[0] and kernel == 1:
            grad_maps = torch.empty_like(maps)
            for grad, result in zip(grads, grad_maps):
                torch.mm(flat.t(), grad.flatten(1), out=result.flatten(1))
        elif ctx.needs_input_grad[0]:
            grad_maps = functional.conv_transpose2d(grads, weight.to(maps.dtype))
        return grad_maps, grad_weight.view_as(weight), grads.sum((0, 2, 3)).to(weight.dtype)


class Col2imConv(torch.autograd.Function):
    """A convolution without padding by `shift_and_add`, for few output channels. The output is float32."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        num_maps, _, kernel, _ = weight.shape
        flat = weight.to(maps.dtype).permute(0, 2, 3, 1).flatten(0, 2)
        shape = (num_maps, kernel, kernel, *maps.shape[2:])
        results = [shift_and_add((flat @ tile.flatten(1)).view(shape)) for tile in maps]
        return torch.stack(results) + bias[:, None, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        kernel = weight.shape[-1]
        # The gradient of a pixel collects from the outputs around it, with the kernel flipped.
        flat = weight.to(maps.dtype).flip(2, 3).permute(1, 0, 2, 3).flatten(1)
        padded = functional.pad(grads.to(maps.dtype), (kernel - 1,) * 4)
        grad_weight = torch.zeros_like(weight).permute(1, 0, 2, 3).flatten(1)
        grad_maps = torch.empty_like(maps)
        for tile, around, result in zip(maps, padded, grad_maps):
            spread = im2col(around, kernel)
            torch.mm(flat, spread, out=result.flatten(1))
            grad_weight += tile.flatten(1) @ spread.t()
        shape = (maps.shape[1], len(weight), kernel, kernel)
        grad_weight = torch.empty_like(weight).copy_(grad_weight.view(shape).permute(1, 0, 2, 3).flip(2, 3))
        return grad_maps, grad_weight, grads.sum((0, 2, 3))


class Relu(torch.autograd.Function):
    """max(0, x) of bfloat16 in place, computed on the bits as int16, which have the same sign: four times as fast."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor) -> torch.Tensor:
        torch.threshold_(maps.view(torch.int16), -128, 0)  # the bits of -inf; NaNs with a sign bit lie above, and stay
        ctx.mark_dirty(maps)
        ctx.save_for_backward(maps)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> torch.Tensor:
        maps, = ctx.saved_tensors
        bits = zero_where_not_positive(grads.contiguous().view(torch.int16), maps.view(torch.int16))
        return bits.view(torch.bfloat16)


class Replicate(torch.autograd.Function):
    """Replicate padding with a gradient several times as fast as PyTorch's."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, width: int) -> torch.Tensor:
        ctx.width = width
        with torch.autocast("cpu", enabled=False):  # which would convert to float32 and back
            return functional.pad(maps, (width,) * 4, mode="replicate")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        width = ctx.width
        for axis, length in zip((-2, -1), grads.shape[-2:]):
            before, after = (grads.narrow(axis, start, width).sum(axis) for start in (0, length - width))
            grads = grads.narrow(axis, width, length - 2 * width).clone(memory_format=torch.contiguous_format)
            grads.select(axis, 0).add_(before)
            grads.select(axis, -1).add_(after)
        return grads, None


class Conv(nn.Conv2d):
    """nn.Conv2d without padding that uses matrix products on a CPU where they are faster."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if not use_cpu_kernels(maps):
            return super().forward(maps)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype
        kernel, (num_out, num_in) = self.kernel_size[0], self.weight.shape[:2]
        # A single channel can have channels_last strides, with which PyTorch's convolution is many times slower.
        maps = maps.to(dtype).contiguous().flatten(2).view(maps.shape)
        if kernel > 1 and num_out * kernel**2 <= MAX_PLANES:
            return Col2imConv.apply(maps, self.weight, self.bias)
        # With AVX2, PyTorch's gradient of the weights of a layer of one channel takes five times as long.
        is_faster = dtype == torch.bfloat16 or torch.backends.cpu.get_cpu_capability() == "AVX2"
        if kernel == 1 or is_faster and num_in * kernel**2 <= MAX_PLANES:
            return Im2colConv.apply(maps, self.weight, self.bias)
        return super().forward(maps)


def relu(maps: torch.Tensor) -> torch.Tensor:
    """max(0, x), in place."""
    if use_cpu_kernels(maps) and maps.dtype == torch.bfloat16:
        return Relu.apply(maps)
    return functional.relu(maps, inplace=True)


def pad(maps: torch.Tensor, width: int) -> torch.Tensor:
    """Repeats the edge pixels `width` times on every side."""
    if use_cpu_kernels(maps):
        return Replicate.apply(maps, width)
    if torch.compiler.is_exporting() or not (torch.compiler.is_compiling() or maps.requires_grad):
        return functional.pad(maps, (width,) * 4, mode="replicate")
    # The gradient of functional.pad is not deterministic on CUDA (see torch.use_deterministic_algorithms), and
    # torch.compile on a CPU fails on it where gradients are channels_last (PyTorch 2.13 to 2.15).
    top, bottom = (edge.expand(-1, -1, width, -1) for edge in (maps[:, :, :1], maps[:, :, -1:]))
    rows = torch.cat([top, maps, bottom], 2)
    left, right = (edge.expand(-1, -1, -1, width) for edge in (rows[..., :1], rows[..., -1:]))
    return torch.cat([left, rows, right], 3)


def use_cpu_kernels(maps: torch.Tensor) -> bool:
    """Whether maps are on a CPU and not compiled: torch.compile has faster kernels of its own."""
    return maps.device.type == "cpu" and not torch.compiler.is_compiling()


def can_fuse(layer: nn.Conv2d, maps: torch.Tensor) -> bool:
    """Whether oneDNN can compute this layer together with what follows it: on a CPU without gradients."""
    return (FUSED_CONV is not None and use_cpu_kernels(maps) and layer.weight.dtype == maps.dtype
            and maps.dtype in (torch.float32, torch.bfloat16) and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu") and bool(torch.backends.mkldnn.enabled))


def conv_relu(layer: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
    """relu(layer(maps)), where possible in one pass and channels_last."""
    if not can_fuse(layer, maps):
        return relu(layer(maps))
    if maps.shape[1] == 1:  # or PyTorch takes it for contiguous: several times as slow
        maps = maps.contiguous()
        maps = maps.as_strided(maps.shape, (maps[0].numel(), 1, maps.shape[3], 1))
    result: torch.Tensor = FUSED_CONV(maps, *_settings(layer), "relu", [], "")
    return result


def conv_of_padded(layer: nn.Conv2d, maps: torch.Tensor, width: int) -> torch.Tensor:
    """layer(pad(maps, width)) for a layer without padding of its own."""
    if not can_fuse(layer, maps):
        return layer(pad(maps, width))
    num_out, _, kernel, _ = layer.weight.shape
    if maps.dtype == torch.bfloat16 or num_out * kernel**2 > MAX_PLANES:
        return functional.conv2d(pad(maps, width), layer.weight, layer.bias)
    # A product with the weights of one position commutes with padding, and there are fewer of them than maps.
    flat = layer.weight.permute(0, 2, 3, 1).flatten(0, 2)
    planes = pad(torch.stack([(flat @ tile.flatten(1)).view(-1, *tile.shape[1:]) for tile in maps]), width)
    results = [shift_and_add(tile.unflatten(0, (num_out, kernel, kernel))) for tile in planes]
    assert layer.bias is not None
    return torch.stack(results) + layer.bias[:, None, None]


def conv_add_(layer: nn.Conv2d, maps: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """total += layer(maps) in one pass over both, where `can_fuse`."""
    result: torch.Tensor = FUSED_CONV_ADD(total, maps, *_settings(layer), "add", 1.0, None, [], None)
    return result


def _settings(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
