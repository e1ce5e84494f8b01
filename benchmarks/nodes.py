"""What a training of several nodes sends over their cables, and how fast it is: `python -m benchmarks.nodes --help`.

The nodes are network namespaces of this machine (`tests/nodes.py`), one rank on each, SRCNN 9-1-5 with gradients of
32,516 bytes, tiles of 32x32. Bytes are the difference of two counts of the interfaces, before and after a training,
with all headers, what is sent again, start, one log line and one validation, over its number of steps: read while it
runs, the counts would be of other steps than the checkpoint beside them. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from benchmarks.scaling_model import GRADIENT_BYTES, RESULTS
from srcnn.history import read_metrics
from tests.node_jobs import NodesJob
from tests.nodes import Node, cluster
from tests.small import small_shards

PLAIN = "as it is"
LOSSES = {"1 % of the packets lost": 1, "5 % of the packets lost": 5}  # of those that come to a node, at every node
SLOW = "1 Mbit/s"
CASES = ((2, 1, "no", PLAIN), (3, 1, "no", PLAIN), (2, 4, "no", PLAIN), (2, 1, "bf16", PLAIN),
         *((2, 1, "no", cable) for cable in (SLOW, *LOSSES)))  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes and speed of a training between nodes.")
    parser.add_argument("--steps", type=int, default=400, help="on a cable as it is")
    parser.add_argument("--disturbed_steps", type=int, default=150, help="on one that is slow or lossy")
    parser.add_argument("--json", type=Path, default=RESULTS / "nodes.json")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    found = []
    with tempfile.TemporaryDirectory() as work:
        shards = small_shards(Path(work))
        for case in CASES:
            steps = options.steps if case[-1] == PLAIN else options.disturbed_steps
            found.append(measure(Path(work, str(len(found))), shards, steps, *case))
            result = {"machine": machine(), "gradient_bytes": GRADIENT_BYTES, "runs": found}
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(found))
    return 0


def measure(
    folder: Path, shards: Path, steps: int, num_nodes: int, tiles: int, precision: str, cable: str
) -> dict[str, Any]:
    """Steps a second, and bytes a step that each node sends, of a training of so many steps."""
    samples = steps * tiles * num_nodes
    settings = {"shards": str(shards), "run": str(folder / "run"), "model": {"residual": True}, "trackers": [],
                "mixed_precision": precision, "batch_size_per_process": tiles, "total_samples": samples,
                "log_every_samples": samples, "validate_every_samples": samples, "timeout_minutes": 5.0}
    with cluster(num_nodes) as nodes:
        for node in nodes:
            disturb(node, cable)
        before = [node.traffic()[0] for node in nodes]
        NodesJob(nodes, folder, settings).start().succeed()
        sent = [round((node.traffic()[0] - old) / steps) for node, old in zip(nodes, before, strict=True)]
    rate = read_metrics(folder / "run")[-1]["tiles_per_second"] / (tiles * num_nodes)
    expected = 2 * (num_nodes - 1) / num_nodes * GRADIENT_BYTES
    return {"nodes": num_nodes, "tiles_per_rank": tiles, "mixed_precision": precision, "cable": cable, "steps": steps,
            "steps_per_second": round(rate, 2), "bytes_sent_per_step": sent,
            "of_all_reduce": [round(one / expected, 3) for one in sent]}


def disturb(node: Node, cable: str) -> None:
    if cable == SLOW:
        node.slow(1000)
    elif cable in LOSSES:
        node.lose(LOSSES[cable])


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
