"""SRCNN 9-1-5 as two Triton kernels, forward and backward, whose feature maps never leave the chip.

An attempt to be measured: it goes into srcnn only if it is well ahead of the compiled network. The kernels, in
benchmarks/fused_kernels.py, give the network's result and the gradients of its parameters, not of its input.

Why. Per tile of 128x128 in bfloat16 a training step's convolutions and what the compiler fuses between them write and
read again 64 and 32 maps and their gradients, some 12 MB forward and 24 MB backward: 11 us of an H100's 3.3 TB/s.
The two kernels and what prepares their arguments move 1 MB, for 1.4 GFLOP with padding and maps computed twice:
1.8 us of its 800 TFLOP/s. These are estimates, and floors.

How. All three layers are products for tensor cores, with float32 sums. The first takes windows of the photo, gathered
from "runs" (each pixel with the 3 after it) so that a thread's 27 loads are whole runs at constant distances; the bias
is one more tap. The second takes the first's result from registers. The last gives each pixel's value to 25 others,
which live in other threads; instead of moving 25 planes, or adding them up with atomics in memory, the channels of 4
pixels side by side become one row of 128 by a reshape, and a matrix that holds the 5x5 weights 4 times gives 5 rows of
4 + 4 columns: only those that belong to the next group of 4 move. A program walks down the rows of a strip with the 5
unfinished rows in registers, in the manner of `srcnn.layers.shift_and_add`.

Backward, every pixel computes its maps again, and the products of their gradients stay in the registers of as many
programs as run at once, each with its own pixels; PyTorch adds up what these leave. So nothing depends on timing. The
replicated pixels are computed like others, 13% more for tiles of 128x128, and need no rule of their own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from srcnn.base import CENTRE
from srcnn.srcnn_model import SRCNN, ModelConfig

Precision = Literal["bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PROGRAMS_PER_PROCESSOR = 2  # of the backward; more would only wait
MAX_PIXELS = 2**31 // 4 - 1  # offsets are 32 bits, of runs of 4 pixels
PARTIALS = ((64, 128), (64, 32), (64, 32), (1, 32))  # sums for w1, w2, w3, b2


def fused_available(device: torch.device) -> bool:
    """Whether the kernels run there: with Triton on a CUDA device that has bfloat16, in its interpreter on a CPU."""
    try:
        from benchmarks.fused_kernels import INTERPRETED
    except ImportError:
        return False
    if INTERPRETED:
        return device.type == "cpu"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class FusedSRCNN(nn.Module):
    """SRCNN 9-1-5 by the fused kernels, with the very parameters of `model`. (N, 1, H, W) float32 -> the same, for any
    N, and H and W from `min_pixels`; gradients for the parameters. The kernels compile anew for each H and W. A pixel
    that is not finite spoils some outputs more than the plain network's 6 to each side: zeros fill up the matrices.

    Args:
        precision: of what products take: "bf16", or "fp32" to check by (no TF32, far from fast).

    Raises:
        ValueError: another network; a photo too small, of another dtype, of more than 2^31 / 4 pixels, or one whose
            gradient is asked for.
    """

    def __init__(self, model: SRCNN, precision: Precision = "bf16") -> None:
        super().__init__()
        supported = ModelConfig(residual=model.config.residual)
        if model.config != supported:
            raise ValueError(f"the fused kernels compute {supported}, not {model.config}")
        if precision not in DTYPES:
            raise ValueError(f"precision {precision!r}: expected one of {', '.join(DTYPES)}")
        self.config, self.centred, self.precision = model.config, model.centred, precision
        self.min_pixels = model.min_pixels
        self.conv1, self.conv2, self.conv3 = model.conv1, model.conv2, model.conv3

    def forward(self, degraded: torch.Tensor) -> torch.Tensor:
        num_photos, channels, height, width = degraded.shape
        if channels != 1 or degraded.dtype != torch.float32 or min(height, width) < self.min_pixels:
            raise ValueError(
                f"expected float32 (N, 1, H, W) of at least {self.min_pixels} pixels a side, "
                f"not {degraded.dtype} {tuple(degraded.shape)}"
            )
        if num_photos * (height + 8) * (width + 8) > MAX_PIXELS:
            raise ValueError(f"{tuple(degraded.shape)} are more pixels than the kernels count")
        if degraded.requires_grad and torch.is_grad_enabled():
            raise ValueError("the fused kernels give no gradient of their input; detach it")
        parameters = [p for layer in (self.conv1, self.conv2, self.conv3) for p in (layer.weight, layer.bias)]
        with torch.autocast(degraded.device.type, enabled=False):
            pixels = degraded - CENTRE if self.centred else degraded
            restored = Fused.apply(pixels, DTYPES[self.precision], *parameters)
            return degraded + restored if self.config.residual else restored


class Fused(torch.autograd.Function):
    """The network without its residual connection. Weights float32; gradients of these only."""

    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor, dtype: torch.dtype, *parameters: torch.Tensor) -> torch.Tensor:
        from benchmarks.fused_kernels import forward_kernel
        w1, b1, w2, b2, w3, b3 = parameters
        num_photos, _, height, width = pixels.shape
        runs = runs_of(functional.pad(pixels.to(dtype), (2, 5, 2, 2), mode="replicate"), 4)
        first, second = first_matrix(w1, b1, dtype), w2.flatten(1).t().to(dtype).contiguous()
        restored = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)

        def grid(meta: dict[str, Any]) -> tuple[int]:
            strips = max(1, ceil_div(width - 4, meta["BLOCK"] - 4))
            return (strips * ceil_div(num_photos * ceil_div(height, meta["ROWS"]), meta["STREAMS"]),)

        if num_photos:
            forward_kernel[grid](
                runs, first, second, b2, group_matrices(w3, dtype), b3, restored, num_photos, height, width,
                EXACT=dtype == torch.float32,
            )
        ctx.save_for_backward(runs, first, second, b2, w3)
        return restored

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from benchmarks.fused_kernels import backward_kernel
        runs, first, second, b2, w3 = ctx.saved_tensors
        num_photos, _, height, width = grads.shape
        sizes = [rows * columns for rows, columns in PARTIALS]
        partials = torch.empty(num_programs(grads), sum(sizes), device=grads.device)
        around = runs_of(functional.pad(grads.to(runs.dtype), (4, 5, 4, 4)), 2)
        backward_kernel[(len(partials),)](
            runs, around, first, second, b2, spread_matrix(w3, runs.dtype), partials, num_photos, height, width,
            EXACT=runs.dtype == torch.float32,
        )
        totals = partials.sum(0).split(sizes)
        grad_w1, grad_w2, grad_w3, grad_b2 = (total.view(shape) for total, shape in zip(totals, PARTIALS))
        return (
            None, None, grad_w1[:, :108].view(64, 1, 9, 12)[..., :9], grad_w1[:, 108],
            grad_w2.t()[:, :, None, None], grad_b2[0],
            grad_w3[:30].view(5, 6, 32)[:, :5].flip(0, 1).permute(2, 0, 1)[None], grads.sum((0, 2, 3)),
        )


def ceil_div(amount: int, part: int) -> int:
    return -(-amount // part)


def runs_of(photos: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """(N, 1, H, W) -> (N, H, W - num_pixels + 1, num_pixels): the pixels from each place on."""
    return photos[:, 0].unfold(-1, num_pixels, 1).contiguous()


def num_programs(grads: torch.Tensor) -> int:
    """Programs of the backward: what the device runs at once."""
    if grads.device.type == "cpu":
        return 3
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(grads.device).multi_processor_count


def first_matrix(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(64, 1, 9, 9), (64,) -> (128, 64): 9 lines of 12, the last 3 zeros; then the bias, and zeros."""
    lines = functional.pad(weight, (0, 3)).flatten(1).t()
    return functional.pad(torch.cat([lines, bias[None]]), (0, 0, 0, 19)).to(dtype).contiguous()


