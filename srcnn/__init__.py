"""Training and using networks that restore photographs.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srcnn.data.dataset import ShardDataset, webdataset_pipeline
    from srcnn.data.loader import LoaderConfig
    from srcnn.data.stream import PairStream
    from srcnn.data.transforms import to_float_batch
    from srcnn.models.srcnn import SRCNN, ModelConfig
    from srcnn.models.unet import UNet, UNetConfig
    from srcnn.models.weights import load_model, save_model
    from srcnn.models.wrapped import wrap
    from srcnn.photos.metrics import psnr, psnr_b, ssim
    from srcnn.restoration.restore import restore
    from srcnn.restoration.upscale import upscale
    from srcnn.training.config import TrainConfig
    from srcnn.training.trainer import train

__all__ = ["SRCNN", "LoaderConfig", "ModelConfig", "PairStream", "ShardDataset", "TrainConfig", "UNet", "UNetConfig",
           "load_model", "psnr", "psnr_b", "restore", "save_model", "ssim", "to_float_batch", "train", "upscale",
           "webdataset_pipeline", "wrap"]
_MODULES = {
    "SRCNN": "models.srcnn", "ModelConfig": "models.srcnn", "UNet": "models.unet", "UNetConfig": "models.unet",
    "load_model": "models.weights", "save_model": "models.weights", "wrap": "models.wrapped",
    "psnr": "photos.metrics", "psnr_b": "photos.metrics", "ssim": "photos.metrics",
    "restore": "restoration.restore", "upscale": "restoration.upscale",
    "TrainConfig": "training.config", "train": "training.trainer",
    "PairStream": "data.stream", "LoaderConfig": "data.loader", "ShardDataset": "data.dataset",
    "to_float_batch": "data.transforms", "webdataset_pipeline": "data.dataset",
}


def __getattr__(name: str) -> Any:
    """Imports the public names when first used: torch takes seconds, preprocessing does without it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'srcnn' has no attribute {name!r}")
    from srcnn.runtime.extras import extra

    with extra("train"):
        return getattr(importlib.import_module(f"srcnn.{_MODULES[name]}"), name)
