"""Where networks run: the device that is named, and what one without float64 can do."""

import numpy as np
import pytest
import torch
from messages import facts
from small import draw_photo
from torch.utils._python_dispatch import TorchDispatchMode

from srcnn.models.device import device_here, restoring_device
from srcnn.models.weights import load_model
from srcnn.photos.jpeg_quality import jpeg_save
from srcnn.photos.tiling import windows
from srcnn.restoration.tiled_inference import RestoreOptions, TileRestorer
from srcnn.runtime.errors import UserError, is_out_of_memory


class Types(TorchDispatchMode):
    """Notes the data types of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.found |= {one.dtype for one in (result if isinstance(result, (tuple, list)) else [result])
                       if isinstance(one, torch.Tensor)}
        return result


@pytest.mark.parametrize("name,dtype", [("srcnn-915-q20", np.uint8), ("srcnn-915-q20", np.uint16),
                                        ("unet-jpeg", np.uint8)])
def test_restoring_computes_nothing_in_float64_which_apple_gpus_lack(name, dtype):
    photo = draw_photo(1, 72, 88).astype(dtype)
    options = RestoreOptions(exact=True, damage=jpeg_save(20, grey=False))
    restorer = TileRestorer(photo.dtype, load_model(name).eval(), options)
    window, = windows(72, 88, restorer.tile_pixels, restorer.halo)
    with Types() as types:
        restored = restorer.restore((window, photo))
    assert restored.shape == photo.shape and not np.array_equal(restored, photo)
    assert torch.float32 in types.found and torch.float64 not in types.found


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.delenv("SRCNN_DEVICE", raising=False)
    assert restoring_device() == device_here()
    monkeypatch.setenv("SRCNN_DEVICE", "cpu")
    assert restoring_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:99", "xpu:99"])
def test_a_device_that_is_not_here_is_refused_by_its_name(monkeypatch, name):
    monkeypatch.setenv("SRCNN_DEVICE", name)
    with pytest.raises(UserError, match=facts("SRCNN_DEVICE", name)):
        restoring_device()


def test_the_memory_of_an_apple_gpu_can_be_full():
    message = "MPS backend out of memory (MPS allocated: 8.0 GB, other allocations: 1.0 MB, max allowed: 9.07 GB)"
    assert is_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError("MPS backend failed"))
