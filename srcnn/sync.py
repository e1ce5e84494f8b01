"""`srcnn sync`: what wandb or MLflow lacks of a run's numbers is sent."""

from __future__ import annotations

import os
from pathlib import Path

from srcnn.checkpoint import latest, load_training, tracker_id_of
from srcnn.cluster_job import read_starts
from srcnn.config import read_yaml
from srcnn.history import read_metrics
from srcnn.mlflow_tracker import Mlflow
from srcnn.wandb_tracker import Wandb, end_wandb


def sync(run: Path, project: str = "", name: str = "wandb") -> tuple[int, str]:
    """Sends the points of metrics.jsonl that the server of tracker `name` lacks as the run they belong to there.

    `project` is wandb's project, or MLflow's experiment.

    Returns how many were sent, and the address of the run there.

    Raises:
        FileNotFoundError: no training run, or no checkpoint, which has the id of the run there.
        ValueError: no account, or no server named.
        OSError: the server did not take them; what arrived is not sent again next time.
    """
    points = read_metrics(run)
    folder = latest(run)
    if folder is None:
        raise FileNotFoundError(f"{run}: no checkpoint, and so no id of a {name} run, here")
    run_id = tracker_id_of(load_training(folder))
    settings = run / "config.yaml"
    config = read_yaml(settings) if settings.is_file() else {}
    starts = read_starts(run)
    if project:
        os.environ["WANDB_PROJECT" if name == "wandb" else "MLFLOW_EXPERIMENT_NAME"] = project
    try:
        if name == "mlflow":
            tracker: Wandb | Mlflow = Mlflow(run, config, run_id, points, starts)
        else:
            tracker = Wandb(run, config, run_id, points, starts, online=True)
        tracker.finish(0)
    except ValueError:
        raise
    except Exception as error:  # both have many, of no common class
        raise OSError(f"{run}: not all could be sent, try again later: {' '.join(str(error).split())}") from error
    finally:
        end_wandb()
    return tracker.num_sent, tracker.url
