"""Checkpoints of a run: each a folder that is complete and verified, or does not exist.

`checkpoints/step-NNNNNNNN/` holds model.safetensors (for use), training.pt (to continue: loads with weights_only) and
files.json, written last, with the size and sha256 of the others. `best` is a link to the best one by validation PSNR.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srcnn.models.base import Network
from srcnn.models.weight_files import load_plain, save_tensors
from srcnn.models.weights import save_model, save_state_dict
from srcnn.runtime import files
from srcnn.runtime.errors import UserError
from srcnn.runtime.settings import plain
from srcnn.runtime.untrusted import read_json
from srcnn.runtime.watchdog import warn_if_slow

FILES = "files.json"
MODEL, TRAINING = "model.safetensors", "training.pt"
MAX_TRAINING_BYTES, MAX_LIST_BYTES = 4 << 30, 1 << 20
_STEP = re.compile(r"step-\d{8,}")
REPLACED_PREFIX = ".replaced-"  # a checkpoint while a new one of the same step takes its name
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, in memory that nothing changes any more.

    Attributes:
        step: optimizer steps taken, for the folder's name.
        model: the weights to use (the averaged ones where there are such), folded into [0, 1] pixels.
        training: nested dicts of tensors and plain values, what continuing needs.
        about: strings for the header of model.safetensors.
        is_best: whether it has the highest validation PSNR so far.
    """

    step: int
    model: Network
    training: Mapping[str, Any]
    about: Mapping[str, str]
    is_best: bool


def detach_to_cpu(value: Any) -> Any:
    """The same nested dicts and lists with copies of the tensors in the host's memory."""
    return plain(value, lambda it: it.detach().to("cpu", copy=True) if isinstance(it, torch.Tensor) else it)


class AsyncCheckpointWriter:
    """Writes snapshots in a thread, one at a time, while training goes on."""

    def __init__(self, run: Path, keep: int, lock: files.FolderLock) -> None:
        """`keep`: the latest ones kept; the best is kept beside them. `lock`: on the run folder, until `close`."""
        self.run, self.keep = run, keep
        self._lock: files.FolderLock | None = lock
        lock.claim()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Snapshot, Future[None]] | None = None
        self._best: Snapshot | None = None  # for a run folder that is created again
        self._unsaved_best: Snapshot | None = None
        self._errors: list[BaseException] = []
        self.written_step = -1  # of the latest checkpoint that was written since the start

    def submit(self, snapshot: Snapshot) -> None:
        """Begins to write, once the one before is written."""
        self._finish()
        self._writing = snapshot, self._pool.submit(self._write, self._unsaved_best, snapshot)

    def wait(self) -> list[BaseException]:
        """Waits for the one being written; then as `errors`."""
        self._finish()
        found, self._errors = self._errors, []
        return found

    def errors(self) -> list[BaseException]:
        """Why checkpoints could not be written, since the last call; waits for none."""
        return self.wait() if self._writing is None or self._writing[1].done() else []

    def _finish(self) -> None:
        if self._writing is None:
            return
        (snapshot, future), self._writing = self._writing, None
        self._best = snapshot if snapshot.is_best else self._best
        error = future.exception()
        if error is None:
            self._unsaved_best = None
        else:
            self._errors.append(error)
            self._unsaved_best = snapshot if snapshot.is_best else self._unsaved_best

    def close(self) -> None:
        """Lets go of the run folder, once all is written."""
        self._pool.shutdown()
        self._lock = None

    def _write(self, unsaved_best: Snapshot | None, snapshot: Snapshot) -> None:
        failure = None
        with warn_if_slow(f"{self.run}: writing a checkpoint"):
            if self._lock is None or not self._lock.is_held():
                logger.warning("%s was removed or replaced; creating it again", self.run)
                self.run.mkdir(parents=True, exist_ok=True)
                self._lock = files.FolderLock(self.run, seconds=0)
                self._lock.claim()
                unsaved_best = unsaved_best or self._best
            self._lock.check_alone()
            for one in (unsaved_best, snapshot):
                try:
                    if one is not None:
                        save(self.run, one, self.keep)
                except OSError as error:  # if the best cannot be saved, the latest still may
                    failure = error
        if failure is not None:
            raise failure
        self.written_step = snapshot.step


