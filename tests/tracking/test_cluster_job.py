"""What Slurm and Kubernetes tell a process of its job, and the starts of a run."""

import pytest
from messages import says

from srcnn.tracking.cluster_job import STARTS, Job, current_job, read_starts, record_start

SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "city", "SLURM_CLUSTER_NAME": "alps", "SLURM_JOB_NUM_NODES": "2",
         "SLURM_JOB_NODELIST": "n[03-04]"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "city-0", "JOB_COMPLETION_INDEX": "0"}


def test_a_slurm_job_names_its_group_and_keeps_it_when_it_is_requeued():
    first = current_job(SLURM)
    assert first == Job("alps-city-4711", ("slurm", "alps", "city"), {"job": "slurm 4711", "nodes": "n[03-04]"})
    again = current_job(SLURM | {"SLURM_RESTART_COUNT": "2", "SLURM_JOB_NODELIST": "n[07-08]"})
    assert (again.group, again.tags) == (first.group, first.tags)
    assert again.facts == {"job": "slurm 4711", "restart": "2", "nodes": "n[07-08]"}


def test_the_tasks_of_an_array_are_one_group():
    array = SLURM | {"SLURM_ARRAY_JOB_ID": "4711"}
    tasks = [current_job(array | {"SLURM_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": task})
             for number, task in ((4711, "1"), (4712, "2"))]
    assert [task.group for task in tasks] == ["alps-city-4711"] * 2
    assert [task.facts["job"] for task in tasks] == ["slurm 4711_1", "slurm 4711_2"]


@pytest.mark.parametrize(("told", "group"), [
    ({}, "city"),
    ({"POD_NAMESPACE": "vision"}, "vision-city"),
    ({"JOB_NAME": "other", "POD_NAME": "other-0-x7k2p", "NODE_NAME": "n3"}, "other"),
    ({"HOSTNAME": "city-x7k2p"}, ""),  # not of its index: nobody can tell the job's name from the pod's
    ({"JOB_COMPLETION_INDEX": ""}, ""),
])
def test_a_pod_of_an_indexed_job_knows_its_jobs_name(told, group):
    job = current_job(POD | told)
    assert job.group == group and job.tags[0] == "kubernetes"
    assert job.facts["pod"] == told.get("POD_NAME", told.get("HOSTNAME", "city-0"))
    assert job.facts.get("node", "") == told.get("NODE_NAME", "")


def test_without_a_cluster_there_is_no_group():
    assert current_job({"HOSTNAME": "box"}) == Job()


def test_what_the_user_says_goes_first_and_nothing_is_longer_than_wandb_takes():
    told = current_job(SLURM | {"WANDB_RUN_GROUP": "mine", "WANDB_TAGS": "one, two,,"})
    assert (told.group, told.tags) == ("mine", ("one", "two"))
    long = current_job(SLURM | {"SLURM_JOB_NAME": "x" * 300})
    assert max(map(len, long.tags)) == 64 and len(long.group) == 128


def test_a_run_keeps_its_group_and_every_start_is_added(tmp_path):
    record_start(tmp_path, 0, ["n03", "n03", "n04"], current_job(SLURM))
    other = {"SLURM_JOB_ID": "4800", "SLURM_JOB_NAME": "later", "TORCHELASTIC_RESTART_COUNT": "1"}
    starts = record_start(tmp_path, 640, [f"m{number}" for number in range(11)], current_job(other))
    assert (starts.group, starts.tags) == ("alps-city-4711", ("slurm", "alps", "city"))
    assert starts == read_starts(tmp_path)
    first, second = starts.settings().items()
    assert first[0] == "jobs.001" and says(first[1], 0, "n[03-04]", "slurm 4711")
    assert second[0] == "jobs.002" and "m8" not in second[1]
    assert says(second[1], 640, "m0 m1 m2 m3 m4 m5 m6 m7", 3, "slurm 4800", "launcher_restart 1")


def test_lines_that_are_torn_or_none_are_left_out_and_what_follows_is_whole(tmp_path):
    record_start(tmp_path, 0, ["a"], Job("one"))
    whole = (tmp_path / STARTS).read_bytes()
    (tmp_path / STARTS).write_bytes(whole + b"[1]\n7\n\xff\n" + whole[:20])
    starts = record_start(tmp_path, 10, ["b"], Job("two"))
    assert [line["facts"]["nodes"] for line in starts.lines] == ["a", "b"] and starts.group == "one"
    assert read_starts(tmp_path) == starts


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "run").write_text("in the way")
    assert record_start(tmp_path / "run", 0, ["a"], Job("one")).group == "one"
    assert read_starts(tmp_path / "run").lines == ()
