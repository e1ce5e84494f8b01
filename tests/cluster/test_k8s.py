"""launch/k8s: what kustomize makes of it is what Kubernetes takes, and says the same everywhere."""

import copy
import re
import subprocess

import kubernetes_validate
import pytest
import yaml
from pods import K8S, KUBECTL, ROOT, build, overlay, verdict

from shards.plan import ShardsConfig
from srcnn.runtime.settings import parse
from srcnn.runtime.signals import EXIT_REQUEUE, SAME_SIGNAL_SECONDS
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.run_log import PREEMPTED_SECONDS
from srcnn.training.config import TrainConfig

pytestmark = pytest.mark.skipif(not KUBECTL, reason="no kubectl here")
FOLDERS = ("volumes", "base", "gpu1", "gpu8", "shards", "mine")
VERSIONS = ("1.30", "1.34", "1.37")
SHARDS = "s3://mine/shards"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The objects of every folder, and of an overlay of one's own with shards from an object store."""
    mine = overlay(
        tmp_path_factory.mktemp("overlay"), namespace="vision", resources=["../gpu8"], components=["../s3"],
        images=[{"name": "srcnn", "newName": "registry.example/srcnn", "newTag": "0.2.0"}],
        configMapGenerator=[{"name": "srcnn-train", "behavior": "replace", "files": ["train.yaml"]}])
    (mine / "train.yaml").write_text(f"run: /runs/mine\nshards: {SHARDS}\n")
    return {folder: build(mine if folder == "mine" else K8S / folder) for folder in FOLDERS}


def jobs(built):
    return [(folder, item) for folder, objects in built.items() for (kind, _), item in objects.items() if kind == "Job"]


