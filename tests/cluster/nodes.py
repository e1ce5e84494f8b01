"""Machines of a cluster on this one: network namespaces, each with a name, an address and a cable to one switch.

A cable is a veth pair, which can be pulled out, slowed (tc tbf) and made to lose packets (nftables; few kernels have
netem). Processes in different nodes share the files of this machine, as over a network disk. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CABLE = "eth0"


def needs_nodes() -> pytest.MarkDecorator:
    """Skips where this machine cannot be several, and says why."""
    absent = [tool for tool in ("ip", "tc", "nft", "unshare") if not shutil.which(tool, path=_path())]
    reason = f"no {', '.join(absent)} here" if absent else "network namespaces need root" if os.geteuid() else ""
    if not reason:
        tried = subprocess.run(["ip", "netns", "add", f"try-{os.getpid()}"], capture_output=True, text=True)
        subprocess.run(["ip", "netns", "delete", f"try-{os.getpid()}"], capture_output=True)
        reason = tried.stderr.strip()
    return pytest.mark.skipif(bool(reason), reason=reason)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Node:
    """A machine: `name` is its host name, `address` its IPv4 address."""

    def __init__(self, name: str, namespace: str, address: str, switch: str, port: str) -> None:
        self.name, self.namespace, self.address = name, namespace, address
        self._switch, self._port = switch, port

    def command(self, *words: object) -> list[str]:
        """The command line that runs these words on this node; its process and theirs are one."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, *map(str, words)]

    def run(self, *words: object) -> str:
        """What it prints; raises where it fails."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    def know(self, nodes: list[Node], own_address: str = "") -> None:
        """Names these nodes in this one's /etc/hosts, itself by another address where one is given."""
        hosts = "127.0.0.1 localhost\n"
        for node in nodes:
            hosts += f"{own_address if own_address and node is self else node.address} {node.name}\n"
        own = Path("/etc/netns", self.namespace, "hosts")  # `ip netns exec` puts it in the place of /etc/hosts
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(hosts)

    def pull_out(self) -> None:
        """Takes the cable out of the switch: packets vanish, and no connection hears of it."""
        _sh(f"ip -n {self._switch} link set {self._port} down")

    def plug_in(self) -> None:
        _sh(f"ip -n {self._switch} link set {self._port} up")

    def slow(self, kilobits_per_second: int) -> None:
        """Both ways of the cable carry so much from now on; what waits longer than a second is dropped."""
        for namespace, device in ((self.namespace, CABLE), (self._switch, self._port)):
            _sh(f"tc -n {namespace} qdisc replace dev {device} root tbf rate {kilobits_per_second}kbit "
                "burst 4kb latency 1s")

    def lose(self, percent: int) -> None:
        """So many of a hundred packets that arrive, drawn at random, are lost from now on."""
        self.run("nft", f"""add table inet cable
            add chain inet cable arriving {{ type filter hook input priority 0 ; }}
            add rule inet cable arriving iifname {CABLE} numgen random mod 100 < {percent} drop""")

    def mend(self) -> None:
        """The cable is as it was at first."""
        self.plug_in()
        for namespace, device in ((self.namespace, CABLE), (self._switch, self._port)):
            subprocess.run(["tc", "-n", namespace, "qdisc", "delete", "dev", device, "root"], capture_output=True)
        self.run("nft", "flush", "ruleset")

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received over the cable so far, with all headers."""
        told = json.loads(self.run("ip", "-s", "-j", "link", "show", CABLE))[0]["stats64"]
        return told["tx"]["bytes"], told["rx"]["bytes"]


@contextmanager
def cluster(num_nodes: int, prefix: str = "node") -> Iterator[list[Node]]:
    """Nodes `prefix`1, `prefix`2, ... that know each other by name; what still runs in them is killed at the end."""
    here = f"{prefix}-{os.getpid()}"
    switch, namespaces = f"{here}-switch", [f"{here}-{number}" for number in range(1, num_nodes + 1)]
    nodes = []
    try:
        _sh(f"ip netns add {switch}", f"ip -n {switch} link add bridge type bridge",
            f"ip -n {switch} link set bridge up")
        for number, namespace in enumerate(namespaces, 1):
            port, address = f"port{number}", f"10.77.0.{number}"
            _sh(f"ip netns add {namespace}",
                f"ip -n {namespace} link add {CABLE} type veth peer name {port} netns {switch}",
                f"ip -n {switch} link set {port} master bridge up",
                f"ip -n {namespace} address add {address}/24 dev {CABLE}",
                f"ip -n {namespace} link set {CABLE} gso_max_segs 1",  # packets as a real cable carries them
                f"ip -n {namespace} link set {CABLE} up",
                f"ip -n {namespace} link set lo up")
            nodes.append(Node(f"{prefix}{number}", namespace, address, switch, port))
        for node in nodes:
            node.know(nodes)
        yield nodes
    finally:
        for namespace in (*namespaces, switch):
            running = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
            subprocess.run(["kill", "-9", *running.stdout.split()], capture_output=True)
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
            shutil.rmtree(f"/etc/netns/{namespace}", ignore_errors=True)


def _sh(*commands: str) -> None:
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
