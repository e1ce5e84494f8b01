"""How often two samples meet in a batch, beside an ideal shuffle: `python -m benchmarks.meetings`, two minutes.

Pairs are drawn by how the two lie to each other: in one run, in one lane of the kept order, anywhere. Prints the table
of docs/shuffle.md: meetings over those of an ideal shuffle, and the variance of their number from pair to pair over
that of an ideal shuffle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.shuffle_quality import epoch_of
from srcnn.shuffle import BlockShuffle, Shuffle, UniformShuffle

NUM_SAMPLES, NUM_LANES, RUN_SAMPLES, WINDOW_SAMPLES = 262_144, 512, 16, 32_768
NUM_EPOCHS, NUM_PAIRS = 16, 1_000_000
BATCH_SIZES = (256, 4096)
OF_RUNS = 0, NUM_SAMPLES, RUN_SAMPLES, NUM_LANES, WINDOW_SAMPLES
ORDERS: dict[str, Shuffle] = {
    "uniform": UniformShuffle(0, NUM_SAMPLES), "runs": BlockShuffle(*OF_RUNS),
    "runs, lanes kept": BlockShuffle(*OF_RUNS, redeal=False),
}
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # first samples -> second ones


def in_one_run(rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
    return first // RUN_SAMPLES * RUN_SAMPLES + rng.integers(0, RUN_SAMPLES, len(first))


def in_one_lane(rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
    """Other samples of the lane that the kept order has `first` in."""
    samples = epoch_of(ORDERS["runs, lanes kept"], 0)
    by_lane = samples.reshape(-1, NUM_LANES).T
    lanes = np.empty_like(samples)
    lanes[samples] = np.arange(NUM_SAMPLES) % NUM_LANES
    return by_lane[lanes[first], rng.integers(0, by_lane.shape[1], len(first))]


def anywhere(rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
    return rng.integers(0, NUM_SAMPLES, len(first))


KINDS: dict[str, Draw] = {"one run": in_one_run, "one kept lane, two runs": in_one_lane, "anywhere, two runs": anywhere}


def drawn_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    pairs = {}
    for kind, draw in KINDS.items():
        first = rng.integers(0, NUM_SAMPLES, NUM_PAIRS)
        second = draw(rng, first)
        wanted = (first // RUN_SAMPLES == second // RUN_SAMPLES) == (kind == "one run")
        wanted &= first != second
        pairs[kind] = first[wanted], second[wanted]
    return pairs


def meetings(order: Shuffle, first: np.ndarray, second: np.ndarray) -> dict[int, np.ndarray]:
    """In how many of the epochs each pair meets in a batch, by batch size."""
    counts = {size: np.zeros(len(first), np.int64) for size in BATCH_SIZES}
    for epoch in range(NUM_EPOCHS):
        positions = np.empty(NUM_SAMPLES, np.int64)
        positions[epoch_of(order, epoch)] = np.arange(NUM_SAMPLES)
        for size in BATCH_SIZES:
            counts[size] += positions[first] // size == positions[second] // size
    return counts


def main() -> None:
    pairs = drawn_pairs()
    every = np.cumsum([0, *(len(first) for first, _ in pairs.values())])
    joined = [np.concatenate(column) for column in zip(*pairs.values(), strict=True)]
    print(f"| global batch | pairs in | {' | '.join(f'{name}: meetings | variance' for name in ORDERS)} |")
    found = {name: meetings(order, *joined) for name, order in ORDERS.items()}
    for size in BATCH_SIZES:
        share = (size - 1) / (NUM_SAMPLES - 1)
        expected, variance = NUM_EPOCHS * share, NUM_EPOCHS * share * (1 - share)
        for number, kind in enumerate(KINDS):
            cells = []
            for counts in found.values():
                of_kind = counts[size][every[number] : every[number + 1]]
                cells += [f"{of_kind.mean() / expected:.3f}", f"{of_kind.var() / variance:.3f}"]
            print(f"| {size:,} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
