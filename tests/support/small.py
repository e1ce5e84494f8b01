"""Small shards and a small training config, for the tests of everything after the shards."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shards.plan import ShardsConfig
from shards.write import make_shards
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize
from srcnn.runtime.files import sha256_of, write_json
from srcnn.training import checkpoint
from srcnn.training.config import TrainConfig
from srcnn.training.optimizer import OptimizerConfig

MADE = {}  # folders of small_shards, by what they hold; gone with the process


def draw_photo(seed, height, width):
    """A photo with edges and smooth parts, RGB."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    photo = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(5):
            y, x, phase = random.uniform(-0.3, 0.3, 3)
            photo[..., channel] += np.sin(y * rows + x * columns + 20 * phase)
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        photo[top : top + height // 3, left : left + width // 3, channel] += 2
    photo = (photo - photo.min()) / (photo.max() - photo.min())
    return (255 * photo).astype(np.uint8)


def write_photos(folder, num_photos, height=101, width=167, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_photos):
        Image.fromarray(draw_photo(seed + number, height, width)).save(folder / f"photo {number}.png")
    return folder


def small_shards(folder, num_train=5, num_val=3, **changes):
    """Shards of 32x32 tiles: 15 a photo, several shards a split. Made once for all tests that want the same."""
    key = repr((num_train, num_val, sorted(changes.items())))
    if key not in MADE:
        MADE[key] = tempfile.TemporaryDirectory()
        _make_shards(Path(MADE[key].name), num_train, num_val, **changes)
    shutil.copytree(MADE[key].name, folder, dirs_exist_ok=True)
    return folder / "shards"


def _make_shards(folder, num_train, num_val, **changes):
    photos = write_photos(folder / "photos", num_train)
    val = write_photos(folder / "val photos", num_val, seed=100)
    values = {"resize": "none", "tile_pixels": 32, "samples_per_shard": 30, "num_workers": 1} | changes
    config = ShardsConfig(photos=str(photos), val=str(val), out=str(folder / "shards"), **values)
    make_shards(config, show_progress=False)


def small_config(run: Path, shards: Path, **changes):
    """A training of a small network, 8 steps of 8 tiles."""
    values = {
        "model": ModelConfig(filters=(8, 4), residual=True),
        "optimizer": OptimizerConfig(lr=2e-3),
        "total_samples": 64,
        "batch_size_per_process": 8,
        "log_every_samples": 32,
        "validate_every_samples": 32,
        "mixed_precision": "no",
        "trackers": [],
    }
    return TrainConfig(run=str(run), shards=str(shards), **(values | changes))


def bare_checkpoint(run, tracker_id):
    """A whole checkpoint in a run folder that has nothing but the trackers' id."""
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    torch.save({"tracker_id": tracker_id}, folder / checkpoint.TRAINING)
    (folder / checkpoint.MODEL).write_bytes(b"weights")
    write_json(folder / checkpoint.FILES, {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in (checkpoint.TRAINING, checkpoint.MODEL)})


def identity_network():
    """A network that changes nothing."""
    network = SRCNN(ModelConfig(filters=(1, 1), residual=True))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    return network.eval()


def changing_network():
    """A network with a halo of 6 pixels, whose changes show."""
    network = SRCNN(ModelConfig(kernels=(9, 5, 5), filters=(8, 4), residual=True), centred=True)
    initialize(network, "pytorch", 0)
    torch.nn.init.normal_(network.conv3.weight, std=0.05)
    return network.without_centering().eval()


def random_photo(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
