"""A training run in MLflow, by its plain client.

Accelerate's tracker works through MLflow's one active run of a thread, which MLflow calls finished at the end of the
process whatever happened, and finds the run of an earlier process only by MLflow's own id.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srcnn.cluster_job import Starts
from srcnn.config import without_credentials
from srcnn.history import STEP_KEY, Values, merge_by_step
from srcnn.tracker import Level, Pictures, hyperparameters

logger = logging.getLogger(__name__)
ID_TAG = "srcnn.run"
MOST_PARAMS, VALUE_LENGTH = 100, 500  # of a call, and characters of a value, that servers of old take too


class Mlflow:
    """An MLflow run that goes on where what it has ends: of `points` it is sent those that it lacks.

    MLflow gives runs ids of its own: this one is found by the run's, in a tag. A point is one call, in a server's data
    base one transaction, so there is all of it or nothing; its `samples` tells how far the run has come.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values], starts: Starts = Starts()
    ) -> None:
        """Raises whatever MLflow raises; ValueError where no server is named, ModuleNotFoundError without MLflow."""
        if problem := mlflow_problem():
            raise ValueError(problem)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use to its makers
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        self.status, self.takes_files = "FINISHED", True
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "srcnn"))
        found = self.client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run_id}'", max_results=1)
        there = found[0] if found else self.client.create_run(experiment, run_name=run.name, tags={ID_TAG: run_id})
        self.run_id = there.info.run_id
        self.next_step = int(there.data.metrics.get(STEP_KEY, -1)) + 1
        self.num_sent = 0
        address = without_credentials(os.environ["MLFLOW_TRACKING_URI"]).rstrip("/")
        self.url = f"{address}/#/experiments/{experiment}/runs/{self.run_id}"
        logger.info("mlflow: %s", self.url)
        self.client.update_run(self.run_id, status="RUNNING")
        self._describe(hyperparameters(config), there.data.params, starts)
        for samples, values in merge_by_step(points).items():
            self.log(samples, values, {})

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(name)) is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another training was faster, or there is a reason that is raised again
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _describe(self, config: Mapping[str, Any], known: Mapping[str, str], starts: Starts) -> None:
        """Settings and jobs. MLflow lets no parameter be changed: what is set otherwise now becomes a tag."""
        from mlflow.entities import Param, RunTag

        wanted = {key: str(value)[:VALUE_LENGTH] for key, value in config.items()}
        new = [Param(key, value) for key, value in wanted.items() if key not in known]
        for first in range(0, len(new), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=new[first:first + MOST_PARAMS])
        tags = {f"changed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        tags |= starts.settings() | {"group": starts.group, "tags": ", ".join(starts.tags)}
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items() if value])

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        if samples < self.next_step:
            return
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        point = {**values, STEP_KEY: samples}
        self.client.log_batch(self.run_id, [Metric(key, float(value), now, samples) for key, value in point.items()])
        self.next_step = samples + 1
        self.num_sent += 1
        for title, picture in pictures.items():
            self._send_file(lambda: self.client.log_image(
                self.run_id, picture, artifact_file=f"pictures/{title}/{samples:010d}.png"))

    def _send_file(self, send: Any) -> None:
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


def mlflow_problem() -> str:
    """Why MLflow would not know where to send: it would begin a data base in the current folder."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    return "no MLflow server: set MLFLOW_TRACKING_URI to its address, or to sqlite:////PATH/mlflow.db"
