"""What a run folder may hold. It may be a stranger's: this is checked before anything in it is read or written."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from srcnn.runtime.errors import UserError

# All that training, its report and its trackers make in a run folder; other names are not looked at.
NAMES = (".job", ".lock", ".wandb", "best", "checkpoint.pth", "checkpoints", "config.yaml", "jobs.jsonl",
         "metrics.jsonl", "model.safetensors", "report", "skipped.jsonl", "srcnn", "tensorboard", "wandb")
WANDB_SETTINGS = ("wandb/settings", ".wandb/settings")  # wandb reads its server's address from these

# A link of each wandb run to a log in its user's cache, which nothing reads or writes by this name.
_CORE_LOG = re.compile(r"\.?wandb/[^/]+/logs/debug-core\.log")


def check_run_folder(run: Path) -> None:
    """Raises UserError, which names the file, where a run folder (which may be missing) cannot be trusted.

    It may hold files and folders, and links (`best`, and those of wandb) to others in it: no link out of it but to a
    log of wandb, no pipe, no device. Nor settings of wandb, which could send its key to another server.
    """
    root = os.path.realpath(run)
    folders = [root]
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if folder == root and entry.name not in NAMES:
                    continue
                if entry.is_symlink():
                    if not is_inside(entry.path, root) and not _CORE_LOG.fullmatch(os.path.relpath(entry.path, root)):
                        raise UserError(f"{entry.path}: a link out of the run folder, to {os.readlink(entry.path)}; "
                                        "replace it by what it leads to, or choose another run")
                elif entry.is_dir():
                    folders.append(entry.path)
                elif not entry.is_file():
                    raise UserError(f"{entry.path}: neither a file nor a folder; remove it, or choose another run")
                elif os.path.relpath(entry.path, root) in WANDB_SETTINGS:
                    raise UserError(f"{entry.path}: settings of wandb, which no run folder needs; remove them, or move "
                                    "them to ~/.config/wandb/settings")


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path leads to something in a folder, or would, once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
