"""A training on two nodes whose cable is slow, loses packets or is cut, and whose processes die: the same training."""

import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import SETTINGS, assert_same_run, start, succeed
from messages import lines_with
from node_jobs import ROOT, NodesJob
from nodes import cluster, needs_nodes
from small import small_shards

from srcnn.models.srcnn import ModelConfig
from srcnn.tracking.history import read_metrics

pytestmark = [pytest.mark.slow, needs_nodes()]
COMMON = SETTINGS | {"total_samples": 2400, "log_every_samples": 240, "validate_every_samples": 960,
                     "save_every_samples": 120, "timeout_minutes": 1}
LIMIT_SECONDS = 18  # more than two ranks that start together may be apart
SLACK_SECONDS = 60  # for launchers and ranks to end on a busy machine: 2 on a quiet one
GRADIENT_BYTES = 4 * 8129


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(small_shards(tmp_path_factory.mktemp("shards")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shards):
    """The run of one machine with two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed(start(2, folder, **COMMON | {"shards": shards, "run": str(folder / "run")}))
    return folder / "run"


@pytest.fixture(scope="module")
def two_nodes():
    with cluster(2) as nodes:
        yield nodes


@pytest.fixture
def nodes(two_nodes):
    yield two_nodes
    for node in two_nodes:
        node.mend()
        node.know(two_nodes)
        for process in subprocess.run(["ip", "netns", "pids", node.namespace], capture_output=True,
                                      text=True).stdout.split():  # of a test that failed
            os.kill(int(process), signal.SIGKILL)


def test_over_a_cable_that_is_slow_then_lossy_then_cut_for_ten_seconds_it_is_the_same_training(
    tmp_path, nodes, shards, undisturbed
):
    job = NodesJob(nodes, tmp_path, COMMON | {"shards": shards, "run": str(tmp_path / "run")}).start()
    job.wait_for(120)
    nodes[1].slow(1000)
    job.wait_for(job.samples() + 240)
    nodes[1].mend()
    nodes[0].lose(5)
    job.wait_for(job.samples() + 240)
    nodes[0].mend()
    nodes[1].pull_out()
    time.sleep(2)  # a checkpoint that was begun is on the disk
    before = job.samples()
    time.sleep(8)
    assert job.samples() == before < COMMON["total_samples"], "no step without the cable"
    nodes[1].plug_in()
    job.succeed()
    assert_same_run(tmp_path / "run", undisturbed)


def test_whatever_happens_to_a_node_both_end_in_time_and_the_same_command_goes_on(
    tmp_path, nodes, shards, undisturbed
):
    """One training, disturbed again and again; each start proves that what was before could be continued."""
    settings = COMMON | {"shards": shards, "run": str(tmp_path / "run"), "timeout_minutes": LIMIT_SECONDS / 60}
    seen = 0

    def disturb(how, who, environment=None):
        """What both nodes said, disturbed after a hundred samples more; all their processes have ended."""
        nonlocal seen
        job = NodesJob(nodes, tmp_path, settings, environment=environment).start()
        job.wait_for(seen + 120)
        processes = [one for rank in (0, 1) for one in job.processes(rank)]
        how(job, who)
        assert all(job.end_within(LIMIT_SECONDS + SLACK_SECONDS, processes)), "they say that they failed"
        nodes[who].mend()
        seen, before = job.samples(), seen
        assert before < seen < COMMON["total_samples"]
        return [job.said(rank) for rank in (0, 1)]

    for who in (0, 1):
        for said in disturb(lambda job, who: nodes[who].pull_out(), who):
            assert lines_with(said, "launch/train.py:", "network", "checkpoint")
    assert lines_with(disturb(NodesJob.kill, 1)[0], "launch/train.py:", "rank")
    for said in disturb(lambda job, who: job.launchers[who].terminate(), 1):
        assert lines_with(said, "launch/train.py:", "SIGTERM")
    heard = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    for said in disturb(lambda job, who: job.launchers[who].send_signal(signal.SIGUSR1), 0, heard):
        assert lines_with(said, "launch/train.py:", "SIG")
    assert seen > read_metrics(tmp_path / "run")[-1]["samples"]
    NodesJob(nodes, tmp_path, settings).start().succeed()
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_launcher_whose_other_node_never_comes_ends_in_time(tmp_path, nodes, shards):
    settings = COMMON | {"shards": shards, "run": str(tmp_path / "run")}
    job = NodesJob(nodes, tmp_path, settings, launcher=("--rdzv_conf", "timeout=5")).start(0)
    assert job.end_within(5 + SLACK_SECONDS) == [1]
    assert "1/2" in job.said(0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_other_never_comes_ends_in_time_and_says_what_to_look_at(tmp_path, nodes, shards, rank):
    """As srun starts them: no launcher waits before."""
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node1",
                                "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = (sys.executable, ROOT / "launch/train.py", "--shards", shards, "--run", tmp_path / "run",
             "--trackers", "[]", "--timeout_minutes", "0.05")
    done = subprocess.run(nodes[rank].command(*words), env=environment, cwd=ROOT, text=True, capture_output=True,
                          timeout=3 + SLACK_SECONDS)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines_with(done.stderr, "node1:29500", "srcnn doctor", "GLOO_SOCKET_IFNAME")


def test_names_that_are_loopback_addresses_are_found_by_the_doctor_and_do_not_keep_the_nodes_apart(
    tmp_path, nodes, shards
):
    """Debian's /etc/hosts has 127.0.1.1 for the machine's own name, and gloo takes what that name is."""
    for node in nodes:
        node.know(nodes, own_address="127.0.1.1")
    words = (sys.executable, "-m", "srcnn", "doctor", "--shards", shards, "--run", tmp_path / "run", "--ranks", "2",
             "--machines", "2", "--trackers", "[]", "--batch_size", "12", "--mixed_precision", "no")
    told = {}
    for name in ("", "eth7"):
        environment = os.environ | {"MASTER_ADDR": "node1"} | ({"GLOO_SOCKET_IFNAME": name} if name else {})
        done = subprocess.run(nodes[1].command(*words), env=environment, cwd=ROOT, text=True, capture_output=True)
        told[name] = done.returncode, done.stdout
    assert told[""][0] == 0 and lines_with(told[""][1], "node2", "127.0.1.1", "eth0")
    assert told["eth7"][0] == 1 and lines_with(told["eth7"][1], "GLOO_SOCKET_IFNAME", "eth7")
    settings = COMMON | {"shards": shards, "run": str(tmp_path / "run"), "total_samples": 48}
    job = NodesJob(nodes, tmp_path, settings).start()
    job.succeed()
    assert all(lines_with(job.said(rank), "GLOO_SOCKET_IFNAME", "eth0") for rank in (0, 1))


def test_a_step_sends_the_gradients_once_and_little_else(tmp_path, nodes, shards):
    """Counted over a whole training, as counts read in between would be of other steps than the checkpoint's."""
    num_steps = 200
    settings = COMMON | {"shards": shards, "run": str(tmp_path / "run"), "batch_size": 2,
                         "total_samples": 2 * num_steps, "log_every_samples": 10**6, "validate_every_samples": 10**6,
                         "save_every_samples": 0, "model": {"filters": list(ModelConfig().filters)}}
    before = [node.traffic() for node in nodes]
    NodesJob(nodes, tmp_path, settings).start().succeed()
    for node, old in zip(nodes, before, strict=True):
        for new_bytes, old_bytes in zip(node.traffic(), old, strict=True):
            assert GRADIENT_BYTES < (new_bytes - old_bytes) / num_steps < 1.2 * GRADIENT_BYTES
