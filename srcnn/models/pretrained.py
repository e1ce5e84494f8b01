"""Selects the shipped weights for a photo by its JPEG quality, and loads them when first used."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import torch

from srcnn.models.base import Network
from srcnn.models.device import to_device
from srcnn.models.weight_files import WEIGHTS, find_weights
from srcnn.models.weights import load_model

FAMILY = "srcnn-915"  # the fast ones, by JPEG quality
BLIND = "blind"  # weights trained over qualities 5 to 95, for photos of unknown quality
# JPEGs of at least this quality are not changed: written as JPEG again some would lose (docs/results.md).
GOOD_QUALITY = 89
GOOD_QUALITY_CONDITIONED = 91  # the same for a network that is told the quantization tables
MAX_CACHED = 16  # networks; the largest family has eight


class WeightSelector:
    """Networks to choose from by JPEG quality: a family of shipped weights ("srcnn-915"), or a single network.

    A family and a conditioned network are for JPEG damage, and restore nothing else; another network is used always.

    Args:
        source: what `load_model` takes, or the name of a family.
        device: where the networks are loaded.
        halo: as for `load_model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """

    def __init__(self, source: str, device: torch.device, halo: int | None = None) -> None:
        self.device, self.halo = device, halo
        self.source = source
        try:
            find_weights(source)
            self.family = {}
        except FileNotFoundError:
            self.family = family(source)
        self._loaded: dict[str, Network] = {}
        is_conditioned = self.load(self.family.get(None, source)).conditioned
        self.good_quality = GOOD_QUALITY if self.family else GOOD_QUALITY_CONDITIONED if is_conditioned else None

    def weights_for_quality(self, quality: int | None, force: bool = False) -> str | None:
        """The name of the weights for a photo that was a JPEG of this quality, None: of which no JPEG damage is known.

        None where it needs no restoring; with `force` there are weights for any photo.
        """
        is_good = self.good_quality is not None and (quality is None or quality >= self.good_quality)
        if is_good and not force:
            return None
        if not self.family or quality is None:
            return self.family.get(None, self.source)
        qualities = [known for known in self.family if known is not None]
        return self.family[min(qualities, key=lambda known: (abs(known - quality), -known))]

    def load(self, name: str) -> Network:
        """The network of these weights; always the same one, even if the file changes meanwhile."""
        if name not in self._loaded:
            path = find_weights(name)
            self._loaded[name] = _load(path.resolve(), path.stat().st_mtime_ns, self.device, self.halo)
        return self._loaded[name]


@lru_cache(MAX_CACHED)
def _load(path: Path, modified_ns: int, device: torch.device, halo: int | None) -> Network:
    """Loads onto the device; `modified_ns` makes the cache miss when the file has changed."""
    return to_device(load_model(path, halo), device)


def family(name: str) -> dict[int | None, str]:
    """The shipped weights NAME-q10, NAME-q20, ... by quality, and NAME-blind by None; {} if there are none."""
    found: dict[int | None, str] = {}
    for path in WEIGHTS.glob("*.safetensors"):
        if match := re.fullmatch(rf"{re.escape(name)}-(?:q(\d+)|{BLIND})", path.stem):
            found[int(match[1]) if match[1] else None] = path.stem
    return found if None in found and len(found) > 1 else {}
