"""What 1 to 1,024 GPUs can be expected to do: `python -m benchmarks.scaling [--tiles_per_second N ...] [--page]`.

A model, not a measurement. Its inputs are measured or assumed, and the table of inputs says which and where each comes
from. An input is replaced by `--KEY VALUE`, or by `--measurements FILE`: {"inputs": {KEY: {"value": V, "from": TEXT}}},
where "steps": {TILES: SECONDS, ...} beside "inputs" stands for tiles_per_second and step_overhead_ms.

`--measure RANKS` times the gradients' all-reduce over gloo between processes of this machine and writes FILE. `--check
ONE TWO` compares the prediction for two CPU ranks of `--batch_size_per_process` tiles with the tiles/s of one and two.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.report import put_into
from benchmarks.scaling_model import (
    GRADIENT_BYTES,
    LOADERS,
    RESULTS,
    SHARD_BYTES,
    SIZES,
    Inputs,
    Prediction,
    inputs_of,
    measured_loader,
    predict,
    read_measurements,
    requests_per_pair,
    storages,
    strong,
    weak,
)

MEASUREMENTS = RESULTS / "scaling.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
TURN = {
    "computing": "nothing: add GPUs",
    "step overhead": "more tiles per GPU; `compile`",
    "all-reduce": "more tiles per GPU",
    "network": "`access.cache`, with `lanes: kept` on several nodes; `resident`; shards on the node's disk",
    "disk": "more memory (page cache), `resident`",
    "loader": "more cores, `num_threads`; `resident: device`",
    "host to device": "`resident: device`",
}


Row = tuple[str, ...]


def table(header: str, rows: list[Row]) -> str:
    """A Markdown table; columns of numbers stand on the right."""
    rule = "|".join("---:" if cell[0].isdigit() else "---" for cell in rows[0])
    return "\n".join([f"| {header} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def weak_table(inputs: Inputs) -> str:
    rows: list[Row] = []
    for read, held in zip(weak(inputs, "object store"), weak(inputs, "resident: device"), strict=True):
        batch = f"{read.ranks * read.tiles_per_rank:,.0f}"
        rows.append((f"{read.ranks:,}", batch, *_told(read), TURN[read.limit], *_told(held)))
    return table("GPUs | global batch | object store: tiles/s | efficiency | limits | what to turn | "
                 "`resident: device`: tiles/s | efficiency | limits", rows)


def strong_table(inputs: Inputs) -> str:
    predictions = strong(inputs, "resident: device")
    rows = [(f"{one.ranks:,}", f"{one.tiles_per_rank:,.0f}", *_told(one), TURN[one.limit]) for one in predictions]
    return table("GPUs | tiles per GPU | tiles/s | efficiency | limits | what to turn", rows)


def _told(one: Prediction) -> Row:
    return f"{one.tiles_per_second:,.0f}", f"{one.efficiency:.1%}", one.limit


def storage_table(inputs: Inputs) -> str:
    """What a full node needs so that its GPUs never wait, and what 1,024 GPUs do with what is assumed of it."""
    in_node, tiles, ranks = inputs.gpus_per_node, inputs.batch_size_per_process, SIZES[-1]
    rate = tiles / (tiles / inputs.tiles_per_second + inputs.step_overhead_ms * 1e-3)  # of a GPU
    rows: list[Row] = []
    for name, storage in storages(inputs, math.ceil(ranks / in_node)).items():
        network, disk = (rate * in_node * pair / 1e9 for pair in (storage.network_bytes, storage.disk_bytes))
        requests = network * 1e9 / SHARD_BYTES * requests_per_pair(inputs)
        cores = f"{rate * measured_loader(storage.loader)[1] / 1e6:.2f}" if storage.loader else "not measured"
        device, start = rate * storage.device_bytes / 1e9, storage.start_bytes * in_node / 1e9
        whole = predict(inputs, name, ranks, tiles).tiles_per_second
        rows.append((name, f"{network:.1f}", f"{requests:,.0f}", f"{disk:.1f}", f"{device:.2f}",
                     cores if storage.device_bytes else "0", f"{start:,.0f}", f"{whole:,.0f}"))
    return table("pairs come from | network, GB/s | requests/s | disk, GB/s | to each GPU, GB/s | cores per GPU | "
                 f"read at the start, GB | tiles/s of {ranks:,} GPUs", rows)


def batch_table(inputs: Inputs) -> str:
    sizes, kinds = (8, 64, 1024), ("resident: device", "object store")
    rows: list[Row] = []
    for tiles in (32, 128, 512, 2048):
        every = [predict(inputs, kind, ranks, tiles) for kind in kinds for ranks in sizes]
        rows.append((f"{tiles:,}", *(f"{one.tiles_per_second:,.0f} ({one.efficiency:.0%})" for one in every)))
    return table("tiles per GPU | " + " | ".join(f"{kind}, {ranks:,} GPUs" for kind in kinds for ranks in sizes), rows)


def inputs_table(inputs: Inputs, sources: dict[str, str]) -> str:
    rows: list[Row] = [(f"`{name}`", f"{value:,.10g}", sources[name]) for name, value in asdict(inputs).items()]
    for kind, (name, state) in LOADERS.items():
        rate, cpu_seconds = measured_loader(kind)
        value = f"{rate:,.0f} pairs/s, {cpu_seconds:.1f} CPU s per million"
        rows.append((f"loader, {kind}", value, f"measured: results/loading.json, {name}, {state}, 2 cores, 1 process"))
    return table("input | value | from", rows)


def page_part(inputs: Inputs, sources: dict[str, str]) -> str:
    """What stands between the marks of the page."""
    nodes = math.ceil(SIZES[-1] / inputs.gpus_per_node)
    return "\n".join([
        f"**Predicted, not measured.** Weak scaling, {inputs.batch_size_per_process} tiles per GPU, no cache:\n",
        weak_table(inputs),
        f"Strong scaling, `resident: device`, {inputs.global_batch_size:,} tiles a step on all GPUs together:\n",
        strong_table(inputs),
        "Tiles/s (efficiency) by batch per GPU:\n",
        batch_table(inputs),
        f"What each of {nodes} nodes of {inputs.gpus_per_node} GPUs must be given so that none waits, "
        f"{inputs.batch_size_per_process} tiles per GPU and step:\n",
        storage_table(inputs),
        "Inputs:\n",
        inputs_table(inputs, sources),
    ])


def _time_all_reduce(rank: int, ranks: int, store: str, results: Any, calls: int = 500) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    gradients, seconds = torch.zeros(GRADIENT_BYTES // 4), []
    for _ in range(calls):
        begin = time.perf_counter()
        dist.all_reduce(gradients)
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        results.put(1e6 * statistics.median(seconds[calls // 5 :]))
    dist.barrier()
    dist.destroy_process_group()


def measure(path: Path, ranks: int, rounds: int = 5) -> None:
    """Writes the microseconds of gloo's all-reduce between processes of this machine: the median of medians."""
    found: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            results = torch.multiprocessing.get_context("spawn").SimpleQueue()
            arguments = (ranks, f"{folder}/store", results)
            spawn(_time_all_reduce, arguments, nprocs=ranks)  # type: ignore[no-untyped-call]  # torch gives it no types
            found.append(results.get())
    content = json.loads(path.read_text()) if path.is_file() else {}
    microseconds = round(statistics.median(found), 1)
    content.setdefault("gloo_microseconds", {})[str(ranks)] = microseconds
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{ranks} processes, gloo: {microseconds} microseconds; written to {path}")


