"""Which shipped weights a photo wants, by the quality its JPEG was saved with; loaded when first wanted."""

from __future__ import annotations

import re
import threading

import torch

from srcnn.base import Network
from srcnn.model import WEIGHTS, find_weights, load_model, to_device

FAMILY = "srcnn-915"
BLIND = "blind"  # weights trained over qualities 5 to 95, for photos that do not tell theirs
# JPEGs from this quality on are left as they are: by measurement no shipped weights gain there (docs/restoring.md).
GOOD_QUALITY = 92


class Networks:
    """The networks of a source: those of a family of shipped weights ("srcnn-915"), or the one it means.

    Args:
        source: what `load_model` takes, or a family; loaded onto `device`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self.device = device
        self.family = {} if source_exists(source) else family(source)
        self.source = source
        self._loaded: dict[str, Network] = {}
        self._loading = threading.Lock()
        self.load(self.name_for(None) or source)

    def name_for(self, quality: int | None) -> str | None:
        """The weights for a JPEG of this quality (None: unknown); None where it is good already."""
        if not self.family:
            return self.source
        if quality is None:
            return self.family[None]
        if quality >= GOOD_QUALITY:
            return None
        trained = [each for each in self.family if each is not None]
        return self.family[min(trained, key=lambda each: (abs(each - quality), -each))]

    def load(self, name: str) -> Network:
        """By several threads at once, too."""
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = to_device(load_model(name), self.device)
            return self._loaded[name]


def source_exists(source: str) -> bool:
    try:
        find_weights(source)
    except FileNotFoundError:
        return False
    return True


def family(name: str) -> dict[int | None, str]:
    """The shipped weights NAME-q10, NAME-q20, ... by quality, and NAME-blind under None; {} where these are none."""
    found: dict[int | None, str] = {}
    for path in WEIGHTS.glob("*.safetensors"):
        if match := re.fullmatch(rf"{re.escape(name)}-(?:q(\d+)|{BLIND})", path.stem):
            found[int(match[1]) if match[1] else None] = path.stem
    return found if None in found and len(found) > 1 else {}
