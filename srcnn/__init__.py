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
    from srcnn.models.base import Network, register_network
    from srcnn.models.srcnn import SRCNN, ModelConfig
    from srcnn.models.unet import UNet, UNetConfig
    from srcnn.models.weights import load_model, save_model
    from srcnn.models.wrapped import wrap
    from srcnn.photos.damages import Damaged, damage
    from srcnn.photos.metrics import psnr, psnr_b, ssim
    from srcnn.restoration.restore import restore
    from srcnn.restoration.upscale import upscale
    from srcnn.runtime.plugins import load_plugins
    from srcnn.training.config import TrainConfig
    from srcnn.training.loss import register_loss
    from srcnn.training.optimizer import OptimizerConfig, register_optimizer
    from srcnn.training.trainer import train

__all__ = ["SRCNN", "Damaged", "LoaderConfig", "ModelConfig", "Network", "OptimizerConfig", "PairStream",
           "ShardDataset", "TrainConfig", "UNet", "UNetConfig", "damage", "load_model", "load_plugins", "psnr",
           "psnr_b", "register_loss", "register_network", "register_optimizer", "restore", "save_model", "ssim",
           "to_float_batch", "train", "upscale", "webdataset_pipeline", "wrap"]
_MODULES = {
    "SRCNN": "models.srcnn", "ModelConfig": "models.srcnn", "UNet": "models.unet", "UNetConfig": "models.unet",
    "load_model": "models.weights", "save_model": "models.weights", "wrap": "models.wrapped",
    "psnr": "photos.metrics", "psnr_b": "photos.metrics", "ssim": "photos.metrics",
    "restore": "restoration.restore", "upscale": "restoration.upscale",
    "Network": "models.base", "register_network": "models.base", "damage": "photos.damages",
    "Damaged": "photos.damages", "register_loss": "training.loss", "register_optimizer": "training.optimizer",
    "OptimizerConfig": "training.optimizer", "load_plugins": "runtime.plugins",
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
