"""The order of samples as a pure function of (seed, epoch, position), and what each rank's batches hold.

No permutation and no generator state is stored. A keyed pseudo-random permutation of 0..N-1 is computed for just the
positions asked for: a Feistel network over the next even number of bits, walked until it lands below N (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Position e N + p of the endless stream is position p of
epoch e.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ORDER_VERSION = 1  # part of the stream's state; another number means that positions meant other samples
NUM_ROUNDS = 6
POSITIONS_AT_ONCE = 8192  # whose samples are computed together: a call of NumPy costs as much as hundreds of them
_MASK_64 = (1 << 64) - 1
_SAMPLES, _SYMMETRIES, _CROPS, _BLOCKS, _SHORT_BLOCK, _WINDOWS, _DEALT, _REST, _DAMAGES = range(9)  # what a key is for


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 that looks random: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive_key(*numbers: int) -> np.uint64:
    """One 64-bit key of several whole numbers, such as (seed, epoch, purpose)."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix(key ^ np.uint64(number & _MASK_64))
    return np.uint64(key[0])


def permute(positions: np.ndarray, num_samples: int, key: np.uint64) -> np.ndarray:
    """Positions in 0..num_samples-1, any shape -> the samples there, int64; a bijection for every key."""
    positions = np.asarray(positions, np.uint64)
    return permute_each(positions.ravel(), np.uint64(num_samples), key).reshape(positions.shape)


def permute_each(positions: np.ndarray, sizes: np.ndarray | np.uint64, keys: np.ndarray | np.uint64) -> np.ndarray:
    """`permute` of uint64 positions (n,), each in a set of its own size and key: scalars or (n,), both alike."""
    half_bits = np.maximum(1, (_bit_length(sizes - np.uint64(1)) + np.uint64(1)) >> np.uint64(1)).astype(np.uint64)
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    mixed_keys = mix(np.atleast_1d(keys))
    round_keys = np.stack([mix(mixed_keys ^ np.uint64(number)) for number in range(NUM_ROUNDS)])

    def feistel(values: np.ndarray, chosen: np.ndarray | slice) -> np.ndarray:
        bits, mask = (half_bits[chosen], half_mask[chosen]) if half_bits.ndim else (half_bits, half_mask)
        left, right = values >> bits, values & mask
        for round_key in round_keys[:, chosen] if half_bits.ndim else round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        return (left << bits) | right

    samples = feistel(positions, slice(None))
    outside = np.flatnonzero(samples >= sizes)
    while len(outside):
        samples[outside] = feistel(samples[outside], outside)
        limits = sizes[outside] if isinstance(sizes, np.ndarray) and sizes.ndim else sizes
        outside = outside[samples[outside] >= limits]
    return samples.astype(np.int64)


def _bit_length(values: np.ndarray | np.uint64) -> np.ndarray:
    """Bits of each whole number below 2^53 (0 has none)."""
    return np.asarray(np.frexp(np.asarray(values, np.float64))[1], np.uint64)


class Shuffle(ABC):
    """An order of the endless stream of samples, a frozen dataclass. Its text is kept in checkpoints."""

    seed: int
    num_samples: int
    num_lanes: int

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples (int64) at these positions (n,) of the endless stream."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.num_samples)
        samples = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self.samples_of_epoch(int(epoch), within[chosen])
        return samples

    @abstractmethod
    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """The same for positions 0..num_samples-1 of one epoch."""


