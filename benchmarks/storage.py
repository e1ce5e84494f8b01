"""What an object store and the disks of the nodes are asked for in a training: `python -m benchmarks.storage [--page]`.

Simulated, request by request, from the stream's own order (`benchmarks.traffic`); only the rate of the GPUs is a
prediction, that of `benchmarks.scaling` where nothing waits for pairs. Three minutes of one core; writes
benchmarks/results/storage.json, and with `--page` the table of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from benchmarks.report import put_into
from benchmarks.scaling import PAGE, Row, table
from benchmarks.scaling_model import RESULTS, SHARD_BYTES, Inputs, predict
from benchmarks.traffic import Job, Requests, layout, missed, requests
from srcnn.index import ROW
from srcnn.loader import StreamConfig

NUM_NODES, RANKS_PER_NODE = 8, 8
NUM_RANKS = NUM_NODES * RANKS_PER_NODE
PAIRS_PER_SHARD = 1024  # default of shards.plan
PREFIX_REQUESTS = 5500  # GET/s that S3 promises for a partitioned prefix


@dataclass(frozen=True)
class Scenario:
    """What is varied; everything else is the stream's default."""

    num_pairs: int
    batch_size: int
    lanes: Literal["anew", "kept"] = "anew"
    run_samples: int = 16
    window_samples: int = 32_768
    num_lanes: int = 1024
    epochs: int = 3


MILLION = 1_000_000
SCENARIOS = [
    *(Scenario(13_000, 2048, lanes) for lanes in ("anew", "kept")),
    *(Scenario(222_080, 4096, lanes) for lanes in ("anew", "kept")), Scenario(222_080, 4096, num_lanes=256),
    *(Scenario(MILLION, size, lanes) for size in (2048, 4096, 16_384) for lanes in ("anew", "kept")),
    *(Scenario(MILLION, 16_384, "kept", 16, window) for window in (8192, 131_072)),
    *(Scenario(MILLION, 16_384, "kept", run, 2048 * run) for run in (64, 128)),
    *(Scenario(10 * MILLION, 16_384, lanes, epochs=2) for lanes in ("anew", "kept")),
    Scenario(10 * MILLION, 16_384, "kept", 128, 2048 * 128, epochs=2),
]


def job_of(scenario: Scenario) -> Job:
    reader: Any = SimpleNamespace(num_samples=scenario.num_pairs, is_local=False)
    config = StreamConfig(lanes=scenario.lanes, run_samples=scenario.run_samples,
                          window_samples=scenario.window_samples, num_lanes=scenario.num_lanes)
    places = layout(scenario.num_pairs, PAIRS_PER_SHARD, SHARD_BYTES)
    return Job(config.order_of(0, reader), places, scenario.batch_size, NUM_RANKS, RANKS_PER_NODE,
               config.lead_samples, scenario.epochs * scenario.num_pairs)


def simulate(scenario: Scenario) -> dict[str, Any]:
    """The traffic of a scenario, with and without a cache that holds everything."""
    job = job_of(scenario)
    made = requests(job)
    read = made.where(missed(made, job, np.inf))
    rate = predict(Inputs(), "resident: device", NUM_RANKS, scenario.batch_size / NUM_RANKS).tiles_per_second
    per_second = len(made.step) / (job.num_steps * job.batch_size) * rate
    return asdict(scenario) | {
        "order": str(job.order), "ranks": NUM_RANKS, "nodes": NUM_NODES, "steps": job.num_steps,
        "start_bytes": NUM_RANKS * scenario.num_pairs * ROW.itemsize,
        "predicted_tiles_per_second": rate,
        "predicted_requests_per_second": per_second,
        "predicted_prefixes": per_second / PREFIX_REQUESTS,
        "lead_ms": job.lead_samples / rate * 1e3,
        "no_cache": told(made, job), "cache": told(read, job),
    }


