"""The contact sheet: random samples of a split, clean left, degraded right, to see what is trained on."""

from __future__ import annotations

import numpy as np
from PIL import Image

from shards.places import Place
from srcnn.dataset import ShardDataset
from srcnn.manifest import Manifest
from srcnn.storage import join

COLUMNS = 4
GAP_PIXELS = 8


def write_sheet(out: Place, split: str, manifest: Manifest, num_pairs: int, seed: int = 0) -> None:
    """Writes SPLIT.png beside a split's folder: `num_pairs` random samples, the same ones every time.

    Nothing where the split is empty or no pairs are asked for.
    """
    num_pairs = min(num_pairs, manifest.num_samples)
    if not num_pairs:
        return
    chosen = np.sort(np.random.default_rng(seed).choice(manifest.num_samples, num_pairs, replace=False))
    reader = ShardDataset(join(out.location, split))
    pictures = reader.read(chosen)[: len(manifest.members)]
    cells = [_pad(np.concatenate(pair, axis=1)) for pair in zip(*pictures, strict=True)]
    cells += [np.full_like(cells[0], 255)] * (-num_pairs % COLUMNS)
    rows = [np.concatenate(cells[start : start + COLUMNS], axis=1) for start in range(0, len(cells), COLUMNS)]
    with out.create(sheet_name(split)) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")


def sheet_name(split: str) -> str:
    return f"{split}.png"


def _pad(pair: np.ndarray) -> np.ndarray:
    sides = [(0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0)][: pair.ndim]
    return np.pad(pair, sides, constant_values=255)
