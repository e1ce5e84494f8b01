"""The wandb tracker.

Tested with wandb 0.31, of which it uses beside what is documented: Run.starting_step, lastHistoryStep of a run of the
public API, and the setting x_disable_meta (tests/tracking/test_wandb_internals.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_file
from srcnn.runtime.parallel import call_with_timeout
from srcnn.runtime.settings import flat
from srcnn.runtime.untrusted import open_regular
from srcnn.tracking.cluster_job import JobHistory
from srcnn.tracking.history import STEP_KEY, Values
from srcnn.tracking.tracker import FINISH_SECONDS, DatasetRecord, Level, Pictures, Tracker, hyperparameters

logger = logging.getLogger(__name__)
START_SECONDS = 60.0  # instead of wandb's 90, unless WANDB_INIT_TIMEOUT is set
CONFIRM_SECONDS = 10.0  # of FINISH_SECONDS: in which the server has to show the last point
ARTIFACT_SECONDS = 20.0  # in which the server has to accept an artifact of a few hundred bytes
TITLE_LENGTH = 63  # of an alert
MAX_LAST_STEP_BYTES = 20
LAST_STEP = "last_step.txt"  # holds the last step of an offline run, in its folder, once its file is complete


class Wandb(Tracker):
    """A wandb run, made or resumed; it is sent the `points` that it lacks.

    The number of samples is wandb's step. A point is sent in one call, as wandb drops further values of a step.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values],
        jobs: JobHistory = JobHistory(), online: bool | None = None, dataset: DatasetRecord | None = None,
    ) -> None:
        """`online` None: as WANDB_MODE says; where it is not set, online with an account and else offline. The hashes
        of the `dataset` are settings of the run, and it is its input, which wandb knows of online runs only.

        Raises:
            ValueError: there is no account, or a sweep wants another run in this folder.
            Exception: the errors of wandb, after little more than START_SECONDS.
        """
        import wandb

        mode, earlier = wandb_mode(online), sorted(run.glob(f"wandb/offline-run-*-{run_id}"))
        self.wandb = wandb
        if mode == "disabled":
            logger.info("wandb is disabled by WANDB_DISABLED or WANDB_MODE")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "srcnn"), name=run.name, dir=str(run), id=run_id, resume="allow",
            config=hyperparameters(config) | jobs.settings() | dataset_settings(dataset), mode=mode,
            group=jobs.group or None, tags=jobs.tags or None, job_type=os.environ.get("WANDB_JOB_TYPE", "train"),
            settings=wandb.Settings(**_settings()),
        )
        if self.run.id != run_id:
            raise UserError(f"{run} is run {run_id}, a sweep's trial wants to be {self.run.id}: use a folder for each")
        if not self.run.disabled and not Path(self.run.dir).resolve().is_relative_to(run.resolve()):
            raise OSError(f"{run}: wandb cannot write there")
        self.run.define_metric(STEP_KEY)
        self.run.define_metric("*", step_metric=STEP_KEY)
        self.next_step = first_missing_step(earlier) if self.run.offline else self.run.starting_step
        self.url = self.run.url or ""
        if self.url:
            logger.info("wandb: %s", self.url)
        offline = f"send it with wandb sync {shlex.quote(str(Path(self.run.dir).parent))}" if self.run.offline else ""
        self.place = self.url or offline
        self.log_missing(points)
        if dataset and not (self.run.offline or self.run.disabled):
            self.use_dataset(dataset)

    def use_dataset(self, dataset: DatasetRecord) -> None:
        """Makes the shards an input of the run: an artifact of references by hash. Nothing of them is uploaded."""
        artifact = self.wandb.Artifact(dataset.name, "dataset", metadata={
            "location": without_credentials(dataset.location), **dataset.splits})
        for split, facts in dataset.splits.items():
            artifact.add_reference(f"urn:sha256:{facts['sha256']}", f"{split}/manifest.json", checksum=False)
        send_artifact("the shards as an input of the run", lambda: self.run.use_artifact(artifact))

    def send(self, samples: int, values: Values, pictures: Pictures) -> None:
        images = {title: self.wandb.Image(picture) for title, picture in pictures.items()}
        self.run.log({STEP_KEY: samples, **values, **images}, step=samples, commit=True)

    def log_artifact(self, title: str, folder: Path, scores: Values, aliases: Sequence[str]) -> None:
        artifact = self.wandb.Artifact(title, "model", metadata=dict(scores))
        artifact.add_dir(str(folder))
        send_artifact(title, lambda: self.run.log_artifact(artifact, aliases=["latest", *aliases]))

    def alert(self, title: str, text: str, level: Level) -> None:
        self.run.alert(title[:TITLE_LENGTH], text, level)

    def preempted(self) -> None:
        self.run.mark_preempting()

    def finish(self, exit_code: int) -> None:
        """Raises OSError where the points did not arrive, as wandb-core reports nothing when its server fails."""
        folder, path = Path(self.run.dir).parent, self.run.path
        self.run.finish(exit_code=exit_code)
        if self.run.disabled or not self.num_sent:
            return
        if self.run.offline:
            end_wandb()  # completes the file
            write_file(folder / LAST_STEP, b"%d\n" % (self.next_step - 1))
            return
        deadline = time.monotonic() + CONFIRM_SECONDS
        while (last := self.wandb.Api(timeout=int(CONFIRM_SECONDS)).run(path).lastHistoryStep) < self.next_step - 1:
            if time.monotonic() > deadline:
                raise OSError(f"the server has the points up to {max(last, 0)} of {self.next_step - 1}")
            time.sleep(1)


