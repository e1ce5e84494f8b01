"""The jobs of launch/slurm under real Slurm daemons: told to stop, pre-empted, cut off, failing, right in the end."""

import psutil
import pytest
import yaml
from conftest import contents, make
from jobs import LONG, SETTINGS, assert_same_run, consumed, start, succeed
from messages import lines_with
from slurm import Slurm, needs_slurm, slurm, wait_for
from small import small_shards, write_photos
from test_dask import GATE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), *needs_slurm()]
TRAIN, SHARDS = "launch/slurm/train.sbatch", "launch/slurm/shards.sbatch"
WHOLE = {"total_samples": 3600, "log_every_samples": 240, "validate_every_samples": 960, "save_every_samples": 120}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A path with a space, as all that the jobs are given."""
    return tmp_path_factory.mktemp("slurm jobs")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def shards(folder):
    return str(small_shards(folder))


@pytest.fixture(scope="module")
def undisturbed(folder, shards):
    succeed(start(2, folder, run=str(folder / "whole"), shards=shards, **WHOLE))
    return folder / "whole"


@pytest.fixture(autouse=True)
def no_job_is_left(cluster):
    yield
    cluster.clear()


class Job:
    """A training that was submitted: its number, its run folder and its logs."""

    def __init__(self, cluster: Slurm, folder, shards, name, *arguments, options=(), **settings):
        self.cluster, self.run, self.logs = cluster, folder / name, folder / f"{name} logs"
        self.logs.mkdir()
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(SETTINGS | {"timeout_minutes": 5} | settings))
        self.number = cluster.submit(TRAIN, "--config", config, "--shards", shards, "--run", self.run, *arguments,
                                     options=(f"--output={self.logs}/%j.log", *options))

    def restarts(self):
        return int(self.cluster.job(self.number, "Restarts")[0])

    def wait_until_trained(self, num_samples, restarts=0):
        """Waits for a checkpoint after so many samples by the start that follows so many requeues."""
        def there():
            state, number = self.cluster.job(self.number, "JobState", "Restarts")
            assert state in ("PENDING", "RUNNING", "COMPLETING"), self.log()
            return int(number) == restarts and state == "RUNNING" and consumed(self.run) >= num_samples
        wait_for(there)

    def ranks(self):
        """The processes that train, on all nodes."""
        processes = (one for one in psutil.process_iter(["cmdline"]) if str(self.run) in (one.info["cmdline"] or ()))
        return [one for one in processes if one.info["cmdline"][1:3] == ["-u", "launch/train.py"]]

    def log(self, pattern="*.log"):
        return "\n".join(path.read_text() for path in sorted(self.logs.glob(pattern)))


def test_signalled_and_pre_empted_it_goes_on_by_itself_to_what_an_undisturbed_run_gives(
    cluster, folder, shards, undisturbed
):
    (folder / "urgent").write_text("#!/bin/sh\n")
    job = Job(cluster, folder, shards, "two nodes", "--fresh", "true", options=("--nodes=2",), **WHOLE)
    job.wait_until_trained(240)
    cluster.told("scancel", "--signal=USR1", job.number)
    wait_for(lambda: job.restarts() == 1)
    stopped = consumed(job.run)
    assert 240 <= stopped < 3600
    job.wait_until_trained(stopped + 240, restarts=1)
    options = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = cluster.submit(folder / "urgent", options=options)
    wait_for(lambda: job.restarts() == 2)
    assert stopped + 240 <= consumed(job.run) < 3600
    assert cluster.wait_until_over(urgent) == "COMPLETED"
    assert cluster.wait_until_over(job.number) == "COMPLETED", job.log()
    assert_same_run(job.run, undisturbed)
    told = job.log(f"{job.number}.log")
    assert [len(lines_with(told, "node[1-2]", f"start {number}")) for number in (1, 2, 3)] == [1, 1, 1]
    for node in cluster.nodes:
        assert len(lines_with(job.log(f"*-{node.name}.log"), "srcnn: SIG")) == 2, "each start's words are kept"


def test_at_its_time_limit_a_single_rank_is_requeued_with_a_checkpoint_and_cancelled_it_is_not(cluster, folder, shards):
    job = Job(cluster, folder, shards, "limited", options=("--nodes=1", "--time=60", "--signal=USR1@10"), **LONG)
    job.wait_until_trained(240)
    cluster.told("scontrol", "update", f"JobId={job.number}", "EndTime=now+35seconds")  # looked at every 30
    wait_for(lambda: job.restarts() == 1)
    cluster.told("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    assert (stopped := consumed(job.run)) >= 240
    assert lines_with(job.log(), "launch/train.py:", "SIGUSR1")
    job.wait_until_trained(stopped + 240, restarts=1)
    cluster.told("scancel", job.number)
    assert cluster.wait_until_over(job.number) == "CANCELLED"
    assert lines_with(job.log(), "launch/train.py:", "SIGTERM") and job.restarts() == 1


def test_stopped_again_and_again_by_a_time_limit_before_the_first_step_is_a_failure(cluster, folder, shards):
    job = Job(cluster, folder, shards, "in vain", options=("--nodes=1", "--time=5"), **LONG)
    wait_for(lambda: cluster.has_step(job.number))
    cluster.told("scancel", "--signal=USR1", job.number)
    assert cluster.wait_until_over(job.number) == "FAILED"
    assert "--time" in job.log() and job.restarts() == 0


def test_what_cannot_be_trained_is_not_started_and_the_log_says_why(cluster, folder, shards):
    job = Job(cluster, folder, shards, "wrong", "--batch_sise", 3, options=("--nodes=2",))
    assert cluster.wait_until_over(job.number) == "FAILED"
    assert "batch_size" in job.log()
    assert job.restarts() == 0 and not job.run.exists()


def test_a_training_that_fails_is_not_requeued_and_the_log_has_the_last_words(cluster, folder, shards):
    job = Job(cluster, folder, shards, "failing", options=("--nodes=1", "--ntasks-per-node=2"), **LONG)
    job.wait_until_trained(240)
    (one, _) = job.ranks()
    one.kill()
    assert cluster.wait_until_over(job.number) == "FAILED"
    assert job.restarts() == 0
    assert lines_with(job.log(f"{job.number}.log"), "status", 1)
    assert "ChildFailedError" in job.log()
    assert not job.ranks()


def test_a_node_that_dies_takes_nothing_with_it(cluster, folder, shards, undisturbed):
    job = Job(cluster, folder, shards, "node lost", options=("--nodes=2",), **WHOLE)
    job.wait_until_trained(240)
    cluster.lose(cluster.nodes[1])
    wait_for(lambda: job.restarts() == 1)
    assert consumed(job.run) < 3600
    cluster.bring_back(cluster.nodes[1])
    assert cluster.wait_until_over(job.number) == "COMPLETED", job.log()
    assert_same_run(job.run, undisturbed)


def test_shards_of_two_nodes_stopped_and_requeued_are_those_made_here(cluster, folder):
    photos, out = write_photos(folder / "other photos", 7), folder / "by two nodes"
    gate, hooks = folder / "gate", folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(GATE)  # no shard is finished while the gate is there
    gate.touch()
    settings = ("--photos", photos, "--resize", "none", "--tile_pixels", 64, "--samples_per_shard", 6)
    number = cluster.submit(SHARDS, *settings, "--out", out, options=("--nodes=2", f"--output={folder}/%j.log"),
                            PYTHONPATH=str(hooks), GATE=str(gate))
    logs = [folder / f"{number}-{node.name}.log" for node in cluster.nodes]
    wait_for(lambda: all(log.exists() and "Registered to:" in log.read_text() for log in logs))
    cluster.told("scancel", "--signal=TERM", number)  # what a pre-emption begins with
    wait_for(lambda: cluster.job(number, "Restarts") == ["1"])
    gate.unlink()
    log = folder / f"{number}.log"
    assert cluster.wait_until_over(number) == "COMPLETED", log.read_text()
    assert make("--photos", photos, "--out", folder / "here") == 0
    assert contents(out) == contents(folder / "here")
    running = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if f":{10000 + int(number)}" in line], "nothing is left"
