"""A training run in MLflow, by its plain client.

Accelerate's tracker works through MLflow's one active run of a thread, which MLflow calls finished at the end of the
process whatever happened, and finds the run of an earlier process only by MLflow's own id.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srcnn.runtime.settings import without_credentials
from srcnn.tracking.cluster_job import JobHistory
from srcnn.tracking.history import STEP_KEY, Values
from srcnn.tracking.tracker import Level, Pictures, Tracker, hyperparameters

logger = logging.getLogger(__name__)
ID_TAG = "srcnn.run"
MAX_PARAMS, VALUE_LENGTH = 100, 500  # of a call, and characters of a value, that servers of old take too


class Mlflow(Tracker):
    """An MLflow run that goes on where what it has ends: of `points` it is sent those that it lacks.

    MLflow gives runs ids of its own: this one is found by the run's, in a tag. A point is one call, in a server's data
    base one transaction, so there is all of it or nothing; its `samples` tells how far the run has come.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values],
        jobs: JobHistory = JobHistory(),
    ) -> None:
        """Raises whatever MLflow raises; ValueError where no server is named, ModuleNotFoundError without MLflow."""
        server = without_credentials(mlflow_server()).rstrip("/")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self.client = mlflow.MlflowClient()
        self.status, self.takes_files = "FINISHED", True
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "srcnn")).experiment_id
        found = self.client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run_id}'", max_results=1)
        existing = found[0] if found else self.client.create_run(experiment, run_name=run.name, tags={ID_TAG: run_id})
        self.run_id = existing.info.run_id
        self.next_step = int(existing.data.metrics.get(STEP_KEY, -1)) + 1
        self.url = f"{server}/#/experiments/{experiment}/runs/{self.run_id}"
        logger.info("mlflow: %s", self.url)
        self.client.update_run(self.run_id, status="RUNNING")
        self._describe(hyperparameters(config), existing.data.params, jobs)
        self.log_missing(points)

    def _describe(self, config: Mapping[str, Any], known: Mapping[str, str], jobs: JobHistory) -> None:
        """Settings and jobs. MLflow lets no parameter be changed: what is set otherwise now becomes a tag."""
        from mlflow.entities import Param, RunTag

        wanted = {key: str(value)[:VALUE_LENGTH] for key, value in config.items()}
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        for first in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=new[first:first + MAX_PARAMS])
        tags = {f"changed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        tags |= jobs.settings() | {"group": jobs.group, "tags": ", ".join(jobs.tags)}
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items() if value])

    def send(self, samples: int, values: Values, pictures: Pictures) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        point = {**values, STEP_KEY: samples}
        self.client.log_batch(self.run_id, [Metric(key, float(value), now, samples) for key, value in point.items()])
        for title, picture in pictures.items():
            self._send_file(lambda: self.client.log_image(
                self.run_id, picture, artifact_file=f"pictures/{title}/{samples:010d}.png"))

    def _send_file(self, send: Callable[[], object]) -> None:
        """Files may go elsewhere than numbers, to a bucket for which this machine has no rights: once that fails, the
        numbers go on alone."""
        from mlflow.exceptions import MlflowException

        if self.takes_files:
            try:
                send()
            except (MlflowException, OSError, ImportError) as error:
                self.takes_files = False
                logger.warning("mlflow takes no pictures or files, only the numbers: %s",
                               without_credentials(" ".join(str(error).split())))

    def log_artifact(self, title: str, folder: Path) -> None:
        self._send_file(lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path=title))

    def alert(self, title: str, text: str, level: Level) -> None:
        """It sends none, but shows the last one."""
        self.client.set_tag(self.run_id, f"alert.{level.lower()}", f"{title}: {text}"[:VALUE_LENGTH])

    def preempted(self) -> None:
        self.status = "KILLED"

    def finish(self, exit_code: int) -> None:
        status = "FAILED" if exit_code and self.status == "FINISHED" else self.status
        self.client.set_terminated(self.run_id, status)


def mlflow_server() -> str:
    """The address in MLFLOW_TRACKING_URI. Raises ValueError where it has none: MLflow would use this folder."""
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        return address
    raise ValueError("no MLflow server: set MLFLOW_TRACKING_URI to its address, or to sqlite:////PATH/mlflow.db")
