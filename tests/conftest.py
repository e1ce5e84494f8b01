"""What several test files need: synthetic photos, the real ones where there are any, the shard maker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def photo_pixels(seed: int, width: int = 203, height: int = 149) -> np.ndarray:
    """(H, W, 3) uint8: slopes, edges, stripes and some noise, another photo for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = 90 * x / width * rng.uniform(0.2, 1, 3)[:, None, None] + 60 * y / height
    stripes = 40 * np.sign(np.sin(x / rng.uniform(3, 9)) + np.cos(y / rng.uniform(4, 11)))
    bands = slope + stripes + 50 + rng.normal(0, 3, (3, height, width))
    return np.moveaxis(bands, 0, -1).clip(0, 255).round().astype(np.uint8)


@pytest.fixture
def photos_folder(tmp_path: Path) -> Callable[..., Path]:
    """photos_folder(num, name, first_seed, width, height): a folder of PNG photos in tmp_path."""

    def make(
        num_photos: int, name: str = "photos", first_seed: int = 0, width: int = 203, height: int = 149
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(first_seed, first_seed + num_photos):
            pixels = photo_pixels(seed, width, height)
            Image.fromarray(pixels).save(folder / f"photo-{seed:03d}.png", compress_level=1)
        return folder

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real photographs: {SHARED_DATA} is not there")
    return SHARED_DATA


def shards_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shards", *map(str, arguments)]


def run_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m shards ...` as a process of its own."""
    return subprocess.run(
        shards_command(*arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env=quiet_env(),
    )


def quiet_env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