def containers(job):
    spec = job["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def environment(container):
    return {item["name"]: item.get("value") for item in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object_as_it_is(built, version):
    for objects in built.values():
        for item in objects.values():
            assert kubernetes_validate.validate(item, version, strict=True) == version


def test_the_schemas_refuse_unknown_and_wrong_fields(built):
    job = built["gpu8"]["Job", "srcnn-train"]
    for path, value in ((("spec", "paralellism"), 2), (("spec", "completions"), "two"),
                        (("spec", "template", "spec", "terminationGraceSeconds"), 90)):
        wrong = copy.deepcopy(job)
        *folders, last = path
        inner = wrong
        for key in folders:
            inner = inner[key]
        inner[last] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kustomize_refuses_what_it_does_not_know(tmp_path):
    mine = overlay(tmp_path, resources=["../gpu8"], patchez=[])
    told = subprocess.run([KUBECTL, "kustomize", mine], capture_output=True, text=True)
    assert told.returncode and "patchez" in told.stderr


def test_names_refer_to_what_there_is(built):
    claims = {name for kind, name in built["volumes"] if kind == "PersistentVolumeClaim"}
    for folder, job in jobs(built):
        spec = job["spec"]["template"]["spec"]
        maps = {item["metadata"]["name"] for item in built[folder].values() if item["kind"] == "ConfigMap"}
        used = {mount["name"] for one in containers(job) for mount in one["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert used == set(volumes), folder
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {"claimName": min(claims)})["claimName"] in claims
            assert volume.get("configMap", {"name": min(maps)})["name"] in maps
        for one in containers(job):
            assert {name for word in one["args"] for name in re.findall(r"\$\((\w+)\)", word)} <= set(environment(one))
            for word in one["args"]:
                if path := re.fullmatch(r"--[\w.]+=(/\w+)(/.*)?", word):
                    assert path[1] in {mount["mountPath"] for mount in one["volumeMounts"]}


@pytest.mark.parametrize("folder", ["base", "gpu1", "gpu8", "mine"])
def test_the_pods_find_the_first_one_by_its_name(built, folder):
    job, service = built[folder]["Job", "srcnn-train"], built[folder]["Service", "srcnn-train"]
    template, wanted = job["spec"]["template"], service["spec"]["selector"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"  # which names the pods JOB-INDEX
    known = environment(containers(job)[1])
    assert known["FIRST_POD"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    port, = service["spec"]["ports"]
    opened, = containers(job)[1]["ports"]
    assert known["MASTER_PORT"] == str(port["port"]) == str(opened["containerPort"])


@pytest.mark.parametrize("folder", ["base", "gpu1", "gpu8", "mine"])
def test_only_the_pods_of_a_training_reach_each_other_on_all_ports(built, folder):
    policy = built[folder]["NetworkPolicy", "srcnn-train"]["spec"]
    labels = built[folder]["Job", "srcnn-train"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items() and policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]


@pytest.mark.parametrize("num_pods,gpus", [(2, 8), (5, 4)])
def test_the_number_of_pods_and_of_their_gpus_is_said_once(tmp_path, num_pods, gpus):
    mine = overlay(tmp_path, resources=["../gpu8"])
    file = mine.parent / "gpu8/kustomization.yaml"
    text = file.read_text()
    assert text.count("completions: 2") == text.count("nvidia.com/gpu: 8") == 1
    file.write_text(text.replace("completions: 2", f"completions: {num_pods}").replace("gpu: 8", f"gpu: {gpus}"))
    job = build(mine)["Job", "srcnn-train"]
    kubernetes_validate.validate(job, VERSIONS[0], strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == num_pods
    for one in containers(job):
        assert one["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert environment(one)["NUM_PODS"] == str(num_pods) and environment(one)["RANKS_PER_POD"] == str(gpus)


def test_the_doctor_sees_what_the_training_does(built):
    for folder in ("base", "gpu1", "gpu8", "mine"):
        doctor, trains = containers(built[folder]["Job", "srcnn-train"])
        for key in ("image", "env", "envFrom", "volumeMounts", "securityContext"):
            assert doctor.get(key) == trains.get(key), f"{folder}: {key}"
        assert [word for word in doctor["args"] if not word.startswith("--machines=")] == trains["args"]
        gpus = [one["resources"]["limits"].get("nvidia.com/gpu") for one in (doctor, trains)]
        assert gpus[0] == gpus[1], "one of a pod without GPUs would not see them"


def test_settings_are_those_of_the_programs(built, tmp_path):
    file = tmp_path / "train.yaml"
    for folder in ("base", "gpu8", "mine"):
        file.write_text(built[folder]["ConfigMap", "srcnn-train"]["data"]["train.yaml"])
        trains = containers(built[folder]["Job", "srcnn-train"])[1]
        words = [word.replace("/config/train.yaml", str(file)) for word in trains["args"]]
        config = parse(TrainConfig, "test", "", words)
        assert config.run.startswith("/runs/")
        assert config.shards == (SHARDS if folder == "mine" else "/shards")
        assert config.stream.access.cache == ("/cache" if folder == "mine" else "")
    kept = 2 * 50 * 10**9  # of both splits
    limit = next(volume for volume in built["mine"]["Job", "srcnn-train"]["spec"]["template"]["spec"]["volumes"]
                 if volume["name"] == "cache")["emptyDir"]["sizeLimit"]
    assert "--stream.access.cache_gigabytes=50" in words and int(limit.removesuffix("Gi")) * 2**30 > kept
    assert read_yaml(K8S / "shards/shards.yaml") == read_yaml(ROOT / "configs/shards.yaml")
    parse(ShardsConfig, "test", "", ["--config", str(K8S / "shards/shards.yaml"), "--photos", "x", "--out", "y"])


def test_there_is_time_for_a_checkpoint_and_the_trackers(built):
    for folder in ("base", "gpu1", "gpu8", "mine"):
        job = built[folder]["Job", "srcnn-train"]
        grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        launcher = int(environment(containers(job)[1])["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert grace >= launcher + 20
        assert launcher >= 30 + PREEMPTED_SECONDS + SAME_SIGNAL_SECONDS  # torchrun's own for all but the trackers


def test_containers_may_do_no_more_than_they_need(built):
    for folder, job in jobs(built):
        spec = job["spec"]["template"]["spec"]
        assert not spec["automountServiceAccountToken"] and spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in containers(job):
            assert one["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                              "capabilities": {"drop": ["ALL"]}}
            name, _, tag = one["image"].rpartition(":")
            assert name and tag not in ("", "latest"), folder
            assert set(one["resources"]["requests"]) >= {"cpu", "memory"} <= {*one["resources"]["limits"], "cpu"}
            assert environment(one)["HOME"].startswith("/tmp/")
    assert not [item for objects in built.values() for item in objects.values() if item["kind"] == "Secret"]
    assert built["mine"]["Job", "srcnn-train"]["metadata"]["namespace"] == "vision"


def test_a_warning_is_no_failure_and_wrong_settings_are_the_end(built):
    for _, job in jobs(built):
        assert verdict(job, 2) == "FailJob" and verdict(job, 1) == verdict(job, 137) == "Count"
        assert verdict(job, 137, disrupted=True) == "Ignore"
    spec = built["gpu8"]["Job", "srcnn-train"]["spec"]
    assert verdict({"spec": spec}, EXIT_REQUEUE) == "Ignore"
    assert spec["backoffLimitPerIndex"] > 0 and spec["maxFailedIndexes"] == 0 and "backoffLimit" not in spec


def test_several_pods_need_volumes_that_several_nodes_can_mount(built):
    for claim in built["volumes"].values():
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_image_is_set_up_as_the_makefile_does_it(built):
    text = (ROOT / "Dockerfile").read_text()
    extras = re.search(r"pip install .*--editable '\.\[([\w,]+)\]'", text)[1].split(",")
    assert re.search(r"pip install --quiet --editable$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "python3 -m venv" in text and f"USER {1000}:{1000}" in text
    assert "remote" in extras and all(f"\n{extra} =" in (ROOT / "setup.cfg").read_text() for extra in extras)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / path).exists() and path.split("/")[0] in allowed for path in copied)
    for _, job in jobs(built):
        assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000
        for program in (word for one in containers(job) for word in one["command"] if word.endswith(".py")):
            assert program in copied
    assert yaml.safe_load((ROOT / "configs/train.yaml").read_text())  # configs are in it
