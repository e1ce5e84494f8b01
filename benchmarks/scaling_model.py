"""A model of the rate of 1 to 1,024 GPUs, each formula with its reason; `benchmarks.scaling` makes tables of it.

Stragglers, validation, checkpoints and the quality of what large batches learn are not modelled: here all ranks are
alike, while a real step takes as long as its slowest rank.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
LOADING = RESULTS / "loading.json"
GRADIENT_BYTES = 4 * 8129  # SRCNN 9-1-5, float32
SHARD_BYTES, PIXEL_BYTES = 34_816, 2 * 128 * 128  # of a greyscale pair: in an npy shard, and as tiles
SIZES = tuple(2**power for power in range(11))
LOADERS = {"object store": ("srcnn npy, s3", "page cache"), "disk": ("srcnn npy", "disk"),
           "page cache": ("srcnn npy", "page cache")}  # how benchmarks.loading names them


def _input(value: float, source: str) -> Any:
    return field(default=value, metadata={"from": source})


NCCL = "NCCL 2.28, src/graph/tuning.cc (tree, LL)"


@dataclass(frozen=True)
class Inputs:
    """All numbers the model knows, with their units; `from` says where the default comes from."""

    tiles_per_second: float = _input(30_000.0, "assumed: 33 MB of activations a tile at 30% of an H100's 3.35 TB/s")
    step_overhead_ms: float = _input(3.0, "assumed: 1.6 ms of `train_step` measured on a CPU (1 tile of 16x16), the "
                                     "rest for launches and the wait for the gradient norm")
    all_reduce_latency_us: float = _input(25.0, f"assumed: 6.8 in {NCCL}, the rest for PyTorch's launch")
    node_hop_us: float = _input(0.6, f"assumed: NVLink in {NCCL}")
    network_hop_us: float = _input(5.0, f"assumed: network in {NCCL}")
    all_reduce_gb_per_second: float = _input(5.0, "assumed: 8 B to 32 KiB on 16 H100 in nccl-tests issue 319")
    node_read_gb_per_second: float = _input(6.0, "assumed: half of a node's 100 Gb/s Ethernet")
    node_disk_gb_per_second: float = _input(6.0, "assumed: two NVMe drives of 3.2 GB/s (gdsio, NVIDIA's storage guide)")
    host_to_device_gb_per_second: float = _input(25.0, "assumed: PCIe 4.0 x16, pinned memory")
    gpus_per_node: int = _input(8, "chosen")
    batch_size_per_process: int = _input(256, "chosen")
    global_batch_size: int = _input(8192, "chosen, for strong scaling")
    num_pairs: int = _input(1_000_000, "chosen: 35 GB of shards")
    epoch: int = _input(2, "chosen, for the cache: it is empty in epoch 1")
    run_samples: int = _input(16, "default of stream.run_samples")
    num_lanes: int = _input(1024, "default of stream.num_lanes")


class Storage(NamedTuple):
    """Where pairs come from: bytes a pair by each way, and the loader that was measured for it."""

    name: str
    network_bytes: float = 0
    disk_bytes: float = 0
    device_bytes: float = PIXEL_BYTES
    loader: str = ""
    start_bytes: float = 0  # read by each rank before the first step


def storages(inputs: Inputs, num_nodes: int) -> dict[str, Storage]:
    """Every way to keep the shards.

    A node's cache holds what the node has read. The order deals runs to nodes anew each epoch: in epoch e a pair was
    read by this node before with probability 1 - (1 - 1/nodes)^(e - 1); with `lanes: kept` it was from epoch 2 on, but
    for 0.15% of all pairs (`benchmarks.storage`, 8 nodes).
    """
    cached = 1 - (1 - 1 / num_nodes) ** (inputs.epoch - 1)
    kept = float(inputs.epoch > 1)
    every = [
        Storage("object store", SHARD_BYTES, loader="object store"),
        Storage(f"object store + cache, epoch {inputs.epoch}", SHARD_BYTES * (1 - cached), SHARD_BYTES * cached,
                loader="object store"),
        Storage(f"object store + cache, lanes kept, epoch {inputs.epoch}", SHARD_BYTES * (1 - kept), SHARD_BYTES * kept,
                loader="object store"),
        Storage("disk of the node", 0, SHARD_BYTES, loader="disk"),
        Storage("page cache of the node", loader="page cache"),
        Storage("resident: host", start_bytes=inputs.num_pairs * SHARD_BYTES),
        Storage("resident: device", device_bytes=0, start_bytes=inputs.num_pairs * SHARD_BYTES),
    ]
    return {storage.name: storage for storage in every}


def requests_per_pair(inputs: Inputs) -> float:
    """A run that lies across the border of two lanes is asked for in two parts, 1 of 32 at most (`srcnn.loader`)."""
    runs = max(1, inputs.num_pairs // inputs.run_samples)
    return (1 + min(inputs.num_lanes, runs // 32) / runs) / inputs.run_samples


def all_reduce_seconds(inputs: Inputs, ranks: int) -> float:
    """Seconds to sum the gradients: latency + hops + bytes, after the backward, as the only bucket is full only then.

    Alpha-beta model: 2(R - 1)/R n bytes through each link (ring, or reduce-scatter and all-gather: Thakur, Rabenseifner
    and Gropp, IJHPCA 19(1), 2005). The hops are those NCCL reckons with: a chain within the node and a tree between
    nodes, or a ring through all, whichever is quicker.
    """
    if ranks == 1:
        return 0.0
    in_node = min(ranks, inputs.gpus_per_node)
    nodes = math.ceil(ranks / inputs.gpus_per_node)
    tree = 2 * (in_node - 1) * inputs.node_hop_us + 2 * math.ceil(math.log2(nodes)) * inputs.network_hop_us
    ring = 2 * (ranks - nodes) * inputs.node_hop_us + 2 * (nodes - 1) * inputs.network_hop_us
    sending = 2 * (ranks - 1) / ranks * GRADIENT_BYTES / (inputs.all_reduce_gb_per_second * 1e9)
    return (inputs.all_reduce_latency_us + min(tree, ring)) * 1e-6 + sending


WELL_USED = 2 / 3  # of a step spent computing: below, what else the step holds counts as its limit
WORK = ("computing", "step overhead", "all-reduce")  # one after the other; everything else goes on beside them


def parts_of_step(inputs: Inputs, storage: Storage, ranks: int, tiles: float) -> dict[str, float]:
    """Seconds of each part of a step of `tiles` per rank.

    The overhead is taken as not hidden by computing, the worst case: the host reads the gradient norm of a step
    while the next one's gradient is computed (`srcnn.step.train_step`), so that some of it is. The all-reduce is
    all that the ranks tell each other in a step.
    """
    in_node = min(ranks, inputs.gpus_per_node)
    node_tiles = tiles * in_node
    return {
        "computing": tiles / inputs.tiles_per_second,
        "step overhead": inputs.step_overhead_ms * 1e-3,
        "all-reduce": all_reduce_seconds(inputs, ranks),
        "network": node_tiles * storage.network_bytes / (inputs.node_read_gb_per_second * 1e9),
        "disk": node_tiles * storage.disk_bytes / (inputs.node_disk_gb_per_second * 1e9),
        "loader": tiles / measured_loader(storage.loader)[0] if storage.loader else 0.0,
        "host to device": tiles * storage.device_bytes / (inputs.host_to_device_gb_per_second * 1e9),
    }


class Prediction(NamedTuple):
    """What a number of ranks does; efficiency against as many times one rank with the same global or local batch."""

    ranks: int
    tiles_per_rank: float
    seconds: float
    tiles_per_second: float
    efficiency: float
    limit: str


def predict(inputs: Inputs, storage: str, ranks: int, tiles: float, tiles_of_one: float = 0) -> Prediction:
    """The rate of `ranks` with `tiles` each; one rank, compared with, takes `tiles_of_one` (0: the same)."""
    parts = parts_of_step(inputs, storages(inputs, math.ceil(ranks / inputs.gpus_per_node))[storage], ranks, tiles)
    work = sum(parts[name] for name in WORK)
    beside = {name: seconds for name, seconds in parts.items() if name not in WORK and seconds > work}
    seconds = max(work, *beside.values()) if beside else work
    limits = beside or {name: parts[name] for name in WORK}
    if not beside and parts["computing"] < WELL_USED * work:
        del limits["computing"]
    rate = ranks * tiles / seconds
    alone = rate if ranks == 1 else predict(inputs, storage, 1, tiles_of_one or tiles).tiles_per_second
    return Prediction(ranks, tiles, seconds, rate, rate / ranks / alone, max(limits, key=lambda name: limits[name]))


def measured_loader(kind: str) -> tuple[float, float]:
    """Pairs/s and CPU seconds per million pairs of one process on two cores, from benchmarks/results/loading.json."""
    name, state = LOADERS[kind]
    wanted = {"loader": name, "state": state, "cores": 2}
    for record in _loading()["results"]:
        if all(record[key] == value for key, value in wanted.items()):
            return record["pairs_per_second"], record["cpu_seconds_per_million_pairs"]
    raise ValueError(f"{LOADING}: holds no {wanted}; run `make bench-loading`")


@cache
def _loading() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(LOADING.read_text())
    return content


def weak(inputs: Inputs, storage: str) -> list[Prediction]:
    """The same batch on every GPU."""
    return [predict(inputs, storage, ranks, inputs.batch_size_per_process) for ranks in SIZES]


def strong(inputs: Inputs, storage: str) -> list[Prediction]:
    """The same global batch on every number of GPUs that has a tile for each."""
    whole = inputs.global_batch_size
    return [predict(inputs, storage, ranks, whole / ranks, whole) for ranks in SIZES if ranks <= whole]


def read_measurements(*paths: Path) -> dict[str, Any]:
    """Files of measurements, the later ones over the earlier.

    Raises FileNotFoundError, or ValueError for what a file holds, naming the key.
    """
    merged: dict[str, Any] = {"inputs": {}}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no measurements there; --measure writes a file of them")
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            inputs = content.get("inputs", {}) | _fitted(content.get("steps", {}), content.get("from", path.name))
            for key, entry in inputs.items():
                _check_input(key, entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error
        merged |= content | {"inputs": merged["inputs"] | inputs}
    return merged


def _fitted(steps: dict[str, float], source: str) -> dict[str, dict[str, Any]]:
    """Throughput and overhead from the seconds of steps of several sizes: seconds = overhead + tiles / rate."""
    if not steps:
        return {}
    if len(steps) < 2:
        raise ValueError("steps: expected at least two sizes")
    slope, overhead = np.polyfit([float(tiles) for tiles in steps], list(steps.values()), 1)
    told = f"measured: a line through steps of {', '.join(steps)} tiles, {source}"
    found = {"tiles_per_second": 1 / float(slope), "step_overhead_ms": 1e3 * max(0.0, float(overhead))}
    return {key: {"value": value, "from": told} for key, value in found.items()}


def _check_input(key: str, entry: dict[str, Any]) -> None:
    names = [one.name for one in fields(Inputs)]
    if key not in names:
        nearest = get_close_matches(key, names, 1)
        raise ValueError(f"unknown input {key}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    if not entry["value"] >= 0 or not entry["from"]:
        raise ValueError(f"{key}: {entry}: expected a value of at least 0, and where it is from")


def inputs_of(measurements: dict[str, Any], given: dict[str, float]) -> tuple[Inputs, dict[str, str]]:
    """Defaults < measurements < what was given on the command line, and where each is from."""
    entries = {key: (entry["value"], entry["from"]) for key, entry in measurements["inputs"].items()}
    entries |= {key: (value, "given on the command line") for key, value in given.items()}
    sources = {one.name: one.metadata["from"] for one in fields(Inputs)}
    sources |= {key: source for key, (_, source) in entries.items()}
    return replace(Inputs(), **{key: value for key, (value, _) in entries.items()}), sources
