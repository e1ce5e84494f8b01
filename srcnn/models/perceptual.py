"""LPIPS and DISTS, perceptual distances of two photos, by the package torchmetrics (the extra `metrics`).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018 (with AlexNet), and
Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", IEEE TPAMI 44(5), 2022 (VGG-16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal
from urllib.error import URLError

import torch

from srcnn.models.device import full_precision
from srcnn.runtime.extras import extra

PerceptualName = Literal["lpips", "dists"]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@extra("metrics")
def perceptual_distances(names: Iterable[PerceptualName], device: torch.device) -> dict[str, Distance]:
    """By name, (N, 1 or 3, H, W) twice, in [0, 1], -> the mean distance, (); 0: the same. Grey is R = G = B.

    torchvision downloads the weights of AlexNet (233 MB) and VGG-16 (528 MB) when they are first needed, from
    download.pytorch.org into the folder of torch.hub.

    Raises:
        UserError: the packages are missing.
        ConnectionError: the weights cannot be downloaded.
    """
    found: dict[str, Distance] = {}
    for name in names:
        try:
            found[name] = _distance(_make(name).to(device).eval())
        except URLError as error:
            raise ConnectionError(f"{name} needs weights of torchvision, which cannot be downloaded "
                                  f"({error.reason}); a copy may lie in {torch.hub.get_dir()}/checkpoints") from error
    return found


def _make(name: PerceptualName) -> torch.nn.Module:
    if name == "lpips":
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    from torchmetrics.functional.image.dists import DISTSNetwork  # the metric reads its weights in each call

    return DISTSNetwork()


def _distance(network: torch.nn.Module) -> Distance:
    @torch.inference_mode()
    def distance(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        pixels = (each.float().clamp(0, 1).expand(-1, 3, -1, -1) for each in (other, clean))
        with full_precision():
            found: torch.Tensor = network(*pixels)
        return found.mean()

    return distance
