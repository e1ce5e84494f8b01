"""How far training scales, predicted: `python -m benchmarks.scaling [--tiles_per_second N ...]` prints tables.

A model of a step, nothing is measured: docs/scaling.md has its formulas and says where each input comes from. Give your
own numbers before you rely on it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from benchmarks.measure import table

GRADIENT_BYTES, PAIR_BYTES, DEVICE_PAIR_BYTES = 32_516, 34_816, 32_768
GPUS = [1 << power for power in range(11)]
LOADERS = {"object store": 59_514, "resident": math.inf}  # pairs/s of a process: docs/loading.md


@dataclass(frozen=True)
class Inputs:
    tiles_per_second: float = 30_000  # of a GPU
    step_overhead_ms: float = 3
    all_reduce_latency_us: float = 25
    node_hop_us: float = 0.6
    network_hop_us: float = 5
    all_reduce_gb_per_second: float = 5
    node_read_gb_per_second: float = 6  # from the object store
    host_to_device_gb_per_second: float = 25
    gpus_per_node: int = 8
    batch_size_per_process: int = 256
    global_batch_size: int = 8192  # for strong scaling


class Step(NamedTuple):
    """Seconds of the parts of a step; those beside `work` go on at the same time."""

    work: float
    all_reduce: float
    network: float
    loader: float
    copy: float

    @property
    def seconds(self) -> float:
        return max(self.work, self.network, self.loader, self.copy)


def step(inputs: Inputs, num_gpus: int, tiles: float, source: str) -> Step:
    """A step of `num_gpus` with so many tiles each, whose pairs come from a source of LOADERS."""
    in_node = min(num_gpus, inputs.gpus_per_node)
    num_nodes = math.ceil(num_gpus / in_node)
    tree = 2 * (in_node - 1) * inputs.node_hop_us + 2 * math.ceil(math.log2(num_nodes)) * inputs.network_hop_us
    ring = 2 * (num_gpus - num_nodes) * inputs.node_hop_us + 2 * (num_nodes - 1) * inputs.network_hop_us
    bandwidth = 2 * (num_gpus - 1) / num_gpus * GRADIENT_BYTES / (inputs.all_reduce_gb_per_second * 1e9)
    all_reduce = bandwidth + (inputs.all_reduce_latency_us + min(tree, ring)) / 1e6 if num_gpus > 1 else 0.0
    work = tiles / inputs.tiles_per_second + inputs.step_overhead_ms / 1e3 + all_reduce
    is_read = source == "object store"
    network = tiles * in_node * PAIR_BYTES / (inputs.node_read_gb_per_second * 1e9) if is_read else 0.0
    copy = tiles * DEVICE_PAIR_BYTES / (inputs.host_to_device_gb_per_second * 1e9) if is_read else 0.0
    return Step(work, all_reduce, network, tiles / LOADERS[source], copy)


def limit(inputs: Inputs, parts: Step, tiles: float) -> str:
    """What a step waits for."""
    if parts.seconds > parts.work:
        return max(("network", "loader", "copy"), key=lambda name: float(getattr(parts, name)))
    return "computing" if tiles / inputs.tiles_per_second > 2 / 3 * parts.work else "step overhead"


def row(inputs: Inputs, num_gpus: int, tiles: float, alone: float) -> list[object]:
    """Tiles a GPU, then tiles/s, efficiency and limit for each source; `alone`: tiles/s of one GPU."""
    cells: list[object] = []
    for source in LOADERS:
        parts = step(inputs, num_gpus, tiles, source)
        rate = num_gpus * tiles / parts.seconds
        cells += [f"{rate:,.0f}", f"{rate / num_gpus / alone:.1%}", limit(inputs, parts, tiles)]
    return [f"{num_gpus:,}", f"{tiles:,.0f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicts tiles/s on 1 to 1,024 GPUs by a model.")
    for field in fields(Inputs):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="default: %(default)s")
    values = vars(parser.parse_args())
    inputs = Inputs(**values | {"gpus_per_node": int(values["gpus_per_node"])})
    header = ["GPUs", "tiles per GPU", *(f"{source}: {text}" if text == "tiles/s" else text for source in LOADERS
                                         for text in ("tiles/s", "efficiency", "limits"))]
    for title, of_a_gpu in (("Weak scaling", lambda gpus: inputs.batch_size_per_process),
                            ("Strong scaling", lambda gpus: inputs.global_batch_size / gpus)):
        tiles = of_a_gpu(1)
        alone = tiles / step(inputs, 1, tiles, "resident").seconds
        print(f"{title}\n\n{table(header, (row(inputs, gpus, of_a_gpu(gpus), alone) for gpus in GPUS))}\n")


if __name__ == "__main__":
    main()