@dataclass(frozen=True)
class UniformShuffle(Shuffle):
    """A pseudo-random permutation of all samples, a new one in each epoch; for shards with fast random access."""

    seed: int
    num_samples: int
    num_lanes: int = 1

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        return permute(within, self.num_samples, derive_key(self.seed, epoch, _SAMPLES))

    def __str__(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class BlockShuffle(Shuffle):
    """Blocks of neighbouring samples are read at once, yet neighbours lie far apart in the stream.

    The blocks are permuted, dealt to lanes as equal stretches, and each lane's samples permuted inside windows.
    Position p belongs to lane p mod num_lanes, so ranks that keep to their lanes read their own blocks only.
    `window_samples` are in memory, in all lanes and ranks together; lanes change windows one after the other.

    Attributes:
        block_samples: neighbours in a block; the last block of the data set may be shorter.
        num_lanes: neighbours in the stream are of different lanes; at least the batch size is best.
        window_samples: samples mixed with each other, over all lanes.
        redeal: whether each epoch deals the blocks to lanes anew. If not, they are dealt once, and in each epoch a lane
            permutes its own blocks and then its samples: a rank that keeps to its lanes reads the same samples in every
            epoch. Where an epoch is no multiple of the lanes, each time others have one sample more, and stretches move
            by less than num_lanes samples.
    """

    seed: int
    num_samples: int
    block_samples: int
    num_lanes: int
    window_samples: int
    redeal: bool = True

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        num_blocks, short = divmod(self.num_samples, self.block_samples)
        if self.redeal:  # the short block lies between two others, drawn anew
            key = derive_key(self.seed, epoch, _BLOCKS)
            short_start = int(derive_key(self.seed, epoch, _SHORT_BLOCK)) % (num_blocks + 1) * self.block_samples
            slots = self._redealt_slots(epoch, within, short_start)
        else:  # the short block is the end of the last lane
            key, short_start = derive_key(self.seed, _DEALT), num_blocks * self.block_samples
            slots = self._kept_slots(epoch, within)
        in_short = (slots >= short_start) & (slots < short_start + short)
        blocks, offsets = np.divmod(np.where(slots < short_start, slots, slots - short), self.block_samples)
        blocks[in_short] = 0
        if num_blocks:
            blocks = permute(blocks, num_blocks, key)
        of_short = num_blocks * self.block_samples + slots - short_start
        return np.where(in_short, of_short, blocks * self.block_samples + offsets)

    def _redealt_slots(self, epoch: int, within: np.ndarray, short_start: int) -> np.ndarray:
        """Positions -> slots in the sequence of permuted blocks, of which each lane has a stretch."""
        steps, lanes = np.divmod(within, self.num_lanes)
        shortest, num_longer = divmod(self.num_samples, self.num_lanes)
        lane_starts = lanes * shortest + np.minimum(lanes, num_longer)
        lengths = shortest + (lanes < num_longer)
        # Windows are of whole blocks. The first ends elsewhere in each lane, so that lanes change them in turn.
        window = max(1, self.window_samples // self.num_lanes)
        window = window // self.block_samples * self.block_samples or window
        short = self.num_samples % self.block_samples
        first_block = np.where(lane_starts > short_start, lane_starts - short, lane_starts)
        shifts = lanes * window // self.num_lanes - window
        shifts -= (shifts + first_block) % self.block_samples
        numbers = (steps - shifts) // window
        begins = np.maximum(0, numbers * window + shifts)
        ends = np.minimum(lengths, (numbers + 1) * window + shifts)
        keys = mix(_lane_keys(lanes, self.seed, epoch, _WINDOWS) ^ numbers.astype(np.uint64))
        inside = permute_each((steps - begins).astype(np.uint64), (ends - begins).astype(np.uint64), keys)
        return lane_starts + begins + inside

    def _kept_slots(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """Positions -> slots in the sequence of dealt blocks, of which each lane has a stretch in all epochs."""
        first_lane = epoch * self.num_samples % self.num_lanes
        steps, numbers = np.divmod(within, self.num_lanes)
        lanes = (numbers + first_lane) % self.num_lanes
        shortest, num_longer = divmod(self.num_samples, self.num_lanes)
        longer_before = np.clip(lanes - first_lane, 0, num_longer)
        longer_before += np.minimum(lanes, max(0, first_lane + num_longer - self.num_lanes))
        starts = lanes * shortest + longer_before
        stops = starts + shortest + (numbers < num_longer)
        first_blocks = -(-starts // self.block_samples)
        num_blocks = np.maximum(0, stops // self.block_samples - first_blocks)
        in_blocks = num_blocks * self.block_samples
        # What a stretch has of blocks that it shares with its neighbours is a window of its own, between two others.
        rest, head = stops - starts - in_blocks, first_blocks * self.block_samples - starts
        in_rest, mixed = self._mixed(epoch, steps, lanes, in_blocks, rest)
        blocks, offsets = np.divmod(np.where(in_rest, 0, mixed), self.block_samples)
        sizes = np.maximum(1, num_blocks).astype(np.uint64)
        keys = _lane_keys(lanes, self.seed, epoch, _BLOCKS)
        blocks = first_blocks + permute_each(blocks.astype(np.uint64), sizes, keys)
        of_rest = starts + mixed + np.where(mixed < head, 0, in_blocks)
        return np.where(in_rest, of_rest, blocks * self.block_samples + offsets)

    def _mixed(
        self, epoch: int, steps: np.ndarray, lanes: np.ndarray, in_blocks: np.ndarray, rest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps in a lane -> whether they are in the rest, and which sample of it or of the `in_blocks` others."""
        window = max(1, self.window_samples // self.num_lanes // self.block_samples) * self.block_samples
        shifts = lanes * window // self.num_lanes - window  # as in _redealt_slots
        shifts -= shifts % self.block_samples
        num_windows = -((shifts - in_blocks) // window)
        rest_keys = _lane_keys(lanes, self.seed, epoch, _REST)
        rest_numbers = (rest_keys % (num_windows + 1).astype(np.uint64)).astype(np.int64)
        rest_starts = np.clip(rest_numbers * window + shifts, 0, in_blocks)
        in_rest = (steps >= rest_starts) & (steps < rest_starts + rest)
        steps = np.where(steps < rest_starts, steps, steps - np.where(in_rest, rest_starts, rest))
        numbers = np.where(in_rest, -1, (steps - shifts) // window)
        begins = np.where(in_rest, 0, np.maximum(0, numbers * window + shifts))
        sizes = np.where(in_rest, rest, np.minimum(in_blocks, (numbers + 1) * window + shifts) - begins)
        keys = mix(_lane_keys(lanes, self.seed, epoch, _WINDOWS) ^ numbers.astype(np.uint64))
        return in_rest, begins + permute_each((steps - begins).astype(np.uint64), sizes.astype(np.uint64), keys)

    def __str__(self) -> str:
        lanes = f"{self.num_lanes} lanes" if self.redeal else f"{self.num_lanes} kept lanes"
        return f"runs of {self.block_samples}, {lanes}, windows of {self.window_samples}"


def _lane_keys(lanes: np.ndarray, seed: int, epoch: int, purpose: int) -> np.ndarray:
    return mix(lanes.astype(np.uint64) ^ derive_key(seed, epoch, purpose))


def symmetries_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """The symmetry of the square (0..7, uint8) at these positions; bits: flip columns, flip rows, transpose."""
    return (_draw(seed, _SYMMETRIES, positions) >> np.uint64(61)).astype(np.uint8)


def crops_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """Where to cut tiles out of larger pictures at these positions: (n, 2) in [0, 1), rows and columns."""
    drawn = _draw(seed, _CROPS, positions)
    halves = np.stack([drawn >> np.uint64(32), drawn & np.uint64(0xFFFFFFFF)], -1)
    return halves / float(1 << 32)


def generator_at(seed: int, position: int) -> np.random.Generator:
    """Random numbers for the sample at this position: Philox, a generator that is keyed instead of seeded (Salmon et
    al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
    """
    key = np.array([derive_key(seed, _DAMAGES), position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _draw(seed: int, purpose: int, positions: np.ndarray) -> np.ndarray:
    return mix(np.asarray(positions, np.int64).astype(np.uint64) ^ derive_key(seed, purpose))


@dataclass(frozen=True)
class BatchPlan:
    """The part of the stream that a training reads, and which rank's share of it is meant.

    Global batches of `batch_size` from position `start` on, until `stop` is reached or passed.
    """

    seed: int
    start: int
    stop: int
    batch_size: int
    rank: int = 0
    num_ranks: int = 1

    @property
    def batch_starts(self) -> range:
        """The first position of each global batch."""
        return range(self.start, self.stop, self.batch_size)

    def positions(self, batch_start: int, num_lanes: int = 1) -> np.ndarray:
        """The rank's positions (int64) of the global batch from there on: one of equal parts, to within one.

        The batch is dealt by lanes (position mod num_lanes): a rank takes neighbouring lanes, the same ones in every
        batch whose size divides num_lanes or is a multiple of it.
        """
        lanes = np.arange(num_lanes)
        firsts = (lanes - batch_start) % num_lanes
        ends = np.cumsum(np.maximum(0, -((firsts - self.batch_size) // num_lanes)))
        first, stop = (self.batch_size * part // self.num_ranks for part in (self.rank, self.rank + 1))
        wanted = np.arange(first, stop)
        of = np.searchsorted(ends, wanted, side="right")
        return batch_start + firsts[of] + num_lanes * (wanted - np.concatenate([[0], ends])[of])


class BatchNumbers(NamedTuple):
    """What a batch is to hold: (N,) samples and symmetries, (N, 2) crops or None, how far the stream is then, and where
    in it each of the samples stands, (N,).
    """

    samples: np.ndarray
    symmetries: np.ndarray
    crops: np.ndarray | None
    position: int
    positions: np.ndarray


def batch_numbers(order: Shuffle, plan: BatchPlan, with_crops: bool = False) -> Iterator[BatchNumbers]:
    """The rank's part of each global batch.

    Every rank gives the same number of parts, equal to within one sample. The tail of an epoch is filled up with the
    beginning of the next one, so that over the stream each sample comes exactly once an epoch.
    """
    steps_at_once = max(1, POSITIONS_AT_ONCE * plan.num_ranks // plan.batch_size)
    for first in range(0, len(plan.batch_starts), steps_at_once):
        starts = plan.batch_starts[first : first + steps_at_once]
        positions = np.concatenate([plan.positions(start, order.num_lanes) for start in starts])
        chosen = [order.samples_at(positions), symmetries_at(plan.seed, positions), positions]
        if with_crops:
            chosen.append(crops_at(plan.seed, positions))
        by_step = zip(*(np.split(array, len(starts)) for array in chosen), strict=True)
        for start, (samples, symmetries, positions, *crops) in zip(starts, by_step, strict=True):
            yield BatchNumbers(samples, symmetries, crops[0] if crops else None, start + plan.batch_size, positions)


def sequential_batches(num_samples: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[BatchNumbers]:
    """The rank's share of every sample exactly once, in sequence, not transformed; the last part may be short."""
    first, last = (num_samples * part // num_ranks for part in (rank, rank + 1))
    for start in range(first, last, batch_size):
        samples = np.arange(start, min(last, start + batch_size))
        yield BatchNumbers(samples, np.zeros(len(samples), np.uint8), None, int(samples[-1]) + 1, samples)
