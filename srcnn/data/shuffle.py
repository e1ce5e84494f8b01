"""The sampler: the order of samples as a pure function of (seed, epoch, position), and the batches of each rank.

No permutation and no generator state is stored. A keyed pseudo-random permutation of 0..N-1 is computed only for the
positions that are needed: a Feistel network over the next even number of bits, applied until the result is below N
(cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The epochs form an endless
stream: position e * N + p of the stream is position p of epoch e.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ORDER_VERSION = 1  # part of the loader's state; to be changed when positions get other samples
NUM_ROUNDS = 6
POSITIONS_AT_ONCE = 8192  # computed together, as calling NumPy costs as much as hundreds of positions
_MASK_64 = (1 << 64) - 1
_SAMPLES, _SYMMETRIES, _CROPS, _BLOCKS, _SHORT_BLOCK, _WINDOWS, _DEALT, _REST, _DAMAGES = range(9)  # purposes of keys


def mix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 values to uint64: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive_key(*numbers: int) -> np.uint64:
    """Hashes several integers, such as (seed, epoch, purpose), to a 64-bit key."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix(key ^ np.uint64(number & _MASK_64))
    return np.uint64(key[0])


def permute(positions: np.ndarray, num_samples: int, key: np.uint64) -> np.ndarray:
    """Maps positions in 0..num_samples-1, of any shape, to samples, int64; a bijection for every key."""
    positions = np.asarray(positions, np.uint64)
    return permute_each(positions.ravel(), np.uint64(num_samples), key).reshape(positions.shape)


def permute_each(positions: np.ndarray, sizes: np.ndarray | np.uint64, keys: np.ndarray | np.uint64) -> np.ndarray:
    """`permute` for uint64 positions (n,), each with its own size and key; these are both scalars or both (n,)."""
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
    """The bit length of each integer below 2^53."""
    return np.asarray(np.frexp(np.asarray(values, np.float64))[1], np.uint64)


class Shuffle(ABC):
    """An order of the endless stream of samples, a frozen dataclass. Checkpoints contain its `str`."""

    seed: int
    num_samples: int
    num_lanes: int

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples, int64 (n,), at positions (n,) of the endless stream."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.num_samples)
        samples = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self.samples_of_epoch(int(epoch), within[chosen])
        return samples

    @abstractmethod
    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """The samples, int64 (n,), at positions (n,) in 0..num_samples-1 of one epoch."""