def check(measurements: dict[str, Any], tiles: float, one: float, two: float) -> str:
    """Two CPU ranks: the prediction from one rank's tiles/s and the measured all-reduce, beside what was measured."""
    microseconds = measurements.get("gloo_microseconds", {}).get("2")
    if microseconds is None:
        raise ValueError("no all-reduce between 2 processes was measured; run --measure 2 first")
    predicted = 2 * tiles / (tiles / one + microseconds * 1e-6)
    return f"2 CPU ranks: predicted {predicted:,.1f} tiles/s, measured {two:,.1f}: {two / predicted - 1:+.1%}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicts tiles/s on 1 to 1,024 GPUs.")
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the predictions there")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/scaling.md")
    parser.add_argument("--measure", type=int, metavar="RANKS", help="time gloo between so many processes first")
    parser.add_argument("--check", type=float, nargs=2, metavar=("ONE", "TWO"), help="tiles/s of 1 and 2 CPU ranks")
    for one in fields(Inputs):
        parser.add_argument(f"--{one.name}", type=type(one.default), metavar="N", help=f"default {one.default:,g}")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    given = {one.name: getattr(options, one.name) for one in fields(Inputs)}
    try:
        if options.measure:
            measure(options.measurements, options.measure)
        measurements = read_measurements(MEASUREMENTS, options.measurements)
        inputs, sources = inputs_of(measurements, {key: value for key, value in given.items() if value is not None})
        if options.check:
            print(check(measurements, inputs.batch_size_per_process, *options.check))
            return 0
    except (OSError, ValueError) as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr)
        return 1
    if options.page:
        put_into(PAGE, "scaling", page_part(inputs, sources))
    if options.json:
        predictions = {name: [one._asdict() for one in weak(inputs, name)] for name in storages(inputs, 1)}
        fixed = [one._asdict() for one in strong(inputs, "resident: device")]
        result = {"inputs": asdict(inputs), "from": sources, "weak": predictions, "strong": fixed}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(page_part(inputs, sources))
    return 0


if __name__ == "__main__":
    sys.exit(main())
