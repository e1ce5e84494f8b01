"""Keeps the restored luma of a JPEG within what its quantization allows.

A JPEG rounds each DCT coefficient of a block to a multiple of its quantization step, so that of the clean photo is at
most half a step from the decoded one; a restored one further off is set to the bound: Zakhor, "Iterative Procedures for
Reduction of Blocking Effects in Transform Image Coding", IEEE TCSVT 2(1), 1992. Narrower bounds are better still, as a
coefficient that a network would have outside is seldom at the very end of what is possible: Park and Kim, "Theory of
Projection onto the Narrow Quantization Constraint Set and Its Application", IEEE TIP 8(10), 1999.

The bounds lie around the decoded coefficient, not around the nearest multiple of the step. The two differ by the
rounding of the pixels only; and so wrong steps or a wrong grid cannot do more than make the network's change smaller.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from srcnn.photos.jpeg_quality import DCT
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS as BLOCK

BOUND = 0.35  # quantization steps; best of 0.25 to 0.5 on nine training photos, for luma and RGB, at qualities 10 to 80


def bound_change(change: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """(1, H, W) -> the same shape: the change of the luma with its DCT coefficients clipped to +-BOUND steps.

    Args:
        change: float32, restored minus decoded; 8x8 blocks begin in its upper left corner. Incomplete blocks at the
            right and the bottom are completed by replication.
        steps: (8, 8) quantization steps by vertical and horizontal frequency, in the unit of `change`.
    """
    height, width = change.shape[-2:]
    padded = functional.pad(change[None], (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    rows, columns = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    dct, bounds = torch.from_numpy(DCT).to(change.device), BOUND * steps[:, None]
    # One long product for all rows, then one for each row of blocks: several times as fast as products of 8x8 blocks.
    coefficients = dct @ (padded.view(-1, BLOCK) @ dct.T).view(rows, BLOCK, -1)
    bounded = coefficients.view(rows, BLOCK, columns, BLOCK).clamp_(-bounds, bounds)
    bounded = (dct.T @ bounded.view(rows, BLOCK, -1)).view(-1, BLOCK) @ dct
    return bounded.view(1, rows * BLOCK, -1)[:, :height, :width]

