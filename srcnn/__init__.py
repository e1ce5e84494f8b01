"""Training and using networks that restore photographs.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srcnn.dataset import webdataset_pipeline
    from srcnn.metrics import psnr, psnr_b, ssim
    from srcnn.restore_image import restore
    from srcnn.srcnn_model import SRCNN, ModelConfig
    from srcnn.train_config import TrainConfig
    from srcnn.unet import UNet, UNetConfig
    from srcnn.weights_io import load_model, save_model

__all__ = ["SRCNN", "ModelConfig", "TrainConfig", "UNet", "UNetConfig", "load_model", "psnr", "psnr_b", "restore",
           "save_model", "ssim", "webdataset_pipeline"]
_MODULES = {
    "SRCNN": "srcnn_model", "ModelConfig": "srcnn_model", "load_model": "weights_io", "save_model": "weights_io",
    "UNet": "unet", "UNetConfig": "unet", "psnr": "metrics", "psnr_b": "metrics", "ssim": "metrics",
    "webdataset_pipeline": "dataset",
    "TrainConfig": "train_config", "restore": "restore_image",
}


def __getattr__(name: str) -> Any:
    """Imports the public names when first used: torch takes seconds, preprocessing does without it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'srcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"srcnn.{_MODULES[name]}"), name)
