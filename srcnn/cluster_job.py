"""The cluster's job that a training runs in, as Slurm or Kubernetes tell it, and every start of a run: jobs.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTS = "jobs.jsonl"
TAG_LENGTH, GROUP_LENGTH = 64, 128  # characters that wandb takes
MOST_NAMED = 8  # nodes of a job whose scheduler has no short way to write them


@dataclass(frozen=True)
class Job:
    """What trackers put runs in order by.

    Attributes:
        group: the same for all that belongs together (an array of jobs) and after a requeue; "" where nothing tells.
        tags: the scheduler, the cluster, the job's name.
        facts: what may differ from one start to the next: number, restart, nodes.
    """

    group: str = ""
    tags: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


def job_here(environment: Mapping[str, str] | None = None) -> Job:
    """The job this process is of. What the user says to wandb (WANDB_RUN_GROUP, WANDB_TAGS) goes first."""
    told = os.environ if environment is None else environment
    if "SLURM_JOB_ID" in told:
        job = _slurm(told)
    elif "KUBERNETES_SERVICE_HOST" in told:
        job = _kubernetes(told)
    else:
        job = Job()
    group = told.get("WANDB_RUN_GROUP") or job.group[:GROUP_LENGTH]
    named = [tag.strip() for tag in told.get("WANDB_TAGS", "").split(",")]
    tags = tuple(filter(None, named)) or tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in job.tags if tag))
    facts = job.facts | {"launcher_restart": told.get("TORCHELASTIC_RESTART_COUNT", "0")}
    return Job(group, tags, {key: value for key, value in facts.items() if value and value != "0"})


def _slurm(told: Mapping[str, str]) -> Job:
    """All tasks of an array are one group. A job that is requeued keeps its number."""
    number, array = told["SLURM_JOB_ID"], told.get("SLURM_ARRAY_JOB_ID", "")
    name, cluster = told.get("SLURM_JOB_NAME", ""), told.get("SLURM_CLUSTER_NAME", "")
    task = f"{array}_{told.get('SLURM_ARRAY_TASK_ID', '')}" if array else number
    facts = {"job": f"slurm {task}", "restart": told.get("SLURM_RESTART_COUNT", ""),
             "nodes": told.get("SLURM_JOB_NODELIST", "")}
    return Job("-".join(filter(None, (cluster, name, array or number))), ("slurm", cluster, name), facts)


def _kubernetes(told: Mapping[str, str]) -> Job:
    """A pod knows its Job's name if the manifest tells it (JOB_NAME), or if it is one of an Indexed Job, from its own.

    A pod that is made anew, or a Job that is, has the same group; how often a container was restarted no pod is told.
    """
    index, host = told.get("JOB_COMPLETION_INDEX", ""), told.get("HOSTNAME", "")
    of_host = host.removesuffix(f"-{index}") if index and host.endswith(f"-{index}") else ""
    name, namespace = told.get("JOB_NAME") or of_host, told.get("POD_NAMESPACE", "")
    facts = {"job": f"kubernetes {name}".strip(), "pod": told.get("POD_NAME") or host}
    facts["node"] = told.get("NODE_NAME", "")
    return Job("-".join(filter(None, (namespace, name))) if name else "", ("kubernetes", namespace, name), facts)


@dataclass(frozen=True)
class Starts:
    """Every start of a run so far; its group and tags are those of the first."""

    lines: tuple[Mapping[str, Any], ...] = ()

    @property
    def group(self) -> str:
        return next((str(line["group"]) for line in self.lines if line.get("group")), "")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(map(str, self.lines[0].get("tags", ()))) if self.lines else ()

    def settings(self) -> dict[str, str]:
        """A text for each start, under a key that no other start has."""
        return {f"jobs.{number:03d}": _text(line) for number, line in enumerate(self.lines, 1)}


def _text(line: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in line.get("facts", {}).items())
    return f"{line.get('time')} from {line.get('samples')} tiles: {facts}"


def note_start(run: Path, samples: int, hosts: Sequence[str] = (), job: Job | None = None) -> Starts:
    """Adds a line to jobs.jsonl: the run goes on from `samples` on these hosts. Raises nothing."""
    job = job or job_here()
    named = list(dict.fromkeys(hosts)) or [socket.gethostname()]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    facts = {"nodes": " ".join(named[:MOST_NAMED]) + more} | job.facts
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    line = {"time": now, "samples": samples, "group": job.group, "tags": list(job.tags), "facts": facts}
    before = read_starts(run).lines
    with contextlib.suppress(OSError):  # metrics.jsonl, beside it, says that nothing can be written
        run.mkdir(parents=True, exist_ok=True)
        with (run / STARTS).open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # what a kill left of the line before
            file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
    return Starts((*before, line))


def read_starts(run: Path) -> Starts:
    """What jobs.jsonl of a run has; what is torn or no such line is left out."""
    try:
        text = (run / STARTS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Starts()
    lines = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("facts"), dict):
            lines.append(found)
    return Starts(tuple(lines))
