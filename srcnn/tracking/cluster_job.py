"""The Slurm or Kubernetes job that a training runs in, by its variables, and every start of a run: jobs.jsonl."""

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
MAX_NAMED = 8  # nodes of a job whose scheduler has no short way to write them


@dataclass(frozen=True)
class Job:
    """What groups runs in trackers.

    Attributes:
        group: the same for all that belongs together (an array of jobs) and after a requeue; "" where nothing tells.
        tags: the scheduler, the cluster, the job's name.
        facts: what may differ from one start to the next: number, restart, nodes.
    """

    group: str = ""
    tags: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


def current_job(env: Mapping[str, str] = os.environ) -> Job:
    """The job of this process. What the user says to wandb (WANDB_RUN_GROUP, WANDB_TAGS) goes first."""
    job = _slurm(env) if "SLURM_JOB_ID" in env else _kubernetes(env) if "KUBERNETES_SERVICE_HOST" in env else Job()
    group = env.get("WANDB_RUN_GROUP") or job.group[:GROUP_LENGTH]
    named = tuple(tag.strip() for tag in env.get("WANDB_TAGS", "").split(",") if tag.strip())
    tags = named or tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in job.tags if tag))
    facts = job.facts | {"launcher_restart": env.get("TORCHELASTIC_RESTART_COUNT", "0")}
    return Job(group, tags, {key: value for key, value in facts.items() if value not in ("", "0")})


def _slurm(env: Mapping[str, str]) -> Job:
    """All tasks of an array are one group. A job that is requeued keeps its number."""
    number, array = env["SLURM_JOB_ID"], env.get("SLURM_ARRAY_JOB_ID", "")
    name, cluster = env.get("SLURM_JOB_NAME", ""), env.get("SLURM_CLUSTER_NAME", "")
    task = f"{array}_{env.get('SLURM_ARRAY_TASK_ID', '')}" if array else number
    facts = {"job": f"slurm {task}", "restart": env.get("SLURM_RESTART_COUNT", ""),
             "nodes": env.get("SLURM_JOB_NODELIST", "")}
    return Job("-".join(filter(None, (cluster, name, array or number))), ("slurm", cluster, name), facts)


def _kubernetes(env: Mapping[str, str]) -> Job:
    """A pod knows its Job's name from the manifest (JOB_NAME), or from its own if it is one of an Indexed Job.

    A pod that is made anew, or a Job that is, has the same group; no pod knows how often a container was restarted.
    """
    index, host = env.get("JOB_COMPLETION_INDEX", ""), env.get("HOSTNAME", "")
    of_host = host.removesuffix(f"-{index}") if index and host.endswith(f"-{index}") else ""
    name, namespace = env.get("JOB_NAME") or of_host, env.get("POD_NAMESPACE", "")
    facts = {"job": f"kubernetes {name}".strip(), "pod": env.get("POD_NAME") or host, "node": env.get("NODE_NAME", "")}
    return Job("-".join(filter(None, (namespace, name))) if name else "", ("kubernetes", namespace, name), facts)


@dataclass(frozen=True)
class JobHistory:
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
        return {f"jobs.{number:03d}": f"{line.get('time')} from {line.get('samples')} tiles: "
                + ", ".join(f"{key} {value}" for key, value in line["facts"].items())
                for number, line in enumerate(self.lines, 1)}


def record_start(run: Path, samples: int, hosts: Sequence[str] = (), job: Job | None = None) -> JobHistory:
    """Adds a line to jobs.jsonl: the run goes on from `samples` on these hosts. Raises nothing."""
    job = job or current_job()
    named = list(dict.fromkeys(hosts)) or [socket.gethostname()]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    facts = {"nodes": " ".join(named[:MAX_NAMED]) + more} | job.facts
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    line = {"time": now, "samples": samples, "group": job.group, "tags": list(job.tags), "facts": facts}
    before = read_starts(run).lines
    with contextlib.suppress(OSError):  # metrics.jsonl, beside it, says that nothing can be written
        run.mkdir(parents=True, exist_ok=True)
        with (run / STARTS).open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            is_torn = file.read(1) not in (b"", b"\n")  # the line before, by a kill
            file.write((b"\n" if is_torn else b"") + json.dumps(line).encode() + b"\n")
    return JobHistory((*before, line))


def read_starts(run: Path) -> JobHistory:
    """What jobs.jsonl of a run has; what is torn or no such line is left out."""
    lines = []
    with contextlib.suppress(OSError):
        for text in (run / STARTS).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("facts"), dict):
                    lines.append(line)
    return JobHistory(tuple(lines))
