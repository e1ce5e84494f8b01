"""`srcnn sync`: what wandb lacks of a run's numbers is sent."""

from __future__ import annotations

import os
from pathlib import Path

from srcnn.checkpoint import latest, load_training, tracker_id_of
from srcnn.config import read_yaml
from srcnn.trackers import Wandb, end_wandb
from srcnn.tracking import read_metrics


def sync(run: Path, project: str = "") -> tuple[int, str]:
    """Sends the points of metrics.jsonl that the server lacks as the wandb run they belong to.

    Returns how many were sent, and the address of the run there.

    Raises:
        FileNotFoundError: no training run, or no checkpoint, which has the id of the wandb run.
        ValueError: no account.
        OSError: the server did not take them; what arrived is not sent again next time.
    """
    points = read_metrics(run)
    folder = latest(run)
    if folder is None:
        raise FileNotFoundError(f"{run}: no checkpoint, and so no id of a wandb run, here")
    run_id = tracker_id_of(load_training(folder))
    settings = run / "config.yaml"
    config = read_yaml(settings) if settings.is_file() else {}
    if project:
        os.environ["WANDB_PROJECT"] = project
    try:
        tracker = Wandb(run, config, run_id, points, online=True)
        tracker.finish(0)
    except ValueError:
        raise
    except Exception as error:  # wandb has many, of no common class
        raise OSError(f"{run}: not all could be sent, try again later: {' '.join(str(error).split())}") from error
    finally:
        end_wandb()
    return tracker.num_sent, tracker.run.url or ""