def dataset_settings(dataset: DatasetRecord | None) -> dict[str, Any]:
    """The hashes of the shards and what else is known of them, as settings of a run."""
    return {f"data.{key}": value for key, value in flat(dataset.splits).items()} if dataset else {}


def send_artifact(what: str, send: Callable[[], object]) -> None:
    """Sends an artifact; warns where that fails, or takes long: wandb waits for its server without a limit."""
    try:
        call_with_timeout(send, ARTIFACT_SECONDS)
    except Exception as error:  # whatever wandb raises
        reason = without_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
        logger.warning("wandb did not take %s: %s", what, reason)


def first_missing_step(folders: Sequence[Path]) -> int:
    """The first step that the offline runs in these folders lack.

    The file of a killed process is torn, and would stop `wandb sync` of several: its folder is renamed, and its points
    are logged again.
    """
    first = 0
    for folder in folders:
        try:
            with open_regular(folder / LAST_STEP, MAX_LAST_STEP_BYTES, follow=False) as file:
                first = max(first, int(file.read()) + 1)
        except (OSError, ValueError):
            folder.rename(folder.with_name(f"incomplete-{folder.name}"))
    return first


def end_wandb() -> None:
    """Ends wandb-core when it has done its work, so that wandb does not wait for it at the end of the process."""
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


def kill_wandb_core() -> None:
    """Kills a wandb-core that hangs: it would try a dead server for ever, and keep this process's output open."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("wandb-core"):
                process.kill()


def wandb_mode(online: bool | None) -> Any:
    """The mode for wandb.init. Raises ValueError where wandb would be online, but there is no account."""
    if not online and os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"  # which wandb itself does no more, but Transformers still does
    named = "online" if online else os.environ.get("WANDB_MODE")
    if named in (None, "online", "run", "shared") and not _has_account():
        if named is not None:
            raise UserError("no wandb account: set WANDB_API_KEY or run `wandb login`")
        return "offline"
    return named or "online"


def _has_account() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    with contextlib.suppress(OSError):
        if netrc.is_file() and "wandb" in netrc.read_text(errors="replace"):
            return True
    return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def _settings() -> dict[str, Any]:
    """Settings of wandb that the environment does not set."""
    os.environ.setdefault("WANDB_SILENT", "true")
    settings = {
        "init_timeout": START_SECONDS,
        "finish_timeout": FINISH_SECONDS - 2 * CONFIRM_SECONDS,
        "finish_timeout_raises": True,
        "console": "off",  # its hook in sys.stdout makes every print wait for wandb-core
        "x_disable_meta": any(without_credentials(word) != word for word in sys.argv),  # these have the command line
    }
    return {key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ}