def told(made: Requests, job: Job) -> dict[str, Any]:
    """Sums of these requests by epoch and node, and how they fall on steps and shards."""
    pairs, num_epochs = made.stop - made.first, job.stop // job.order.num_samples
    nodes, num_shards = made.rank // job.ranks_per_node, len(job.layout.starts) - 1
    by_node = np.zeros((num_epochs, NUM_NODES), np.int64)
    inside = made.epoch < num_epochs  # what the last batch takes of the next epoch
    np.add.at(by_node, (made.epoch[inside], nodes[inside]), pairs[inside] * job.layout.stride)
    by_step = np.bincount(made.step, minlength=job.num_steps)
    at_once, counts = np.unique(made.step * num_shards + made.shard, return_counts=True)
    hottest = np.zeros(job.num_steps, np.int64)
    np.maximum.at(hottest, at_once // num_shards, counts)
    on_shards = np.bincount(made.shard, pairs, num_shards)
    return {
        "requests_by_epoch": np.bincount(made.epoch[inside], minlength=num_epochs).tolist(),
        "bytes_by_epoch": by_node.sum(1).tolist(),
        "node_bytes_by_epoch": {"least": by_node.min(1).tolist(), "most": by_node.max(1).tolist()},
        "amplification": float(pairs.sum() / (job.num_steps * job.batch_size)),
        "requests_at_start": int(by_step[0]), "requests_on_a_shard_at_start": int(hottest[0]),
        "requests_in_a_step": spread(by_step[1:]), "requests_on_a_shard_in_a_step": spread(hottest[1:]),
        "bytes_of_busiest_shard_over_mean": float(on_shards.max() / max(on_shards.mean(), 1e-9)),
    }


def spread(numbers: np.ndarray) -> dict[str, float]:
    """Mean, 99th percentile and maximum."""
    return {"mean": float(numbers.mean()), "p99": float(np.percentile(numbers, 99)), "most": int(numbers.max())}


def traffic_table(records: list[dict[str, Any]]) -> str:
    rows: list[Row] = []
    for record in records:
        plain, cached = record["no_cache"], record["cache"]
        runs = record["num_pairs"] / record["run_samples"]
        share = record["num_pairs"] * SHARD_BYTES
        read = ", ".join(f"{num_bytes / share:.2%}" for num_bytes in cached["bytes_by_epoch"])
        in_step, on_shard = plain["requests_in_a_step"], plain["requests_on_a_shard_in_a_step"]
        lanes = record["order"].split(", ")[1].split()[0]
        rows.append((
            f"{record['num_pairs']:,}", f"{record['batch_size']:,}", f"{record['run_samples']}",
            f"{record['window_samples']:,}", f"{int(lanes):,}", record["lanes"],
            f"{sum(plain['requests_by_epoch']) / record['epochs'] / runs:.3f}", f"{plain['amplification']:.3f}", read,
            f"{cached['node_bytes_by_epoch']['most'][0] / 1e9:.2f}",
            f"{plain['requests_at_start']:,}", f"{in_step['mean']:,.0f}, {in_step['most']:,}",
            f"{plain['requests_on_a_shard_at_start']}, {on_shard['mean']:.1f}, {on_shard['most']}",
            f"{record['predicted_requests_per_second']:,.0f}",
        ))
    return table("pairs | global batch | run | window | lanes | `lanes` | requests a run and epoch | read / used | "
                 "with cache: read of the set in epochs 1, 2, 3 | a node in epoch 1, GB | requests at the start | "
                 "a step: mean, most | on one shard: at the start, mean, most | requests/s at the predicted rate", rows)


def page_part(records: list[dict[str, Any]]) -> str:
    return (f"**Simulated**, {NUM_NODES} nodes of {RANKS_PER_NODE} ranks, shards of {PAIRS_PER_SHARD:,} pairs; the "
            f"last column at a predicted rate:\n\n{traffic_table(records)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulates what 64 ranks of 8 nodes read.")
    parser.add_argument("--page", action="store_true", help="write the table into docs/scaling.md")
    parser.add_argument("--max_pairs", type=int, default=10 * MILLION, help="leave out larger data sets")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "storage.json", metavar="FILE")
    options = parser.parse_args(arguments)
    wanted = [scenario for scenario in SCENARIOS if scenario.num_pairs <= options.max_pairs]
    by_size = sorted(wanted, key=lambda scenario: -scenario.num_pairs * scenario.epochs)  # the longest ones first
    with ProcessPoolExecutor(options.workers) as pool:
        found = dict(zip(by_size, pool.map(simulate, by_size), strict=True))
    records = [found[scenario] for scenario in wanted]
    options.json.write_text(json.dumps(records, indent=1) + "\n")
    if options.page:
        put_into(PAGE, "storage", page_part(records))
    print(page_part(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
