"""The contact sheet: a picture of random samples of a split, clean left, degraded right."""

from __future__ import annotations

import numpy as np
from PIL import Image

from srcnn.data.dataset import ShardDataset
from srcnn.data.manifest import Manifest
from srcnn.runtime.storage import Storage, join

COLUMNS = 4
GAP_PIXELS = 8


def write_contact_sheet(out: Storage, split: str, manifest: Manifest, num_pairs: int, seed: int = 0) -> None:
    """Writes SPLIT.png beside a split's folder with up to `num_pairs` samples, chosen by `seed`; none: no file."""
    num_pairs = min(num_pairs, manifest.num_samples)
    if not num_pairs:
        return
    chosen = np.sort(np.random.default_rng(seed).choice(manifest.num_samples, num_pairs, replace=False))
    tiles = ShardDataset(join(out.location, split)).read(chosen)[: len(manifest.members)]
    pairs = [np.concatenate(pair, axis=1) for pair in zip(*tiles, strict=True)]
    height, width = (side + GAP_PIXELS for side in pairs[0].shape[:2])
    mode = "L" if pairs[0].ndim == 2 else "RGB"
    sheet = Image.new(mode, (COLUMNS * width, -(-num_pairs // COLUMNS) * height), "white")
    for number, pair in enumerate(pairs):
        sheet.paste(Image.fromarray(pair), (number % COLUMNS * width, number // COLUMNS * height))
    with out.create(f"{split}.png") as file:
        sheet.save(file, "PNG")
