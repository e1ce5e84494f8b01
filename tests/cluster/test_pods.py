"""The containers of launch/k8s, run as first processes of pods: what they survive, and how they end."""

import os
import shutil

import pytest
import yaml
from conftest import photos_of
from jobs import assert_same_run, consumed, start, state, succeed
from messages import lines_with, numbers
from nodes import cluster, needs_nodes
from pods import K8S, KUBECTL, Pod, build, carry_through, name_pods, overlay, until, verdict
from small import small_config, small_shards, write_photos

from srcnn.models.srcnn import ModelConfig
from srcnn.runtime.signals import EXIT_REQUEUE
from srcnn.training.optimizer import OptimizerConfig
from srcnn.training.trainer import train

pytestmark = [pytest.mark.slow, needs_nodes(), pytest.mark.skipif(not KUBECTL, reason="no kubectl here")]
SETTINGS = {"model": {"filters": [8, 4], "residual": True}, "optimizer": {"lr": 2e-3}, "batch_size": 12, "trackers": [],
            "mixed_precision": "no", "log_every_samples": 240, "validate_every_samples": 960, "save_every_samples": 240}
TYPED = {"model": ModelConfig(**SETTINGS["model"]), "optimizer": OptimizerConfig(**SETTINGS["optimizer"])}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


def small_job(folder, base, **settings):
    """The objects of an overlay of one's own, as docs/clusters.md has it, with one rank a pod and a small training."""
    one = [{"name": "RANKS_PER_POD", "value": "1"}]
    spec = {"initContainers": [{"name": "doctor", "env": one}], "containers": [{"name": "train", "env": one}]}
    patch = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "srcnn-train"},
             "spec": {"template": {"spec": spec}}}
    mine = overlay(folder, resources=[f"../{base}"], patches=[{"patch": yaml.safe_dump(patch)}], configMapGenerator=[
        {"name": "srcnn-train", "behavior": "replace", "files": ["train.yaml"]}])
    (mine / "train.yaml").write_text(yaml.safe_dump(SETTINGS | {"run": "/runs/srcnn", "shards": "/shards"} | settings))
    return build(mine)


def make_pods(folder, nodes, objects, shards=None):
    job = objects["Job", "srcnn-train"]
    if shards:
        shutil.copytree(shards, folder / "srcnn-shards")
    name_pods(nodes, job)
    return [Pod(node, objects, job, index, folder) for index, node in enumerate(nodes)]


def test_pods_that_are_drained_and_lost_meet_again_and_train_as_undisturbed(tmp_path, shards):
    total = {"total_samples": 1920}
    objects = small_job(tmp_path, "gpu8", timeout_minutes=1, **total)
    run = tmp_path / "srcnn-runs/srcnn"
    with cluster(2, "pods") as nodes:
        first, second = pods = make_pods(tmp_path, nodes, objects, shards)
        second.start("train")  # it waits for the first one's name and port
        first.start("train")
        until(lambda: consumed(run) >= 240, *pods)
        second.terminate()
        assert [pod.wait() for pod in pods] == [EXIT_REQUEUE, EXIT_REQUEUE], first.output.read_text()
        assert lines_with(first.output.read_text(), "launch/train.py:", "SIGTERM")
        drained = consumed(run)
        assert drained < total["total_samples"] and len(state(run)["meter"]) == 2

        for pod in pods:
            pod.start("train")
        until(lambda: consumed(run) > drained, *pods)
        second.kill()
        assert consumed(run) < total["total_samples"]
        second.start("train")  # alone: the first has not come again yet
        carry_through(pods, "train")
    succeed(start(2, tmp_path, run=str(tmp_path / "whole"), shards=str(shards), **SETTINGS | total))
    assert_same_run(run, tmp_path / "whole")


def test_a_pod_that_waits_for_the_others_ends_at_once_when_it_is_drained(tmp_path):
    with cluster(2, "pods") as nodes:
        first = make_pods(tmp_path, nodes, small_job(tmp_path, "gpu8"))[0]
        first.start("train")
        until(lambda: listens(first), first)
        first.terminate()
        assert first.wait(60) == EXIT_REQUEUE
    assert lines_with(first.output.read_text(), "launch/pod.py", "SIGTERM")


def listens(pod):
    return "29500" in pod.node.run("ss", "-ltnH")


def test_a_pod_of_one_rank_is_the_training_itself(tmp_path, shards):
    objects = small_job(tmp_path, "gpu1", total_samples=10**7)
    with cluster(1, "pods") as nodes:
        pod, = make_pods(tmp_path, nodes, objects, shards)
        pod.start("doctor")
        assert pod.wait() == 0 and numbers(pod.output.read_text().splitlines()[-1])[0] == 0, pod.output.read_text()
        pod.start("train")
        until(lambda: consumed(tmp_path / "srcnn-runs/srcnn") >= 240, pod)
        assert "launch/train.py" in pod.first_process().cmdline()
        pod.terminate()
        assert pod.wait() == EXIT_REQUEUE
    assert lines_with(pod.output.read_text(), "launch/train.py:", "SIGTERM")


def test_pods_of_a_training_that_is_done_end_well_without_the_others(tmp_path, shards):
    """As when the first is evicted while it writes the report, after the others have ended for good."""
    objects = small_job(tmp_path, "gpu8", total_samples=96)
    with cluster(2, "pods") as nodes:
        first, second = make_pods(tmp_path, nodes, objects, shards)
        settings = yaml.safe_load((tmp_path / "k8s/mine/train.yaml").read_text())
        run = tmp_path / "srcnn-runs/srcnn"
        for key in ("run", "shards"):
            del settings[key]
        train(small_config(run, shards, **settings | TYPED))
        shutil.rmtree(run / "report")
        for path in (run, *run.rglob("*")):
            os.chown(path, 1000, 1000, follow_symlinks=False)
        second.start("train")
        assert second.wait() == 0 and lines_with(second.output.read_text(), "pod", 1), second.output.read_text()
        assert not (run / "report").exists()
        first.start("train")
        assert first.wait() == 0 and (run / "report/index.html").exists(), first.output.read_text()


def test_what_no_restart_mends_fails_the_job_or_is_counted(tmp_path):
    objects = small_job(tmp_path, "gpu8", batch_sise=12)
    job = objects["Job", "srcnn-train"]
    with cluster(2, "pods") as nodes:
        wrong, no_shards = make_pods(tmp_path, nodes, objects)
        wrong.start("train")
        config = no_shards.volumes["config"] / "train.yaml"
        config.write_text(config.read_text().replace("batch_sise: 12\n", ""))
        no_shards.start("train", NUM_PODS="1", RANKS_PER_POD="2")
        assert verdict(job, wrong.wait()) == "FailJob"
        assert "batch_size" in wrong.output.read_text()
        assert no_shards.wait() == 1 and verdict(job, 1) == "Count", no_shards.output.read_text()
        assert "/shards/train" in no_shards.output.read_text()


def test_the_job_of_the_shards_makes_them(tmp_path):
    objects = build(K8S / "shards")
    write_photos(tmp_path / "srcnn-photos", 3, height=256, width=320)
    with cluster(1, "pods") as nodes:
        pod = Pod(nodes[0], objects, objects["Job", "srcnn-shards"], 0, tmp_path)
        name_pods(nodes, pod.job)
        pod.start("shards")
        assert pod.wait() == 0, pod.output.read_text()
    assert len(photos_of(tmp_path / "srcnn-shards/train")) == 2
