"""The Triton kernels of benchmarks/fused_kernel.py, which says what they do and why so.

Padded rows and columns are those of the mapped maps after their replicate padding by 4: (H + 4, W + 4). A tap is a
place in a kernel, a run a few pixels side by side: an array of runs has at each place the run that begins there.

Set TRITON_INTERPRET=1 before the first import of triton to run them on a CPU.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
EXACT_BLOCK = 32  # float32 is not for tensor cores: larger blocks do not fit the registers, and take minutes to compile


def launches(num_warps: int, **sizes: int) -> triton.Config:
    return triton.Config(sizes, num_warps=num_warps, num_stages=1)


FORWARD = [launches(8, BLOCK=EXACT_BLOCK, STREAMS=1, ROWS=64)]
FORWARD += [launches(4 * streams, BLOCK=128, STREAMS=streams, ROWS=rows) for streams in (1, 2) for rows in (32, 64)]
BACKWARD = [launches(8, BLOCK=EXACT_BLOCK)]
BACKWARD += [launches(warps, BLOCK=block) for block, warps in ((64, 4), (64, 8), (128, 8))]
if INTERPRETED:  # of which a small photo has several, and an odd one beside
    FORWARD, BACKWARD = [launches(4, BLOCK=16, STREAMS=2, ROWS=8)], [launches(4, BLOCK=64)]


def fitting(configs: list[triton.Config], arguments: dict[str, Any], **options: Any) -> list[triton.Config]:
    """Those of the precision."""
    return [config for config in configs if (config.kwargs["BLOCK"] == EXACT_BLOCK) == options["EXACT"]]


_interpreted = tl.constexpr(INTERPRETED)


@triton.jit
def operand(block, EXACT: tl.constexpr):
    """What a product takes: float32 if EXACT, else bfloat16. The interpreter knows no products of bfloat16, and cuts
    off where a GPU rounds to nearest even: there it is float32, rounded here."""
    if EXACT:
        result = block.to(tl.float32)
    elif _interpreted:
        bits = block.to(tl.float32).to(tl.int32, bitcast=True)
        result = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    else:
        result = block.to(tl.bfloat16)
    return result


@triton.jit
def product(left, right, total):
    """left @ right + total: float32 is not cut down to TF32."""
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def rectified(block):
    return tl.maximum(block, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def matrix(pointer, FIRST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr):
    """(ROWS, COLUMNS) of a matrix of that many columns, from row FIRST."""
    places = (FIRST + tl.arange(0, ROWS))[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return operand(tl.load(pointer + places), EXACT)


@triton.jit
def put(pointer, block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tl.store(pointer + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], block)


@triton.jit
def windows(
    runs, corners, stride: tl.constexpr, other: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr,
    RUNS: tl.constexpr, PIXELS: tl.constexpr, ALL: tl.constexpr, EXACT: tl.constexpr
):
    """(BLOCK, ALL * PIXELS): of LINES lines below each corner RUNS runs of PIXELS each, filled up with `other`.

    A thread loads a whole run. That its neighbour loads the next pixel's, from a constant distance, rests on the order
    of these axes in Triton 3.6; 3.8 would want the first two changed round.
    """
    run = tl.arange(0, ALL)
    places = (run // RUNS * stride + run % RUNS * PIXELS)[None, :, None] * PIXELS + tl.arange(0, PIXELS)
    mask = (run < LINES * RUNS)[None, :, None]
    found = tl.load((runs + corners * PIXELS)[:, None, None] + places, mask, other)
    return operand(tl.reshape(found, (BLOCK, ALL * PIXELS)), EXACT)


@triton.jit
def maps(window, w1, w2, b2, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """Windows (BLOCK, 128) -> features (BLOCK, 64), mapped (BLOCK, 32)."""
    features = operand(rectified(product(window, w1, tl.zeros((BLOCK, 64), tl.float32))), EXACT)
    total = product(features, w2, tl.zeros((BLOCK, 32), tl.float32))
    return features, operand(rectified(total + b2[None, :]), EXACT)


@triton.autotune(FORWARD, key=["height", "width"], prune_configs_by={"early_config_prune": fitting})
@triton.jit(do_not_specialize=["num_photos"])
def forward_kernel(
    runs, w1, w2, b2, w3, b3, restored, num_photos, height: tl.constexpr, width: tl.constexpr,
    BLOCK: tl.constexpr, STREAMS: tl.constexpr, ROWS: tl.constexpr, EXACT: tl.constexpr
):
    """`runs` of 4 pixels (N, H + 4, W + 4, 4) -> `restored` (N, H, W) float32.

    A program walks down ROWS rows of a strip of BLOCK columns, in STREAMS places at once. Of each row of a stream, 4
    mapped pixels side by side with their 32 channels, a group, times `w3` (3, 4 x 32, 8 x 4) is what the group gives
    to its own 4 columns of 5 rows, to those of the next group, and, where it begins a photo, to its own for the
    replicated pixels before it. `sums` holds 5 unfinished rows; each step moves them on by one.
    """
    NUM: tl.constexpr = STREAMS * BLOCK // 4  # groups
    strips = tl.maximum(tl.cdiv(width - 4, BLOCK - 4), 1)
    segments = tl.cdiv(height, ROWS)
    strip = tl.program_id(0) % strips
    first_unit = tl.program_id(0) // strips * STREAMS  # of the segments of all photos
    first_column = strip * (BLOCK - 4)
    w1_all, w2_all, b2_all = matrix(w1, 0, 128, 64, EXACT), matrix(w2, 0, 64, 32, EXACT), tl.load(b2 + tl.arange(0, 32))
    own, passed, edge = matrix(w3, 0, 128, 32, EXACT), matrix(w3, 128, 128, 32, EXACT), matrix(w3, 256, 128, 32, EXACT)
    b3_all = tl.load(b3)

    pixel = tl.arange(0, STREAMS * BLOCK)
    unit = tl.minimum(first_unit + pixel // BLOCK, num_photos * segments - 1)
    first_row, photo = unit % segments * ROWS - 4, unit // segments
    column = photo * (height + 4) * (width + 4) + tl.minimum(first_column + pixel % BLOCK, width - 5)

    group, place = tl.arange(0, NUM)[:, None], tl.arange(0, 32)[None, :]
    group_before, place_before = tl.maximum(group - 1, 0) + 0 * place, tl.maximum(place - 4, 0) + 0 * group
    begins = group % (BLOCK // 4) == 0
    target_unit = first_unit + group // (BLOCK // 4)
    target_row, target_photo = target_unit % segments * ROWS - 4, target_unit // segments
    target_column = first_column + group % (BLOCK // 4) * 4 + place % 4
    finished = (place // 4 == 4) & (target_photo < num_photos) & (target_column < width)
    finished &= (strip == 0) | (target_column >= first_column + 4)
    targets = restored + target_photo.to(tl.int64) * height * width + target_column
    sums = tl.zeros((NUM, 32), tl.float32)
    for step in range(0, ROWS + 4):
        row = tl.minimum(tl.maximum(first_row + step, 0), height - 5)
        window = windows(runs, column + row * (width + 4), width + 4, 1.0, STREAMS * BLOCK, 9, 3, 4, 32, EXACT)
        _, mapped = maps(window, w1_all, w2_all, b2_all, STREAMS * BLOCK, EXACT)
        mapped = tl.reshape(mapped, (NUM, 128))
        nothing = tl.zeros((NUM, 32), tl.float32)
        given = tl.gather(product(mapped, passed, nothing), group_before, 0)
        given = tl.where(begins, tl.where(strip == 0, product(mapped, edge, nothing), 0.0), given)
        moved = tl.where(place < 4, 0.0, tl.gather(sums, place_before, 1))
        sums = product(mapped, own, moved) + given
        end = target_row + step
        mask = finished & (step >= 4) & (end < height)
        tl.store(targets + end * width, sums + b3_all, mask)


@triton.autotune(BACKWARD, key=["height", "width"], prune_configs_by={"early_config_prune": fitting})
@triton.jit(do_not_specialize=["num_photos"])
def backward_kernel(
    runs, grads, w1, w2, b2, w3, partials, num_photos, height: tl.constexpr, width: tl.constexpr,
    BLOCK: tl.constexpr, EXACT: tl.constexpr
):
    """`runs` of 4 pixels (N, H + 4, W + 4, 4), `grads` of what was restored, zeros around them, as runs of 2
    (N, H + 8, W + 8, 2) -> `partials` (programs, 12,320) float32: each program's sums for w1 (64, 128), w2 (64, 32),
    w3 (64, 32) and b2 (32).

    Each padded pixel computes its maps again, the replicated ones too: so none needs the gradients of another.
    """
    num_pixels = num_photos * (height + 4) * (width + 4)
    w1_all, w2_all, b2_all = matrix(w1, 0, 128, 64, EXACT), matrix(w2, 0, 64, 32, EXACT), tl.load(b2 + tl.arange(0, 32))
    w3_all = matrix(w3, 0, 64, 32, EXACT)
    sum_w1, sum_w2 = tl.zeros((64, 128), tl.float32), tl.zeros((64, 32), tl.float32)
    sum_w3, sum_b2 = tl.zeros((64, 32), tl.float32), tl.zeros((32,), tl.float32)
    block = tl.program_id(0)
    while block < tl.cdiv(num_pixels, BLOCK):
        index = block * BLOCK + tl.arange(0, BLOCK)
        known = index < num_pixels
        pixel = tl.minimum(index, num_pixels - 1)
        column, line = pixel % (width + 4), pixel // (width + 4)
        row, photo = line % (height + 4), line // (height + 4)
        mapped_row = tl.minimum(tl.maximum(row - 4, 0), height - 5)
        mapped_column = tl.minimum(tl.maximum(column - 4, 0), width - 5)
        corners = (photo * (height + 4) + mapped_row) * (width + 4) + mapped_column
        window = windows(runs, corners, width + 4, 1.0, BLOCK, 9, 3, 4, 32, EXACT)
        features, mapped = maps(window, w1_all, w2_all, b2_all, BLOCK, EXACT)
        window = tl.where(known[:, None], window, 0.0)  # not needed, but without it Triton 3.6 aborts

        corners = (photo * (height + 8) + row) * (width + 8) + column
        around = windows(grads, corners, width + 8, 0.0, BLOCK, 5, 3, 2, 32, EXACT)
        around = tl.where(known[:, None], around, 0.0)
        sum_w3 = product(tl.trans(around), mapped, sum_w3)
        grad = tl.where(mapped > 0, product(around, w3_all, tl.zeros((BLOCK, 32), tl.float32)), 0.0)
        sum_b2 += tl.sum(grad, 0)
        grad_mapped = operand(grad, EXACT)
        sum_w2 = product(tl.trans(features), grad_mapped, sum_w2)
        grad = product(grad_mapped, tl.trans(w2_all), tl.zeros((BLOCK, 64), tl.float32))
        sum_w1 = product(tl.trans(operand(tl.where(features > 0, grad, 0.0), EXACT)), window, sum_w1)
        block += tl.num_programs(0)
    partials += tl.program_id(0).to(tl.int64) * 12320
    put(partials, sum_w1, 64, 128)
    put(partials + 8192, sum_w2, 64, 32)
    put(partials + 10240, sum_w3, 64, 32)
    tl.store(partials + 12288 + tl.arange(0, 32), sum_b2)
