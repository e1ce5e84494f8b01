"""Training and using SRCNN on photographs. The way of the data, and the module of each step:

    photo -> resized      photo.py      file <-> array
      -> degraded         degrade.py    JPEG, bicubic
                          damages.py    these and others by name, drawn at random
      -> tile pairs       tiles.py      cut, windows with a halo, join
      -> shards           members.py    tiles and pictures in a tar
                          sample.py     the contract of shards and manifest
                          index.py      where each pair lies, and its hash
                          verify.py     every byte against manifest and index
      -> pairs            storage.py    folders and object stores (answers.py: what these send)
                          cache.py      what was read of these, on a local disk
                          reader.py     pairs by their numbers
      -> batches          order.py      which sample stands where
                          prefetch.py   reading ahead
                          training_pairs.py  pairs made of clean tiles while training
                          stream.py     this rank's batches
                          resident.py   a whole split in memory
                          feed.py       ranks in step, to the device
      -> network          network.py    what a network is to the rest
                          model.py      SRCNN; load and save of any (weight_files.py)
                          unet.py       a larger one
                          products.py   its layers as matrix products, on a CPU
      -> training         optimize.py   optimizer, schedule, averaged weights
                          run.py        settings and state of a run
                          train.py      the loop; skipped.py: steps that are not finite
                          meeting.py    how ranks find each other; ranks.py: what they tell each other
                          signals.py    warnings from outside
                          validate.py   exact PSNR over all ranks
                          launch.py     what the scripts of launch/ share
                          benchmark.py  where the time of a step goes
                          doctor.py     what would stop it (doctor_shards.py, doctor_machine.py)
      -> checkpoint       checkpoint.py on the disk, whole or not there
                          resume.py     the state of a run, saved and taken up
      -> numbers          meter.py      what steps cost and give
                          history.py    metrics.jsonl; run_log.py and tracker.py: wandb, TensorBoard, MLflow
      -> restored photo   apply.py      a network over the tiles of a photo; chroma.py: colour smoothed by the luma
                          strips.py     9-1-5 in bfloat16 on a CPU
                          threads.py    tiles or photos side by side
                          canvas.py     a photo file changed in place; metadata.py, deep.py: EXIF and the like, 16 bits
                          fitting.py    the weights for a JPEG's quality (jpeg_quality.py)
                          restore.py    arrays, tensors, images; upscale.py: enlarged
                          restore_files.py, output_paths.py: files and where they go
                          score.py, report.py (figures.py); cards.py: what is known of weights, and measured again
                          demo.py: in the browser
      -> other programs   export.py     ONNX (onnx_graph.py), torch.export; hub.py, hub_card.py: the Hugging Face hub

Commands: `photos_commands.py`, `weights_commands.py`, `training_commands.py`. `files.py` writes files whole,
`config.py` reads settings, `untrusted.py` bounds what strangers made, `metrics.py` measures photos and tiles.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srcnn.metrics import psnr, psnr_b, ssim
    from srcnn.model import SRCNN, ModelConfig, load_model
    from srcnn.restore import restore
    from srcnn.unet import UNet, UNetConfig

__all__ = ["SRCNN", "ModelConfig", "UNet", "UNetConfig", "load_model", "psnr", "psnr_b", "restore", "ssim"]
_HOMES = {
    "SRCNN": "model", "ModelConfig": "model", "load_model": "model", "restore": "restore",
    "UNet": "unet", "UNetConfig": "unet", "psnr": "metrics", "psnr_b": "metrics", "ssim": "metrics",
}


def __getattr__(name: str) -> Any:
    """Imports the public names when first used: torch takes seconds, preprocessing does without it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'srcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"srcnn.{_HOMES[name]}"), name)