def spread_matrix(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 32, 5, 5) -> (64, 32): 5 lines of 6, the last a zero, upside down: what a gradient gives to the pixels."""
    lines = functional.pad(weight[0].flip(1, 2), (0, 1)).flatten(1).t()
    return functional.pad(lines, (0, 0, 0, 34)).to(dtype).contiguous()


def group_matrices(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 32, 5, 5) -> (3, 4 * 32, 8 * 4): what 4 pixels of a row, by pixel and channel, give to 4 columns of 5 rows.

    Pixel b of a group gives weight (i, j) times its value to column b + 4 - j: the first matrix has the group's own
    columns 0..3, the second 4..7, those of the next group, the third what 4 copies of pixel 0 before it would give.
    """
    # the last axis: weight j = 0..4, nothing, the sums of the first 1..4
    by_place = torch.cat([weight, torch.zeros_like(weight[..., :1]), weight.cumsum(-1)[..., :4]], -1)[0]
    pixel, column = torch.arange(4)[:, None], torch.arange(4)
    own = pixel + 4 - column
    own = torch.where(own <= 4, own, 5)
    passed = pixel - column
    passed = torch.where(passed >= 0, passed, 5)
    edge = torch.where(pixel == 0, 9 - column, 5)
    places = torch.stack([own, passed, edge]).to(weight.device)
    found = by_place[:, :, places].permute(2, 3, 0, 1, 4)  # matrix, pixel, channel, kernel row, column
    return functional.pad(found, (0, 0, 0, 3)).to(dtype).reshape(3, 128, 32)