@dataclass(frozen=True)
class UniformShuffle(Shuffle):
    """A pseudo-random permutation of all samples, another one in each epoch; for shards with fast random access."""

    seed: int
    num_samples: int
    num_lanes: int = 1

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        return permute(within, self.num_samples, derive_key(self.seed, epoch, _SAMPLES))

    def __str__(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class BlockShuffle(Shuffle):
    """A block shuffle: blocks of neighbouring samples can be read together, yet are spread far over the stream.

    The blocks are permuted, and the sequence of blocks is divided into equal parts, one per lane. The samples of a lane
    are permuted within windows. Position p of the stream is of lane p mod num_lanes, so ranks that keep to their lanes
    read different blocks. `window_samples` are in memory, over all lanes and ranks; the lanes move to their next
    window one after the other.

    Attributes:
        block_samples: samples in a block; the last block of the dataset may be shorter.
        num_lanes: consecutive positions are of different lanes; best is at least the batch size.
        window_samples: samples that are shuffled with each other, over all lanes.
        redeal: whether each epoch assigns the blocks to lanes again. If not, each epoch permutes the blocks of a lane
            and then its samples, so a rank that keeps to its lanes reads the same samples in every epoch. If an epoch
            is no multiple of num_lanes, the parts move by less than num_lanes samples from epoch to epoch.
    """

    seed: int
    num_samples: int
    block_samples: int
    num_lanes: int
    window_samples: int
    redeal: bool = True

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        num_blocks, short = divmod(self.num_samples, self.block_samples)
        if self.redeal:  # the short block is at a random place between the others
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
        """Maps positions to slots in the sequence of permuted blocks, of which each lane has a part."""
        steps, lanes = np.divmod(within, self.num_lanes)
        shortest, num_longer = divmod(self.num_samples, self.num_lanes)
        lane_starts = lanes * shortest + np.minimum(lanes, num_longer)
        lengths = shortest + (lanes < num_longer)
        # Windows consist of whole blocks. The first one has another size in each lane, so that lanes change in turn.
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
        """Maps positions to slots in the fixed sequence of blocks, of which each lane keeps the same part."""
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
        # Blocks that are divided between two lanes: the lane's samples of them form an extra window between two others.
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
        """Maps steps of a lane to (whether they are in the extra window, index in that or in the others)."""
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
    """The symmetry of the square at positions (n,), uint8 0..7; bits: flip columns, flip rows, transpose."""
    return (_draw(seed, _SYMMETRIES, positions) >> np.uint64(61)).astype(np.uint8)


def crops_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """Relative positions (row, column) of the crops from larger pictures at positions (n,): (n, 2) in [0, 1)."""
    drawn = _draw(seed, _CROPS, positions)
    halves = np.stack([drawn >> np.uint64(32), drawn & np.uint64(0xFFFFFFFF)], -1)
    return halves / float(1 << 32)


def generator_at(seed: int, position: int) -> np.random.Generator:
    """A generator for the sample at a position: Philox, keyed by seed and position.

    Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    key = np.array([derive_key(seed, _DAMAGES), position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _draw(seed: int, purpose: int, positions: np.ndarray) -> np.ndarray:
    return mix(np.asarray(positions, np.int64).astype(np.uint64) ^ derive_key(seed, purpose))


@dataclass(frozen=True)
class BatchPlan:
    """The global batches of a training, and the rank that reads its part of them.

    The batches have `batch_size` samples, from position `start` of the stream until `stop` is reached or passed; of
    these it has every `stride`-th, which several processes of a rank take in turn.
    """

    seed: int
    start: int
    stop: int
    batch_size: int
    rank: int = 0
    num_ranks: int = 1
    stride: int = 1

    @property
    def batch_starts(self) -> range:
        """The first position of each global batch."""
        return range(self.start, self.stop, self.batch_size * self.stride)

    def positions(self, batch_start: int, num_lanes: int = 1) -> np.ndarray:
        """The rank's positions, int64, of the global batch that starts at `batch_start`.

        The parts of the ranks differ by at most one sample. A rank takes neighbouring lanes (position mod num_lanes);
        they are the same in every batch if batch_size divides num_lanes or is a multiple of it.
        """
        lanes = np.arange(num_lanes)
        firsts = (lanes - batch_start) % num_lanes
        ends = np.cumsum(np.maximum(0, -((firsts - self.batch_size) // num_lanes)))
        first, stop = (self.batch_size * part // self.num_ranks for part in (self.rank, self.rank + 1))
        wanted = np.arange(first, stop)
        of = np.searchsorted(ends, wanted, side="right")
        return batch_start + firsts[of] + num_lanes * (wanted - np.concatenate([[0], ends])[of])


class BatchNumbers(NamedTuple):
    """The samples (N,) of a rank's part of a batch, their augmentation, and their positions (N,) in the stream.

    `crops` is (N, 2) or None; `position` is that after the global batch.
    """

    samples: np.ndarray
    symmetries: np.ndarray
    crops: np.ndarray | None
    position: int
    positions: np.ndarray


def batch_numbers(shuffle: Shuffle, plan: BatchPlan, with_crops: bool = False) -> Iterator[BatchNumbers]:
    """Yields the rank's part of each global batch.

    All ranks yield equally many parts, whose sizes differ by at most one sample. A batch may contain the end of an
    epoch and the start of the next one, so every sample occurs exactly once per epoch.
    """
    steps_at_once = max(1, POSITIONS_AT_ONCE * plan.num_ranks // plan.batch_size)
    for first in range(0, len(plan.batch_starts), steps_at_once):
        starts = plan.batch_starts[first : first + steps_at_once]
        positions = np.concatenate([plan.positions(start, shuffle.num_lanes) for start in starts])
        chosen = [shuffle.samples_at(positions), symmetries_at(plan.seed, positions), positions]
        if with_crops:
            chosen.append(crops_at(plan.seed, positions))
        by_step = zip(*(np.split(array, len(starts)) for array in chosen), strict=True)
        for start, (samples, symmetries, positions, *crops) in zip(starts, by_step, strict=True):
            yield BatchNumbers(samples, symmetries, crops[0] if crops else None, start + plan.batch_size, positions)


def sequential_batches(num_samples: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[BatchNumbers]:
    """Yields the rank's share of all samples, once, in sequence, not augmented; the last batch may be smaller."""
    first, last = (num_samples * part // num_ranks for part in (rank, rank + 1))
    for start in range(first, last, batch_size):
        samples = np.arange(start, min(last, start + batch_size))
        yield BatchNumbers(samples, np.zeros(len(samples), np.uint8), None, int(samples[-1]) + 1, samples)
