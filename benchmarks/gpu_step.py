"""The training step on a GPU: what the card can do at most, the source project's loop, and the way from there to ours,
one thing at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from benchmarks import gpu_kernels, gpu_source
from benchmarks.contestant import LR, SourceNetwork
from benchmarks.gpu_part import Contestant, Part, Race, convolutions, forget_accelerator
from srcnn.loss import CompileMode
from srcnn.model import SRCNN, ModelConfig, initialize
from srcnn.optimizer import OptimizerConfig
from srcnn.profile_step import DTYPES, matrix_peak, now, training_flop
from srcnn.reader import ShardReader
from srcnn.step import train_step
from srcnn.stream import Batch
from srcnn.train_config import TrainConfig
from srcnn.trainer import Trainer

BATCH = 1024  # of the ladder: enough that the card is busy, not so much that float32 does not fit
MORE_BATCHES = (256, 4096, 16384)
MICRO_BATCHES = (8, 32)  # 3 MB of activations a tile in bfloat16, a level-2 cache of 50 MB
COPY_BYTES, COPIES_SECONDS = 4 << 30, 0.3
PEAK_SIDES = (4096, 8192, 16384)
MODES = get_args(CompileMode)
COMPILE_SECONDS = 60.0  # for one way to compile
PROFILE_SECONDS = 20.0  # kept for the profile at the end
LOADER_SECONDS = 45.0


@dataclass(frozen=True)
class Rung:
    """A way to train.

    Args:
        precision: fp32, tf32, bf16 or fp16.
        ours: srcnn's network, with one padding less, instead of the source's.
        sync: the loss is a number on the host every step.
        mode: of torch.compile, from the bytes to the loss; empty: eager.
        graph: the whole step is a CUDA graph.
        micro_batch: tiles at once; 0: all.
    """

    precision: str = "fp32"
    channels_last: bool = False
    tried: bool = False
    fused: bool = False
    ours: bool = False
    sync: bool = True
    mode: str = ""
    graph: bool = False
    micro_batch: int = 0


def ladder() -> Iterator[tuple[str, Rung]]:
    """Each rung adds one thing to the one before, but for fp16, which stands beside bf16."""
    rung = Rung()
    yield "eager fp32", rung
    for name, added in (
        ("+ TF32", {"precision": "tf32"}), ("+ channels_last", {"channels_last": True}),
        ("+ cuDNN tries its algorithms", {"tried": True}), ("+ bf16 autocast", {"precision": "bf16"}),
        ("(fp16 instead)", {"precision": "fp16"}), ("+ fused Adam", {"fused": True}),
        ("+ one padding: srcnn's network", {"ours": True}), ("+ no wait for the loss", {"sync": False}),
    ):  # fmt: skip
        yield name, replace(rung, **added)
        rung = rung if name.startswith("(") else replace(rung, **added)


BEST_EAGER = Rung("bf16", channels_last=True, tried=True, fused=True, ours=True, sync=False)


def build(rung: Rung, batch: Batch, device: torch.device, network: nn.Module | None = None) -> Contestant:
    """A training step of that kind on one batch again and again: forward, backward, Adam."""
    ours = SRCNN()
    initialize(ours, "pytorch", 0)
    if network is None:
        network = ours if rung.ours else SourceNetwork()
        network.load_state_dict(ours.state_dict())
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    network.to(device).to(memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=rung.fused, capturable=rung.graph)
    dtype = DTYPES.get(rung.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=rung.precision == "fp16" and device.type == "cuda")

    def loss_of(clean: torch.Tensor, degraded: torch.Tensor) -> torch.Tensor:
        pairs = [tiles.unsqueeze(1).float() / 255 for tiles in (clean, degraded)]
        wanted, given = (pixels.contiguous(memory_format=layout) for pixels in pairs)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            restored = network(given)
        return (restored.float() - wanted).square().mean()

    loss_of = torch.compile(loss_of, mode=rung.mode, dynamic=False) if rung.mode else loss_of
    parts = list(zip(*(tiles.split(rung.micro_batch or len(tiles)) for tiles in (batch.clean, batch.degraded))))

    def step() -> float | None:
        loss = torch.zeros((), device=device)
        for clean, degraded in parts:
            if rung.mode:
                torch.compiler.cudagraph_mark_step_begin()
            loss = loss_of(clean, degraded)
            scaler.scale(loss * (len(clean) / len(batch.clean))).backward()
        scaler.step(optimizer)
        scaler.update()
        if not rung.graph:
            optimizer.zero_grad(set_to_none=True)
        return loss.item() if rung.sync else None

    tf32 = rung.precision != "fp32"
    with convolutions(tf32, rung.tried):  # a graph keeps the kernels it is captured with
        done = captured(step, optimizer) if rung.graph else step
    return Contestant(done, len(batch.clean), tf32, rung.tried)


def captured(step: Callable[[], object], optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The step as one CUDA graph. Its first gradients are written where those of every replay will be."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(aside)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        assert step  # kept, and with it all memory that the graph works on
        graph.replay()

    return replay


def product(batch: Batch, compiled: Any, **settings: Any) -> Contestant:
    """The product's own step as it is, with the source's settings and bfloat16."""
    forget_accelerator()
    config = TrainConfig(
        initialization="pytorch", centred=False, augment=False, optimizer=OptimizerConfig(lr=LR),
        batch_size_per_process=len(batch.clean), mixed_precision="bf16", compile=compiled, **settings,
    )  # fmt: skip
    trainer = Trainer(config, datasets=(None, None))
    return Contestant(lambda: train_step(trainer, batch), len(batch.clean))


def batch_of(part: Part, num_tiles: int) -> Batch:
    """So many pairs on the device, the first of the shards again and again; noise where there are no shards."""
    try:
        with closing(ShardReader(part.shards / "train")) as reader:
            pairs = reader.read(np.arange(num_tiles) % reader.num_samples)
    except FileNotFoundError:  # a step takes as long on noise
        pairs = tuple(np.random.default_rng(0).integers(0, 256, (2, num_tiles, 128, 128), np.uint8))
    clean, degraded = (torch.from_numpy(tiles).to(part.device) for tiles in pairs)
    return Batch(clean, degraded, torch.arange(num_tiles, device=part.device),
                 torch.zeros(num_tiles, dtype=torch.uint8, device=part.device))


def layer_traffic(config: ModelConfig, tile_pixels: int, value_bytes: int = 2) -> int:
    """Bytes that a training tile moves at least where layers run one by one, ReLU and padding with them: forward a
    layer reads what it is given and writes what it gives; backward it reads what it was given and the gradient of what
    it gave, and writes the gradient of what it was given, the first layer none. Weights count nothing.
    """
    inner = tile_pixels - config.kernels[0] + 1 + 4
    sides = (config.channels * tile_pixels**2, config.filters[0] * inner**2, config.filters[1] * inner**2,
             config.channels * tile_pixels**2)
    both = sum(given + taken for taken, given in zip(sides, sides[1:]))
    return value_bytes * (2 * both + sum(sides[1:-1]))


def measure_floors(part: Part, tile_pixels: int) -> dict[str, float]:
    """What the card copies and multiplies, and how many tiles a second that is at most."""
    amount = 1 << 22 if part.quick else COPY_BYTES
    source = torch.zeros(amount, dtype=torch.uint8, device=part.device)
    target = torch.empty_like(source)
    target.copy_(source)
    begin, count = now(part.device), 0
    while (seconds := now(part.device) - begin) < (0.01 if part.quick else COPIES_SECONDS):
        for _ in range(10):
            target.copy_(source)
        count += 10
    copied = 2 * amount * count / seconds  # read and written
    sides = (256,) if part.quick else PEAK_SIDES
    product = matrix_peak(part.device, torch.bfloat16, sides)
    flop, moved = training_flop(ModelConfig(), tile_pixels), layer_traffic(ModelConfig(), tile_pixels)
    return {"copy_bytes_per_second": copied, "bf16_flop_per_second": product, "flop_per_tile": flop,
            "bytes_per_tile": moved, "arithmetic_tiles_per_second": product / flop,
            "traffic_tiles_per_second": copied / moved}


def measure(part: Part) -> None:
    sizes = (2, 4) if part.quick else gpu_source.BATCHES
    batch = batch_of(part, 4 if part.quick else BATCH)
    tile_pixels = int(batch.clean.shape[-1])
    floors = part.attempt("floors", lambda: measure_floors(part, tile_pixels))
    part.note(floors=floors, tile_pixels=tile_pixels, batch_size=len(batch.clean))
    torch._dynamo.config.recompile_limit = 64  # all rungs are one function to it; beyond the limit it goes on eager
    race = Race(part)
    for size in sizes:
        some = batch.map(lambda part: part[:size])
        race.enter(f"source's loop, batch {size}", lambda: gpu_source.loop(some, part.device), source=True)
        strict = partial(gpu_source.loop, tf32=False)
        race.enter(f"source's loop without TF32, batch {size}", lambda: strict(some, part.device), source=True)
    part.attempt("source's loop with its loader", lambda: gpu_source.measure_loader(part), LOADER_SECONDS)
    eager_rungs(race, batch)
    compiled_rungs(race, batch)
    race.leave(*race.ours())
    torch._dynamo.reset()  # which keeps what it has compiled
    more_batches(race, part, (2, 8) if part.quick else MORE_BATCHES[:-1])
    slow_rungs(race, batch)
    race.rounds(1)
    race.leave(*race.ours())
    micro_batches(race, part)
    more_batches(race, part, () if part.quick else MORE_BATCHES[-1:])
    again = part.attempt("floors, again", lambda: measure_floors(part, tile_pixels))
    if floors and again:
        part.note(floors={key: max(value, again[key]) for key, value in floors.items()})


def eager_rungs(race: Race, batch: Batch) -> None:
    for name, rung in ladder():
        race.enter(name, lambda: build(rung, batch, race.part.device), 30, ladder=True)
    race.enter("srcnn's train_step, eager", lambda: product(batch, False), 30, compile=False)
    race.rounds(2)
    race.leave(*[name for name, _ in islice(ladder(), 5)])


def compiled_rungs(race: Race, batch: Batch) -> None:
    """What needs a compiler or a graph, the surest first; the profile of the fastest of them."""
    part = race.part
    default = replace(BEST_EAGER, mode="default")
    first = 1.5 * COMPILE_SECONDS  # with the compiler's own start
    race.enter("+ torch.compile, default", lambda: build(default, batch, part.device), first, ladder=True)
    graphs = {"eager step as a CUDA graph": BEST_EAGER, "+ as a CUDA graph": default}
    for name, rung in graphs.items():
        race.enter(name, lambda: build(replace(rung, graph=True), batch, part.device), COMPILE_SECONDS, ladder=True)
    for mode in MODES[:1]:
        race.enter(f"srcnn's train_step, compile {mode}", lambda: product(batch, mode), COMPILE_SECONDS, compile=mode)
    reduced = replace(BEST_EAGER, mode="reduce-overhead")
    race.enter("torch.compile, reduce-overhead", lambda: build(reduced, batch, part.device), COMPILE_SECONDS)
    race.rounds(2)
    for name in race.ours()[:1]:
        part.attempt("profile", lambda: gpu_kernels.profile(part, name, race.running[name].step), PROFILE_SECONDS)


def more_batches(race: Race, part: Part, sizes: tuple[int, ...]) -> None:
    """Other sizes of the batch."""
    rung = replace(BEST_EAGER, mode="default", graph=part.device.type == "cuda")
    for size in sizes:
        batch = batch_of(part, size)
        name = f"compiled, CUDA graph, batch {size}"
        race.enter(name, lambda: build(rung, batch, part.device), COMPILE_SECONDS)
        race.rounds(1)
        race.leave(name)


def micro_batches(race: Race, part: Part) -> None:
    """As many tiles at once as have activations that stay in the level-2 cache."""
    rung = replace(BEST_EAGER, mode="default", graph=part.device.type == "cuda")
    batch = batch_of(part, 4 if part.quick else BATCH)
    for micro in (1, 2) if part.quick else MICRO_BATCHES:
        name = f"compiled, CUDA graph, {micro} tiles at once"
        race.enter(name, lambda: build(replace(rung, micro_batch=micro), batch, part.device), COMPILE_SECONDS)


def slow_rungs(race: Race, batch: Batch) -> None:
    """The ways to compile that take longest."""
    for mode in ("max-autotune-no-cudagraphs", "max-autotune"):
        rung = replace(BEST_EAGER, mode=mode)
        race.enter(f"torch.compile, {mode}", lambda: build(rung, batch, race.part.device), COMPILE_SECONDS)
    for mode in MODES[1:]:
        race.enter(f"srcnn's train_step, compile {mode}", lambda: product(batch, mode), COMPILE_SECONDS, compile=mode)
