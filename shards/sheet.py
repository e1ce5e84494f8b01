"""The contact sheet: random pairs of a split, clean left, degraded right, to see what is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from srcnn.files import atomic_file
from srcnn.reader import ShardReader
from srcnn.sample import Manifest

COLUMNS = 4
GAP_PIXELS = 8


def write_sheet(folder: Path, manifest: Manifest, num_pairs: int, seed: int = 0) -> Path | None:
    """Writes `folder`.png beside a split's folder: `num_pairs` random pairs, the same ones every time.

    None where the split is empty or no pairs are asked for.
    """
    num_pairs = min(num_pairs, manifest.num_samples)
    if not num_pairs:
        return None
    chosen = np.sort(np.random.default_rng(seed).choice(manifest.num_samples, num_pairs, replace=False))
    cells = [_pad(np.concatenate(pair, axis=1)) for pair in zip(*ShardReader(folder).read(chosen), strict=True)]
    cells += [np.full_like(cells[0], 255)] * (-num_pairs % COLUMNS)
    rows = [np.concatenate(cells[start : start + COLUMNS], axis=1) for start in range(0, len(cells), COLUMNS)]
    path = folder.with_suffix(".png")
    with atomic_file(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    return path


def _pad(pair: np.ndarray) -> np.ndarray:
    sides = [(0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0)][: pair.ndim]
    return np.pad(pair, sides, constant_values=255)
