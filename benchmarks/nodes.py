"""What a training of several nodes sends over their cables, and how fast it is: `python -m benchmarks.nodes --help`.

The nodes are network namespaces of this machine (`tests/nodes.py`), one rank on each, SRCNN 9-1-5 with gradients of
32,516 bytes. Bytes are the difference of two counts of the interfaces, with all headers, over some hundred steps
without log line or validation; a checkpoint every fifty steps is among them. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from benchmarks.scaling_model import GRADIENT_BYTES, RESULTS
from tests.node_jobs import NodesJob
from tests.nodes import Node, cluster
from tests.small import small_shards

SETTINGS = {"total_samples": 10**7, "log_every_samples": 10**7, "validate_every_samples": 10**7, "trackers": [],
            "model": {"residual": True}, "timeout_minutes": 5.0}
START_STEPS, EVERY_STEPS = 50, 50


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes and speed of a training between nodes.")
    parser.add_argument("--steps", type=int, default=300, help="measured on a cable as it is")
    parser.add_argument("--disturbed_steps", type=int, default=100, help="measured on one that is slow or lossy")
    parser.add_argument("--json", type=Path, default=RESULTS / "nodes.json")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    found = []
    with tempfile.TemporaryDirectory() as work:
        shards = small_shards(Path(work))
        for num_nodes, tiles, precision in ((2, 1, "no"), (2, 1, "bf16"), (2, 4, "no"), (3, 1, "no")):
            folder = Path(work, f"{num_nodes} {tiles} {precision}")
            with cluster(num_nodes) as nodes, training(nodes, folder, shards, tiles, precision) as job:
                about = {"nodes": num_nodes, "tiles_per_rank": tiles, "mixed_precision": precision}
                found.append(about | {"cable": "as it is"} | measure(job, nodes, options.steps))
                print(found[-1], flush=True)
                if (num_nodes, tiles, precision) == (2, 1, "no"):
                    for name, one in disturbed(job, nodes, options.disturbed_steps):
                        found.append(about | {"cable": name} | one)
                        print(found[-1], flush=True)
    result = {"machine": machine(), "gradient_bytes": GRADIENT_BYTES, "runs": found}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(found))
    return 0


@contextmanager
def training(nodes: list[Node], folder: Path, shards: Path, tiles: int, precision: str) -> Iterator[NodesJob]:
    """A training on these nodes that has started."""
    changes = {"shards": str(shards), "run": str(folder / "run"), "batch_size_per_process": tiles,
               "mixed_precision": precision, "save_every_samples": EVERY_STEPS * tiles * len(nodes)}
    job = NodesJob(nodes, folder, SETTINGS | changes).start()
    try:
        job.wait_for(START_STEPS * tiles * len(nodes))
        yield job
    finally:
        for rank in job.launchers:
            job.kill(rank)


def disturbed(job: NodesJob, nodes: list[Node], num_steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same on a cable of 1 Mbit/s, and where 1 or 5 of 100 packets that come to a node are lost."""
    nodes[1].slow(1000)
    yield "1 Mbit/s", measure(job, nodes, num_steps)
    nodes[1].mend()
    for percent in (1, 5):
        for node in nodes:
            node.lose(percent)
        yield f"{percent} % of the packets lost, both ways", measure(job, nodes, num_steps)
        for node in nodes:
            node.mend()


def measure(job: NodesJob, nodes: list[Node], num_steps: int) -> dict[str, Any]:
    """Steps a second, and bytes a step that each node sends, from one checkpoint to another."""
    first = next_count(job, nodes)
    while (last := next_count(job, nodes))[0] - first[0] < num_steps:
        pass
    steps, seconds = last[0] - first[0], last[1] - first[1]
    sent = [round((new - old) / steps) for old, new in zip(first[2], last[2], strict=True)]
    expected = 2 * (len(nodes) - 1) / len(nodes) * GRADIENT_BYTES
    return {"steps": steps, "steps_per_second": round(steps / seconds, 2), "bytes_sent_per_step": sent,
            "of_all_reduce": [round(one / expected, 3) for one in sent]}


def next_count(job: NodesJob, nodes: list[Node]) -> tuple[int, float, list[int]]:
    """Steps, time and bytes sent so far, as soon as there is another checkpoint."""
    before = job.samples()
    job.wait_for(before + 1)
    return job.steps(), time.monotonic(), [node.traffic()[0] for node in nodes]


def table(found: list[dict[str, Any]]) -> str:
    rows = ["| nodes | tiles of a rank | precision | cable | steps/s | bytes a node sends in a step | of 2(R-1)/R n |",
            "|---:|---:|---|---|---:|---|---|"]
    for one in found:
        sent, of = (", ".join(f"{value:,}" for value in one[key]) for key in ("bytes_sent_per_step", "of_all_reduce"))
        rows.append(f"| {one['nodes']} | {one['tiles_per_rank']} | {one['mixed_precision']} | {one['cable']} | "
                    f"{one['steps_per_second']} | {sent} | {of} |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