def save(run: Path, snapshot: Snapshot, keep: int) -> Path:
    """Writes a checkpoint under a temporary name and renames it; then drops all but the latest `keep` and the best,
    and any of a higher step: damaged ones that were skipped. Raises OSError, and leaves what was there.
    """
    folder = step_folder(run, snapshot.step)
    temporary = folder.with_name(f"{files.TEMPORARY_PREFIX}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _fill(temporary, snapshot)
        replaced = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        files.flush_folder(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if snapshot.is_best:
        mark_best(run, folder, snapshot.model)
    _rotate(run, folder, keep)
    return folder


def _fill(folder: Path, snapshot: Snapshot) -> None:
    save_model(snapshot.model, folder / MODEL, snapshot.about)
    save_tensors(dict(snapshot.training), folder / TRAINING)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
              for path in (folder / MODEL, folder / TRAINING)}
    files.write_json(folder / FILES, listed)
    files.flush_folder(folder)


def clear_leftovers(run: Path) -> None:
    """Removes what a kill left half-written, and restores what it left half-replaced."""
    for replaced in (run / "checkpoints").glob(f"{REPLACED_PREFIX}*"):
        folder = replaced.with_name(replaced.name.removeprefix(REPLACED_PREFIX))
        if folder.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, folder)
    for folder in (run, run / "report", run / "checkpoints"):
        for leftover in folder.glob(f"{files.TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def mark_best(run: Path, folder: Path, model: Network) -> None:
    """Makes `best` and checkpoint.pth those of this checkpoint."""
    _link(run / "best", folder)
    save_state_dict(model, run / "checkpoint.pth")


def _link(link: Path, folder: Path) -> None:
    """Points `link` at `folder`, relative, without a moment in which there is no link."""
    temporary = link.with_name(f"{files.TEMPORARY_PREFIX}{link.name}")
    if link.is_dir() and not link.is_symlink():
        raise FileExistsError(errno.EEXIST, "a folder where a link belongs; remove it", str(link))
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.relative_to(link.parent))
    os.replace(temporary, link)
    files.flush_folder(link.parent)


def _rotate(run: Path, newest: Path, keep: int) -> None:
    best = os.path.realpath(run / "best")  # pathlib's `resolve` raises RuntimeError for links in a circle
    older = [folder for folder in step_folders(run) if step_of(folder) <= step_of(newest)]
    for folder in step_folders(run):
        if folder not in older[-keep:] and os.path.realpath(folder) != best:
            try:
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
            except OSError as error:
                logger.warning("%s: cannot remove this old checkpoint: %s", folder, error)


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first, verified or not."""
    return sorted((path for path in (run / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def latest(run: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are reported and skipped. None if no step was saved yet.

    Raises:
        UserError: there are checkpoints of some steps, but none that is whole.
    """
    folders = step_folders(run)
    for folder in reversed(folders):
        if not (problem := find_corruption(folder)):
            return folder
        logger.warning("%s: %s; skipping this checkpoint", folder, problem)
    if folders and step_of(folders[-1]) > 0:
        raise UserError(f"{run}: none of its {len(folders)} checkpoints is intact; --fresh starts over and keeps them")
    return None


def find_corruption(folder: Path) -> str:
    """What is wrong with a checkpoint folder; "" where it is intact."""
    try:
        listed = read_json(folder / FILES, MAX_LIST_BYTES)
        if set(listed) != {MODEL, TRAINING}:
            return f"{FILES} lists {', '.join(map(str, listed)) or 'nothing'}, not {MODEL} and {TRAINING}"
        for name, entry in listed.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"] or files.sha256_of(path) != entry["sha256"]:
                return f"{name} is damaged"
        return ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return f"incomplete ({error})"


def load_training(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint; only tensors and plain values are read, nothing is executed.

    Raises:
        UserError: it holds something else, or nothing that PyTorch can read.
    """
    try:
        state = load_plain(folder / TRAINING, MAX_TRAINING_BYTES)
    except FileNotFoundError:
        raise
    except Exception as error:  # what torch raises on a damaged or unsafe file has no common base
        raise UserError(f"{folder / TRAINING}: not the plain state of a training run: {error}") from error
    if not isinstance(state, dict):
        raise UserError(f"{folder / TRAINING}: not the state of a training run")
    return state


def tracker_id_of(state: dict[str, Any]) -> str:
    """The id of the run at the trackers. Raises UserError where it could not be a part of a file's name."""
    found = state.get("tracker_id")
    if not isinstance(found, str) or not re.fullmatch(r"\w{1,64}", found):
        raise UserError(f"tracker_id {found!r}: expected letters and digits")
    return found
