"""The MLflow tracker, by MlflowClient.

Accelerate's own tracker uses MLflow's active run, which MLflow marks as finished at the end of the process whatever
happened, and which is found again only by MLflow's id.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.tracking.cluster_job import JobHistory
from srcnn.tracking.history import STEP_KEY, Values
from srcnn.tracking.tracker import Level, Pictures, Tracker, hyperparameters

logger = logging.getLogger(__name__)
ID_TAG = "srcnn.run"
MAX_PARAMS, VALUE_LENGTH = 100, 500  # parameters of a call, characters of a value: limits of older servers


class Mlflow(Tracker):
    """An MLflow run, found by `run_id` in a tag, as MLflow chooses the ids of runs; it is sent the `points` it lacks.

    A point is one call and one transaction of the server's database, so that it arrives whole or not at all; the last
    value of `samples` is the last point that arrived.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values],
        jobs: JobHistory = JobHistory(),
    ) -> None:
        """Raises ValueError where no server is set, ModuleNotFoundError without MLflow, and the errors of MLflow."""
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
        self.url = self.place = f"{server}/#/experiments/{experiment}/runs/{self.run_id}"
        logger.info("mlflow: %s", self.url)
        self.client.update_run(self.run_id, status="RUNNING")
        self._describe(hyperparameters(config), existing.data.params, jobs)
        self.log_missing(points)

    def _describe(self, config: Mapping[str, Any], known: Mapping[str, str], jobs: JobHistory) -> None:
        """Sends settings and jobs. MLflow parameters cannot be changed: a setting that differs now becomes a tag."""
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
        """Sends a file, until that fails once: files may be stored in a bucket that this machine cannot write to."""
        from mlflow.exceptions import MlflowException

        if self.takes_files:
            try:
                send()
            except (MlflowException, OSError, ImportError) as error:
                self.takes_files = False
                logger.warning("mlflow does not accept pictures and files, only numbers are sent: %s",
                               without_credentials(" ".join(str(error).split())))

    def log_artifact(self, title: str, folder: Path, scores: Values, aliases: Sequence[str]) -> None:
        self._send_file(lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path=title))

    def alert(self, title: str, text: str, level: Level) -> None:
        """MLflow has no alerts: the last one of a level is shown as a tag."""
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
    raise UserError("no MLflow server: set MLFLOW_TRACKING_URI to its address, or to sqlite:////PATH/mlflow.db")
