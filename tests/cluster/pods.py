"""What a kubelet does for a pod, on a node of `nodes.py`: containers of a built manifest run as first processes, with
their mounts, environment, user and confinement, on a read-only root.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "launch/k8s"
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
IMAGE = os.environ.get("SRCNN_IMAGE")  # the root of a mounted image: image.sh
IMAGE_PATH = "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"
# What the image holds and what it runs on. The Python of a virtual environment is a link to another's.
SYSTEM = [Path(path) for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/dev") if Path(path).exists()]


def build(folder):
    """The objects that `kubectl kustomize` makes of a folder, by kind and name without the hash."""
    made = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    return {(item["kind"], re.sub("-[a-z0-9]{10}$", "", item["metadata"]["name"])): item
            for item in yaml.safe_load_all(made)}


def overlay(folder, **kustomization):
    """A folder of one's own beside a copy of launch/k8s, with this kustomization.yaml."""
    shutil.copytree(K8S, folder / "k8s")
    mine = folder / "k8s/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return mine


def name_pods(nodes, job):
    """The headless service of a job's pods, one on each node: every node knows the names of all."""
    service = job["spec"]["template"]["spec"].get("subdomain", "none")
    names = [f"{job['metadata']['name']}-{index}" for index in range(len(nodes))]
    known = "".join(f"{node.address} {name}.{service} {name}\n" for node, name in zip(nodes, names, strict=True))
    for node in nodes:  # `ip netns exec` puts these in the place of those in /etc
        Path("/etc/netns", node.namespace, "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        Path("/etc/netns", node.namespace, "nsswitch.conf").write_text("hosts: files\npasswd: files\ngroup: files\n")


class Pod:
    """The pod `index` of a job among built `objects`, whose persistent volumes are folders below `folder`.

    Attributes:
        process: of the last container that was started, as seen from here.
        output: what its containers say.
    """

    def __init__(self, node, objects, job, index, folder):
        self.node, self.job, self.index, self.folder = node, job, index, folder
        self.spec = job["spec"]["template"]["spec"]
        self.name = f"{job['metadata']['name']}-{index}"
        self.output = folder / f"{self.name}.txt"
        self.volumes = {volume["name"]: self.volume(volume, objects) for volume in self.spec["volumes"]}
        self.process = None

    def volume(self, volume, objects):
        """The folder that is mounted, which belongs to the pod's user."""
        owner = self.spec["securityContext"]["fsGroup"]
        if "persistentVolumeClaim" in volume:
            folder = self.folder / volume["persistentVolumeClaim"]["claimName"]
        else:
            folder = self.folder / f"{self.name}-{volume['name']}"
        folder.mkdir(exist_ok=True)
        if "configMap" in volume:
            maps = {item["metadata"]["name"]: item["data"] for item in objects.values() if item["kind"] == "ConfigMap"}
            for name, text in maps[volume["configMap"]["name"]].items():
                (folder / name).write_text(text)
        os.chown(folder, owner, owner)
        return folder

    def environment(self, container):
        job = self.job["metadata"]["name"]
        known = {"metadata.labels['batch.kubernetes.io/controller-uid']": f"uid of {job}", "spec.nodeName": "node",
                 "metadata.name": f"{job}-{self.index}-x7k2p", "metadata.namespace": "default"}
        values = {"PATH": IMAGE_PATH, "JOB_COMPLETION_INDEX": str(self.index)}
        for item in container["env"]:
            source = item.get("valueFrom", {})
            if "value" in item:
                values[item["name"]] = item["value"]
            elif "fieldRef" in source:
                values[item["name"]] = known[source["fieldRef"]["fieldPath"]]
            elif "resourceFieldRef" in source:
                values[item["name"]] = container["resources"]["requests"]["cpu"]
            else:
                assert source["secretKeyRef"]["optional"], item
        return values

    def start(self, name, **environment):
        """Starts the container of this name, with some more in its environment."""
        container = next(one for one in (*self.spec.get("initContainers", ()), *self.spec["containers"])
                         if one["name"] == name)
        values = self.environment(container)
        words = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word)
                 for word in (*container["command"], *container["args"])]
        user = self.spec["securityContext"] | container["securityContext"]
        assert user["capabilities"] == {"drop": ["ALL"]} and not user["allowPrivilegeEscalation"]
        confined = ["setpriv", f"--reuid={user['runAsUser']}", f"--regid={user['runAsGroup']}", "--clear-groups",
                    "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        # PYTHONPATH: an editable install here may be another tree's.
        more = {"OMP_NUM_THREADS": "1"} | ({} if IMAGE else {"PYTHONPATH": "/srcnn"}) | environment
        assigned = [f"{key}={value}" for key, value in (values | more).items()]
        root = self.folder / f"{self.name}-root"
        root.mkdir(exist_ok=True)
        inside = ["exec", "chroot", str(root), "env", "-i", "-C", "/srcnn", *confined, "env", *assigned, *words]
        script = "\n".join([*lay_root(root, container, self.volumes), shlex.join(inside)])
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                self.node.command(*named, "unshare", "--mount", "--pid", "--fork", "sh", "-ec", script),
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def first_process(self):
        """Process 1 of the pod, as seen from here; None while there is none."""
        inside = [one for one in psutil.Process(self.process.pid).children(recursive=True) if own_id(one) == 1]
        return next((one for one in inside if Path(*one.cmdline()[:1]).name == "python"), None)

    def terminate(self):
        """SIGTERM to process 1, as the kubelet does first."""
        self.first_process().send_signal(signal.SIGTERM)

    def kill(self):
        """As when the node is lost: all of it ends at once."""
        self.first_process().kill()
        self.wait(60)

    def wait(self, seconds=240):
        """The exit status of the container."""
        return self.process.wait(timeout=seconds)


def lay_root(root, container, volumes):
    """Commands of a shell that lay out a container's root in a mount namespace of their own: read-only but for what
    the manifest mounts. This system and this repository are the image, where no other is named.
    """
    if IMAGE:
        kept = ("dev", "etc", "proc", "sys", "tmp")
        image = {Path("/", path.name): path for path in Path(IMAGE).iterdir() if path.name not in kept}
        image |= {Path("/etc"): Path("/etc"), Path("/dev"): Path("/dev")}
    else:
        python = Path(sys.base_prefix).resolve()  # what .venv/bin/python is a link to
        image = {path: path for path in (*SYSTEM, python)} | {Path("/opt/venv"): Path(sys.prefix), Path("/srcnn"): ROOT}
    lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755 none {shlex.quote(str(root))}"]

    def bind(source, place, options):
        where = shlex.quote(f"{root}{place}")
        lines.extend([f"mkdir -p {where}", f"mount --rbind {shlex.quote(str(source))} {where}",
                      f"mount -o remount,bind,{options} {where}"])

    for place, source in image.items():
        bind(source, place, "ro" if place != Path("/dev") else "rw")
    lines.extend([f"mkdir {shlex.quote(f'{root}/proc')}", f"mount -t proc none {shlex.quote(f'{root}/proc')}"])
    for mount in container["volumeMounts"]:
        bind(volumes[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw")
    assert container["securityContext"]["readOnlyRootFilesystem"]
    return [*lines, f"mount -o remount,ro {shlex.quote(str(root))}"]


def own_id(process):
    """The id that a process has in its innermost namespace."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    return int(re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)[1])


def verdict(job, status, disrupted=False):
    """What the job's podFailurePolicy does about a container that ended with `status`; Count where no rule is met."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes and (status in codes["values"]) == (codes["operator"] == "In") and status != 0:
            return rule["action"]
        if conditions and disrupted:
            return rule["action"]
    return "Count"


def carry_through(pods, container):
    """What the job's controller does: pods whose container ended with a status that is ignored come again, until all
    have ended with 0. Fails where one ends otherwise.
    """
    deadline = time.monotonic() + 300
    while any(pod.process.poll() != 0 for pod in pods):
        for pod in pods:
            if status := pod.process.poll():
                assert verdict(pod.job, status) == "Ignore", f"{pod.name} ended with {status}\n{pod.output.read_text()}"
                pod.start(container)
        assert time.monotonic() < deadline, said(pods)
        time.sleep(0.05)


def until(condition, *pods):
    """Waits for the condition; shows what the pods said where it does not come, or one of them fails before."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline and not any(pod.process.poll() for pod in pods), said(pods)
        time.sleep(0.05)


def said(pods):
    return "\n".join(f"{pod.name}:\n{pod.output.read_text()}" for pod in pods)
