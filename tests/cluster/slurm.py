"""A Slurm cluster on this machine: munged, slurmctld and a slurmd for each node of tests/cluster/nodes.py, all real.

Debian's slurmd cannot be several on one host, so each has a network and a host name of its own. No cgroups; each node
claims the cores of the machine. Waits are short where Slurm lets them be set: a requeued job is held for as long as a
credential lives (AuthInfo's cred_expire: two minutes elsewhere, seconds here).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TEST
from nodes import Node, cluster, needs_nodes

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CORES = 2  # of each node
PATIENCE = 300.0  # seconds for anything that is waited for
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
CONF = """
ClusterName=test
SlurmctldHost={first}({first_address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=20
SlurmdTimeout=20
MessageTimeout=10
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={names} CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={names} Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes={names} PriorityTier=2
"""


def needs_slurm() -> list[pytest.MarkDecorator]:
    """Skips where there is no Slurm or no network namespaces, and says why."""
    absent = [tool for tool in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(tool, path=PATH)]
    return [pytest.mark.skipif(bool(absent), reason=f"no {', '.join(absent)} here: make test-slurm"), needs_nodes()]


class Slurm:
    """The cluster; jobs are known by their number, as text."""

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self.folder, self.nodes = folder, nodes
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        names = ",".join(node.name for node in nodes)
        for node in nodes:
            (folder / f"spool-{node.name}").mkdir()
        (folder / "state").mkdir()
        first = nodes[0]
        (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}\n")  # not looked for
        (folder / "slurm.conf").write_text(CONF.format(first=first.name, first_address=first.address, folder=folder,
                                                       names=names, cores=CORES))

    def start(self) -> None:
        folder = self.folder
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        options = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log",
                   "seed-file": "munge.seed"}
        self._start("munged", ["munged", "--foreground", "--force",
                               *(f"--{option}={folder / name}" for option, name in options.items())])
        wait_for(lambda: (folder / "munge.socket").exists())
        self._start("slurmctld", self.nodes[0].command("slurmctld", "-D", "-c"))
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: self.told("sinfo", "--noheader", "--format=%D %T", "--partition=main")
                 == f"{len(self.nodes)} idle")

    def start_node(self, node: Node) -> None:
        self._start(node.name, node.command("slurmd", "-D"))

    def stop(self) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()

    def lose(self, node: Node) -> None:
        """The node loses its power: its cable is dead, and so is everything that ran on it."""
        node.pull_out()
        running = subprocess.run(["ip", "netns", "pids", node.namespace], capture_output=True, text=True).stdout.split()
        subprocess.run(["kill", "-9", *running], capture_output=True)
        self._daemons[node.name].wait()

    def bring_back(self, node: Node) -> None:
        node.plug_in()
        self.start_node(node)

    def told(self, *words: object) -> str:
        """What a command of Slurm's prints, run on the first node; "" where it fails."""
        return self._run(*words).stdout.strip()

    def submit(self, script: str | Path, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> str:
        """`sbatch`, from the root of the repository; returns the job's number."""
        command = ("sbatch", "--parsable", *options, script, *arguments)
        done = self._run(*command, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(self, *words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.nodes[0].command(*words), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
                              env=self._environment() | (environment or {}))

    def job(self, number: str, *keys: str) -> list[str]:
        """What `scontrol show job` says of these."""
        told = self.told("scontrol", "show", "job", number)
        return [found.group(1) if (found := re.search(rf"\b{key}=(\S*)", told)) else "" for key in keys]

    def has_step(self, number: str) -> bool:
        """Whether its first step runs, which hears the signals for the job."""
        return f"{number}.0" in self.told("squeue", "--steps", f"--jobs={number}", "--noheader", "--format=%i").split()

    def wait_until_over(self, number: str) -> str:
        """The state in which the job ended for good; a requeued job is waited for."""
        wait_for(lambda: self.job(number, "JobState")[0] in OVER, 2 * PATIENCE)
        return self.job(number, "JobState")[0]

    def clear(self) -> None:
        """No job is left to take the nodes from the next."""
        self.told("scancel", "--user=root")
        wait_for(lambda: not self.told("squeue", "--noheader"))

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out,
                                                   stdin=subprocess.DEVNULL, env=self._environment())

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", TEST))}
        return ours | {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": str(ROOT),
                       "OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.3)


@contextmanager
def slurm(folder: Path, num_nodes: int = 2) -> Iterator[Slurm]:
    """A cluster whose daemons keep all they write in `folder`; all that was started is ended at the end."""
    with cluster(num_nodes) as nodes:
        running = Slurm(folder, nodes)
        try:
            running.start()
            yield running
        finally:
            running.stop()
