"""`srcnn dashboard`: creates a wandb workspace with the panels for a training."""

from __future__ import annotations

import os
from typing import Any

from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.tracking.history import STEP_KEY
from srcnn.tracking.wandb_tracker import wandb_mode

PICTURES = "degraded, restored, clean"
# Titles of sections and plots, and the logged keys that are plotted over the number of tiles.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Quality": {
        "PSNR of the validation tiles and of their input, dB": ("val/psnr", "val/psnr_in"),
        "Gain, dB": ("val/gain",),
        "SSIM": ("val/ssim",),
        "PSNR of the training tiles and of their input, dB": ("train/psnr", "train/psnr_in"),
    },
    "Learning": {
        "Loss": ("train/loss",),
        "Norm of the gradient": ("gradient_norm",),
        "Learning rate": ("learning_rate",),
        "Steps skipped as not finite": ("skipped_steps",),
    },
    "Speed": {
        "Tiles a second": ("tiles_per_second",),
        "Share of time waiting for data": ("data_wait",),
        "Memory, GiB": ("memory_gib",),
    },
}
LOGARITHMIC = {"train/loss", "gradient_norm"}
# System metrics that wandb records, plotted over the seconds of the run.
LOADS = {
    "Processor, %": r"system\.cpu",
    "Memory, %": r"system\.memory_percent",
    "GPUs, %": r"system\.gpu\.\d+\.gpu",
    "Memory of the GPUs, %": r"system\.gpu\.\d+\.memoryAllocated",
    "Network, bytes sent": r"system\.network\.sent",
    "Network, bytes received": r"system\.network\.recv",
}


def workspace(entity: str, project: str, name: str) -> Any:
    """The workspace, not saved yet. Raises UserError if wandb-workspaces is not installed."""
    with extra("dashboard"):
        import wandb_workspaces.reports.v2.interface as reports
        import wandb_workspaces.workspaces as workspaces
    sections = [
        workspaces.Section(name=title, is_open=True, panels=[
            reports.LinePlot(title=text, x=STEP_KEY, y=list(keys), log_y=keys[0] in LOGARITHMIC or None)
            for text, keys in panels.items()])
        for title, panels in SECTIONS.items()]
    sections[0].panels.append(reports.MediaBrowser(title="Tiles: degraded, restored, clean", media_keys=[PICTURES]))
    loads: list[Any] = [reports.LinePlot(title=text, x="RelativeTime(Process)", metric_regex=pattern)
                        for text, pattern in LOADS.items()]
    sections.append(workspaces.Section(name="Machines", is_open=True, panels=loads))
    settings = workspaces.WorkspaceSettings(x_axis=STEP_KEY)
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def save_workspace(entity: str, project: str, name: str) -> str:
    """Saves the workspace in wandb and returns its address.

    Raises:
        ValueError: no account.
        OSError: the server did not accept it.
    """
    import wandb

    wandb_mode(True)
    try:
        entity = entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity or ""
        return str(workspace(entity, project, name).save().url)
    except UserError:
        raise
    except Exception as error:  # the errors of wandb have no common base class
        raise OSError(f"{project}: the workspace could not be saved: {' '.join(str(error).split())}") from error
