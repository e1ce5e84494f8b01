"""Save / load / latest / best of a run: each checkpoint a folder that is complete and verified, or not there.

`checkpoints/step-NNNNNNNN/` holds model.safetensors (for use), training.pt (to continue: loads with weights_only) and
files.json, written last, with the size and sha256 of the others. `best` is a link to the best one by validation PSNR.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from srcnn import files
from srcnn.model import SRCNN, save_model, save_state_dict

FILES = "files.json"
MODEL, TRAINING = "model.safetensors", "training.pt"
logger = logging.getLogger(__name__)


def save(
    run: Path, step: int, model: SRCNN, training: Mapping[str, Any], about: Mapping[str, str], is_best: bool, keep: int
) -> Path:
    """Writes a checkpoint under a temporary name and renames it; then drops all but the latest `keep` and the best,
    and whatever is numbered higher: damaged ones that were passed over.

    Args:
        step: optimizer steps taken, for the folder's name.
        model: the weights to use (the averaged ones where there are such); folded into [0, 1] pixels when written.
        training: nested dicts of tensors and plain values, what continuing needs.
        about: strings for the header of model.safetensors.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    temporary = folder.with_name(f"{files.TEMPORARY_PREFIX}{folder.name}")
    for leftover in folder.parent.glob(f"{files.TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    save_model(model, temporary / MODEL, about)
    with files.atomic_file(temporary / TRAINING) as file:
        torch.save(dict(training), file)
    sizes = {name: (temporary / name).stat().st_size for name in (MODEL, TRAINING)}
    hashes = {name: files.sha256_of(temporary / name) for name in sizes}
    files.write_json(temporary / FILES, {name: {"bytes": sizes[name], "sha256": hashes[name]} for name in sizes})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    if is_best:
        mark_best(run, folder, model)
    _rotate(run, folder, keep)
    return folder


def mark_best(run: Path, folder: Path, model: SRCNN) -> None:
    """Makes `best` and checkpoint.pth those of this checkpoint."""
    _link(run / "best", folder)
    save_state_dict(model, run / "checkpoint.pth")


def _link(link: Path, folder: Path) -> None:
    """Points `link` at `folder`, relative, without a moment in which there is no link."""
    temporary = link.with_name(f"{files.TEMPORARY_PREFIX}{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.relative_to(link.parent))
    os.replace(temporary, link)


def _rotate(run: Path, newest: Path, keep: int) -> None:
    best = (run / "best").resolve()
    older = [folder for folder in step_folders(run) if folder.name <= newest.name]
    for folder in step_folders(run):
        if folder not in older[-keep:] and folder.resolve() != best:
            shutil.rmtree(folder)


def step_folders(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first, verified or not."""
    return sorted((run / "checkpoints").glob("step-*"))


def latest(run: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are reported and passed over."""
    for folder in reversed(step_folders(run)):
        if not (problem := damage(folder)):
            return folder
        logger.warning("%s: %s; taking the one before it", folder, problem)
    return None


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder; "" where it is whole."""
    try:
        listed = files.read_json(folder / FILES)
        for name, entry in listed.items():
            if (folder / name).stat().st_size != entry["bytes"] or files.sha256_of(folder / name) != entry["sha256"]:
                return f"{name} is damaged"
        return "" if {MODEL, TRAINING} <= set(listed) else "incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"incomplete ({error})"


def load_training(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint; only tensors and plain values are read, nothing is executed."""
    state: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    return state
