"""The Slurm or Kubernetes job of this process, from the environment; every start and end of a run, in jobs.jsonl."""

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

from srcnn.runtime.untrusted import InvalidInput, open_regular, parse_json

STARTS = "jobs.jsonl"
MAX_STARTS_BYTES = 16 << 20
TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"
TAG_LENGTH, GROUP_LENGTH = 64, 128  # most characters that wandb allows
MAX_HOSTS = 8  # named of a job whose scheduler has no short form for its nodes


@dataclass(frozen=True)
class Job:
    """A scheduler's job, as trackers group runs.

    Attributes:
        group: the same for all jobs of an array, and after a requeue; "" if unknown.
        tags: scheduler, cluster, name of the job.
        facts: what may differ between two starts: number, restart, nodes.
    """

    group: str = ""
    tags: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


def current_job(env: Mapping[str, str] = os.environ) -> Job:
    """The job of this process. WANDB_RUN_GROUP and WANDB_TAGS take precedence over the scheduler's names."""
    job = _slurm(env) if "SLURM_JOB_ID" in env else _kubernetes(env) if "KUBERNETES_SERVICE_HOST" in env else Job()
    group = env.get("WANDB_RUN_GROUP") or job.group[:GROUP_LENGTH]
    named = tuple(tag.strip() for tag in env.get("WANDB_TAGS", "").split(",") if tag.strip())
    tags = named or tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in job.tags if tag))
    facts = job.facts | {"launcher_restart": env.get("TORCHELASTIC_RESTART_COUNT", "0")}
    return Job(group, tags, {key: value for key, value in facts.items() if value not in ("", "0")})


def _slurm(env: Mapping[str, str]) -> Job:
    """All tasks of an array have one group. A requeued job keeps its number."""
    number, array = env["SLURM_JOB_ID"], env.get("SLURM_ARRAY_JOB_ID", "")
    name, cluster = env.get("SLURM_JOB_NAME", ""), env.get("SLURM_CLUSTER_NAME", "")
    task = f"{array}_{env.get('SLURM_ARRAY_TASK_ID', '')}" if array else number
    facts = {"job": f"slurm {task}", "restart": env.get("SLURM_RESTART_COUNT", ""),
             "nodes": env.get("SLURM_JOB_NODELIST", "")}
    return Job("-".join(filter(None, (cluster, name, array or number))), ("slurm", cluster, name), facts)


def _kubernetes(env: Mapping[str, str]) -> Job:
    """The name of the Job is JOB_NAME, if the manifest sets it, or part of the host name, if it is an Indexed Job.

    A new pod, or a new Job of the same name, has the same group. How often a container was restarted is unknown.
    """
    index, host = env.get("JOB_COMPLETION_INDEX", ""), env.get("HOSTNAME", "")
    from_host = host.removesuffix(f"-{index}") if index and host.endswith(f"-{index}") else ""
    name, namespace = env.get("JOB_NAME") or from_host, env.get("POD_NAMESPACE", "")
    facts = {"job": f"kubernetes {name}".strip(), "pod": env.get("POD_NAME") or host, "node": env.get("NODE_NAME", "")}
    return Job("-".join(filter(None, (namespace, name))) if name else "", ("kubernetes", namespace, name), facts)


@dataclass(frozen=True)
class JobHistory:
    """The starts of a run so far, lines of jobs.jsonl. Group and tags are those of the first start that has them."""

    lines: tuple[Mapping[str, Any], ...] = ()

    @property
    def group(self) -> str:
        return next((str(line["group"])[:GROUP_LENGTH] for line in self.lines if line.get("group")), "")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(str(tag)[:TAG_LENGTH] for tag in self.lines[0]["tags"]) if self.lines else ()

    def settings(self) -> dict[str, str]:
        """A text about each start, under a key of its own."""
        return {f"jobs.{number:03d}": f"{line.get('time')} from {line.get('samples')} tiles: "
                + ", ".join(f"{key} {value}" for key, value in line["facts"].items())
                for number, line in enumerate(self.lines, 1)}


def record_start(
    run: Path, samples: int, hosts: Sequence[str] = (), job: Job | None = None, machine: Mapping[str, str] | None = None
) -> JobHistory:
    """Adds a line to jobs.jsonl: a start at `samples` tiles on these hosts, and what `machine` says of hardware and
    versions. Does not raise if that fails.
    """
    job = job or current_job()
    named = list(dict.fromkeys(hosts)) or [socket.gethostname()]
    more = f" and {len(named) - MAX_HOSTS} more" if len(named) > MAX_HOSTS else ""
    facts = {"nodes": " ".join(named[:MAX_HOSTS]) + more} | job.facts
    line = {"time": _now(), "samples": samples, "group": job.group, "tags": list(job.tags), "facts": facts,
            "machine": dict(machine or {})}
    before = read_starts(run).lines
    with contextlib.suppress(OSError, InvalidInput):
        run.mkdir(parents=True, exist_ok=True)
        _append(run, line)
    return JobHistory((*before, line))


def record_end(run: Path, samples: int, how: str) -> None:
    """Adds a line to jobs.jsonl: the process ended at `samples` tiles, complete, stopped or failed. Does not raise."""
    with contextlib.suppress(OSError, InvalidInput):
        _append(run, {"time": _now(), "samples": samples, "end": how})


def _now() -> str:
    return time.strftime(TIME_FORMAT, time.gmtime())


def _append(run: Path, line: Mapping[str, Any]) -> None:
    with open_regular(run / STARTS, MAX_STARTS_BYTES, follow=False, append=True) as file:
        file.seek(max(file.tell() - 1, 0))
        is_torn = file.read(1) not in (b"", b"\n")  # a kill cut the line before
        file.write((b"\n" if is_torn else b"") + json.dumps(line).encode() + b"\n")


def read_starts(run: Path) -> JobHistory:
    """Reads jobs.jsonl, which may be a stranger's; lines that are torn or of another form are skipped.

    The line of a start has the content of the line of its end, where there is one, under `end`.
    """
    lines: list[Mapping[str, Any]] = []
    with contextlib.suppress(OSError, InvalidInput), open_regular(run / STARTS, MAX_STARTS_BYTES, follow=False) as file:
        for text in file:
            with contextlib.suppress(ValueError):
                line = parse_json(text)
                if not isinstance(line, dict):
                    continue
                if (type(line.get("facts")), type(line.get("tags"))) == (dict, list):
                    lines.append({key: value for key, value in line.items() if key != "end"})
                elif lines and isinstance(line.get("end"), str):
                    lines[-1] = {**lines[-1], "end": {key: line.get(key) for key in ("time", "samples", "end")}}
    return JobHistory(tuple(lines))
