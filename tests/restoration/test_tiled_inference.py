"""How a network is applied: memory that runs out, strength, smoothed chroma, 16 bits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import changing_network, random_photo

from srcnn.restoration.restore import restore
from srcnn.restoration.tiled_inference import run_network


@pytest.fixture(scope="module")
def model():
    return changing_network()


STARVED = """
import resource, sys
import numpy, torch
torch.set_num_threads(1)
from srcnn.restoration.tiled_inference import RestoreOptions
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.restoration.restore import restore
torch.manual_seed(0)
model = SRCNN(ModelConfig((9, 5, 5), residual=True)).eval()
photo = numpy.load(sys.argv[1])
restore(photo[:40, :40], model, exact=True)
expected = restore(photo, model, 64, exact=True)
held = int(next(line for line in open("/proc/self/statm")).split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (128 << 20), -1))  # a layer of the whole photo has 230 MB
found = restore(photo, model, 1000, exact=True)
difference = numpy.abs(found.astype(int) - expected)
print(difference.max(), (difference > 0).mean())
"""


def test_where_memory_runs_out_the_tiles_are_halved_until_it_suffices(tmp_path):
    np.save(tmp_path / "photo.npy", random_photo(900, 1000))
    done = subprocess.run([sys.executable, "-c", STARVED, tmp_path / "photo.npy"], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    largest, share = map(float, done.stdout.split())
    assert largest <= 1 and share < 1e-4


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("quality", [None, 20])
def test_a_tile_halved_on_the_way_changes_nothing(model, monkeypatch, channels, quality):
    pixels, failed = random_photo(150, 131, channels), []
    expected = restore(pixels, model, 1000, exact=True, quality=quality)

    def scarce(planes, network, *others):
        if max(planes.shape[1:]) > 80:
            failed.append(planes.shape)
            raise torch.OutOfMemoryError("no more")
        return run_network(planes, network, *others)

    monkeypatch.setattr("srcnn.restoration.tiled_inference.run_network", scarce)
    found = restore(pixels, model, 100, exact=True, quality=quality)
    difference = np.abs(found.astype(int) - expected)
    assert failed and difference.max() <= 1 and (difference > 0).mean() < 1e-3

    def hopeless(planes, network, *others):
        raise torch.OutOfMemoryError("none at all")

    monkeypatch.setattr("srcnn.restoration.tiled_inference.run_network", hopeless)
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        restore(pixels, model, 100)


def test_strength_blends_and_colours_with_smoothed_chroma_are_as_in_one_piece(model):
    pixels = random_photo(70, 61, 3) // 2 + 60
    whole_change = restore(pixels, model, exact=True).astype(int) - pixels
    half_change = restore(pixels, model, exact=True, strength=0.5).astype(int) - pixels
    assert np.array_equal(restore(pixels, model, strength=0.0), pixels)
    assert np.abs(2 * half_change - whole_change).max() <= 2 and np.abs(whole_change).max() > 3
    smooth = [restore(pixels, model, tile, exact=True, quality=20).astype(int) for tile in (16, 1000)]
    assert np.abs(smooth[0] - smooth[1]).max() <= 1 and (smooth[0] != smooth[1]).mean() < 1e-3
    assert (smooth[0] != pixels + whole_change).mean() > 0.5
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            restore(pixels, model, strength=strength)


@pytest.mark.parametrize("channels", [None, 3])
def test_sixteen_bits_are_restored_between_the_levels_of_eight(model, channels):
    pixels = random_photo(45, 51, channels).astype(np.uint16) * 257
    found = restore(pixels, model, 32)
    eight = restore((pixels // 257).astype(np.uint8), model, 32, exact=True)
    assert found.dtype == np.uint16 and np.abs(found / 257 - eight).max() < 0.51
    assert (found % 257 != 0).mean() > 0.5
