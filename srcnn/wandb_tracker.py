"""A training run in wandb, and what the other nodes of its job send to it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srcnn.cluster_job import Starts
from srcnn.config import without_credentials
from srcnn.history import STEP_KEY, Values, merge_by_step
from srcnn.tracker import FINISH_SECONDS, Level, Pictures, end_wandb, hyperparameters
from srcnn.wandb_files import last_step, mend, wandb_files

logger = logging.getLogger(__name__)
START_SECONDS = 60.0  # wandb's own is 90; WANDB_INIT_TIMEOUT goes before it
SHOWN_SECONDS = 10.0  # of FINISH_SECONDS: within these the server shows what it has taken
TITLE_LENGTH = 63  # of an alert


class Wandb:
    """A wandb run that goes on where what it has ends: of `points` it is sent those that it lacks.

    Rows carry the progress as their step and are complete when sent. wandb-core holds back some (it writes its file by
    blocks of 32 KiB, and sends every 15 s), so that a kill loses them: they are among the points it lacks next time.
    Pictures are not: only the numbers are in metrics.jsonl.
    """

    def __init__(
        self, run: Path, config: Mapping[str, Any], run_id: str, points: Sequence[Values], starts: Starts = Starts(),
        is_shared: bool = False, online: bool | None = None,
    ) -> None:
        """`is_shared`: other nodes send their system metrics to the run. `online` None: as WANDB_MODE says, or else
        offline without an account.

        Raises whatever wandb raises, within START_SECONDS and some; ValueError where it would ask for a key, and where
        a sweep wants a new run in a folder that has one.
        """
        import wandb

        earlier = wandb_files(run, run_id)
        self.wandb, self.folder, self.run_id, self.last = wandb, run, run_id, -1
        mode: Any = "shared" if is_shared else wandb_mode(online)
        self.is_shared = mode == "shared"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "srcnn"), name=run.name, dir=str(run), id=run_id, resume="allow",
            config=hyperparameters(config) | starts.settings(), mode=mode, group=starts.group or None,
            tags=starts.tags or None, job_type=os.environ.get("WANDB_JOB_TYPE", "train"),
            settings=wandb.Settings(**_settings() | _label(self.is_shared)),
        )
        if self.run.id != run_id:
            raise ValueError(f"{run} is run {run_id}, a sweep's trial wants to be {self.run.id}: one folder for each")
        if not self.run.disabled and not Path(self.run.dir).resolve().is_relative_to(run.resolve()):
            raise OSError(f"{run}: wandb cannot write there")
        self.run.define_metric(STEP_KEY)
        self.run.define_metric("*", step_metric=STEP_KEY)
        self.is_offline, self.path, self.url = self.run.offline, self.run.path, self.run.url or ""
        self.next_step = self.first_step()
        if self.is_offline:
            mend(earlier)
        self.num_sent = 0
        if self.url:
            logger.info("wandb: %s", self.url)
        for samples, values in merge_by_step(points).items():
            self.log(samples, values, {})

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        self.last = samples
        if samples >= self.next_step:
            images = {title: self.wandb.Image(picture) for title, picture in pictures.items()}
            # In a shared run rows are numbered as they come.
            self.run.log({STEP_KEY: samples, **values, **images}, step=None if self.is_shared else samples, commit=True)
            self.next_step = samples + 1
            self.num_sent += 1

    def log_artifact(self, title: str, folder: Path) -> None:
        self.run.log_artifact(str(folder), name=title, type="model")

    def alert(self, title: str, text: str, level: Level) -> None:
        self.run.alert(title[:TITLE_LENGTH], text, level)

    def preempted(self) -> None:
        self.run.mark_preempting()

    def finish(self, exit_code: int) -> None:
        """Raises where the points did not arrive: wandb-core itself goes on silently when its disk or server fails."""
        self.run.finish(exit_code=exit_code)
        if self.is_offline:
            end_wandb()  # only then is the file whole
        deadline = time.monotonic() + SHOWN_SECONDS
        while self.last >= 0 and (shown := self.last_step()) < self.last:
            if self.is_offline or time.monotonic() > deadline:
                raise OSError(f"it has the points up to {max(shown, 0)} of {self.last}")
            time.sleep(1)

    def first_step(self) -> int:
        """The first that the run lacks. Where it was once shared the progress in its summary is past its steps."""
        if self.is_offline:
            return self.last_step() + 1
        return max(_progress(self.run.summary) + 1, 0 if self.is_shared else self.run.starting_step)

    def last_step(self) -> int:
        """The last step in the files of an offline run, or on the server."""
        if self.run.disabled:
            return self.last
        if self.is_offline:
            return last_step(wandb_files(self.folder, self.run_id))
        shown = self.wandb.Api(timeout=int(SHOWN_SECONDS)).run(self.path)
        return _progress(shown.summary) if self.is_shared else int(shown.lastHistoryStep)


class NodeMetrics:
    """A node's system metrics, sent to the run of the first node: nothing else comes from here."""

    def __init__(self, run_id: str) -> None:
        import wandb

        self.folder = tempfile.TemporaryDirectory(prefix="wandb-")  # in the run's own, files would have one name
        settings = {"x_primary": False, "x_update_finish_state": False, "x_disable_meta": True}
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "srcnn"), dir=self.folder.name, id=run_id, mode="shared",
            settings=wandb.Settings(**_settings() | _label(True) | settings),
        )

    def log(self, samples: int, values: Values, pictures: Pictures) -> None:
        """The first node's."""

    def log_artifact(self, title: str, folder: Path) -> None:
        """The first node's."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """The first node's."""

    def preempted(self) -> None:
        """The first node's."""

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        end_wandb()
        self.folder.cleanup()


def _progress(summary: Any) -> int:
    return int(summary[STEP_KEY]) if STEP_KEY in summary.keys() else -1


def _label(is_shared: bool) -> dict[str, Any]:
    return {"x_label": socket.gethostname()} if is_shared else {}


def can_be_shared() -> bool:
    """Whether other nodes can send to a run: it is online."""
    try:
        return wandb_mode(None) in ("online", "run", "shared")
    except ValueError:  # the tracker will say it
        return False


def wandb_mode(online: bool | None) -> Any:
    """ValueError where wandb would be online without an account, and ask for one."""
    named = "online" if online else os.environ.get("WANDB_MODE")
    if named in (None, "online", "run", "shared") and not _has_account():
        if named is not None:
            raise ValueError("no wandb account: set WANDB_API_KEY or run `wandb login`")
        return "offline"
    return named or "online"


def _has_account() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    with contextlib.suppress(OSError):
        if netrc.is_file() and "wandb" in netrc.read_text(errors="replace"):
            return True
    return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def _settings() -> dict[str, Any]:
    """What is set unless the environment says otherwise."""
    os.environ.setdefault("WANDB_SILENT", "true")
    settings = {
        "init_timeout": START_SECONDS,
        "finish_timeout": FINISH_SECONDS - 2 * SHOWN_SECONDS,
        "finish_timeout_raises": True,
        "console": "off",  # its hook in sys.stdout waits for wandb-core in whoever prints
        "x_disable_meta": any(without_credentials(word) != word for word in sys.argv),  # it holds the command line
    }
    return {key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ}
