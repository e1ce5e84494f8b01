"""The order of samples as a pure function of (seed, epoch, position): no stored permutation, no generator state.

A keyed permutation of 0..N-1 is computed for just the positions asked for: a Feistel network over the next even number
of bits, walked until it lands below N (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

Three orders, all of the same form: `UniformOrder`, for shards with fast random access, `RunOrder`, for shards that are
read by runs of neighbouring samples, and `KeptOrder`, for runs that stay with the ranks that have read them before.
Position e N + p of the endless stream is position p of epoch e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ORDER_VERSION = 1  # part of the stream's state; another number means that positions meant other samples
NUM_ROUNDS = 6
_MASK_64 = (1 << 64) - 1
_SAMPLES, _SYMMETRIES, _CROPS, _RUNS, _SHORT_RUN, _WINDOWS, _DEALT, _REST, _DAMAGES = range(9)  # what a key is for


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


@dataclass(frozen=True)
class UniformOrder:
    """Every order of an epoch's samples is equally likely."""

    seed: int
    num_samples: int
    num_lanes: int = 1

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples (int64) at these positions (n,) of the endless stream."""
        return _by_epoch(self, positions)

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """The same for positions 0..num_samples-1 of one epoch."""
        return permute(within, self.num_samples, derive_key(self.seed, epoch, _SAMPLES))

    def __str__(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class RunOrder:
    """Runs of neighbouring samples are read at once, yet neighbours lie far apart in the stream.

    The runs of an epoch are permuted, dealt to lanes as equal stretches, and each lane's samples permuted inside
    windows. Position p belongs to lane p mod num_lanes, so ranks that keep to their lanes read their own runs only. In
    flight are `window_samples` samples, in all lanes and ranks together; lanes change windows one after the other.

    Attributes:
        run_samples: neighbours in a run; the last run of the data set may be shorter.
        num_lanes: neighbours in the stream are of different lanes; at least the batch size is best.
        window_samples: samples mixed with each other, over all lanes.
    """

    seed: int
    num_samples: int
    run_samples: int
    num_lanes: int
    window_samples: int

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples (int64) at these positions (n,) of the endless stream."""
        return _by_epoch(self, positions)

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """The same for positions 0..num_samples-1 of one epoch."""
        num_runs, short = divmod(self.num_samples, self.run_samples)
        # The short run lies between two others, drawn anew.
        short_start = int(derive_key(self.seed, epoch, _SHORT_RUN)) % (num_runs + 1) * self.run_samples
        slots = self._slots(epoch, within, short_start)
        in_short = (slots >= short_start) & (slots < short_start + short)
        runs, offsets = np.divmod(np.where(slots < short_start, slots, slots - short), self.run_samples)
        runs[in_short] = 0
        if num_runs:
            runs = permute(runs, num_runs, derive_key(self.seed, epoch, _RUNS))
        return np.where(in_short, num_runs * self.run_samples + slots - short_start, runs * self.run_samples + offsets)

    def _slots(self, epoch: int, within: np.ndarray, short_start: int) -> np.ndarray:
        """Positions -> places in the sequence of permuted runs, of which each lane has a stretch."""
        places, lanes = np.divmod(within, self.num_lanes)
        shortest, num_longer = divmod(self.num_samples, self.num_lanes)
        lane_starts = lanes * shortest + np.minimum(lanes, num_longer)
        lengths = shortest + (lanes < num_longer)
        # Windows are of whole runs. The first ends at another place in each lane, so that lanes change them in turn.
        window = max(1, self.window_samples // self.num_lanes)
        window = window // self.run_samples * self.run_samples or window
        first_run = np.where(lane_starts > short_start, lane_starts - self.num_samples % self.run_samples, lane_starts)
        shifts = lanes * window // self.num_lanes - window
        shifts -= (shifts + first_run) % self.run_samples
        numbers = (places - shifts) // window
        begins = np.maximum(0, numbers * window + shifts)
        ends = np.minimum(lengths, (numbers + 1) * window + shifts)
        keys = mix(mix(lanes.astype(np.uint64) ^ derive_key(self.seed, epoch, _WINDOWS)) ^ numbers.astype(np.uint64))
        inside = permute_each((places - begins).astype(np.uint64), (ends - begins).astype(np.uint64), keys)
        return lane_starts + begins + inside

    def __str__(self) -> str:
        return f"runs of {self.run_samples}, {self.num_lanes} lanes, windows of {self.window_samples}"


@dataclass(frozen=True)
class KeptOrder:
    """`RunOrder` with lanes that keep their samples: a rank that keeps to its lanes reads the same ones every epoch.

    The runs are permuted and dealt to lanes once for all epochs; in each epoch a lane permutes its own runs, and its
    samples inside windows. Position p of the endless stream belongs to lane p mod num_lanes. Where an epoch is no
    multiple of the lanes, each time others have one sample more, and stretches move by less than num_lanes samples.

    Attributes: as those of `RunOrder`.
    """

    seed: int
    num_samples: int
    run_samples: int
    num_lanes: int
    window_samples: int

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples (int64) at these positions (n,) of the endless stream."""
        return _by_epoch(self, positions)

    def samples_of_epoch(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """The same for positions 0..num_samples-1 of one epoch."""
        slots, num_runs = self._slots(epoch, within), self.num_samples // self.run_samples
        runs, offsets = np.divmod(slots, self.run_samples)
        in_short = runs >= num_runs  # the short run is the end of the last lane
        if num_runs:
            runs = permute(np.where(in_short, 0, runs), num_runs, derive_key(self.seed, _DEALT))
        return np.where(in_short, slots, runs * self.run_samples + offsets)

    def _slots(self, epoch: int, within: np.ndarray) -> np.ndarray:
        """Positions -> places in the sequence of dealt runs, of which each lane has a stretch in all epochs."""
        first_lane = epoch * self.num_samples % self.num_lanes
        places, numbers = np.divmod(within, self.num_lanes)
        lanes = (numbers + first_lane) % self.num_lanes
        shortest, num_longer = divmod(self.num_samples, self.num_lanes)
        longer_before = np.clip(lanes - first_lane, 0, num_longer)
        longer_before += np.minimum(lanes, max(0, first_lane + num_longer - self.num_lanes))
        starts = lanes * shortest + longer_before
        stops = starts + shortest + (numbers < num_longer)
        first_runs = -(-starts // self.run_samples)
        num_runs = np.maximum(0, stops // self.run_samples - first_runs)
        # What a stretch has of runs that it shares with its neighbours is a window of its own, between two others.
        rest, head = stops - starts - num_runs * self.run_samples, first_runs * self.run_samples - starts
        keys = [mix(lanes.astype(np.uint64) ^ derive_key(self.seed, epoch, use)) for use in (_RUNS, _REST, _WINDOWS)]
        in_rest, mixed = self._mixed(places, lanes, num_runs * self.run_samples, rest, keys[1], keys[2])
        runs, offsets = np.divmod(np.where(in_rest, 0, mixed), self.run_samples)
        runs = first_runs + permute_each(runs.astype(np.uint64), np.maximum(1, num_runs).astype(np.uint64), keys[0])
        of_rest = starts + mixed + np.where(mixed < head, 0, num_runs * self.run_samples)
        return np.where(in_rest, of_rest, runs * self.run_samples + offsets)

    def _mixed(
        self, places: np.ndarray, lanes: np.ndarray, in_runs: np.ndarray, rest: np.ndarray, rest_keys: np.ndarray,
        window_keys: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places in a lane -> whether they are the rest's, and which sample of the rest, or of the `in_runs` others."""
        window = max(1, self.window_samples // self.num_lanes // self.run_samples) * self.run_samples
        shifts = lanes * window // self.num_lanes - window  # as in RunOrder
        shifts -= shifts % self.run_samples
        num_windows = -((shifts - in_runs) // window)
        rest_numbers = (rest_keys % (num_windows + 1).astype(np.uint64)).astype(np.int64)
        rest_starts = np.clip(rest_numbers * window + shifts, 0, in_runs)
        in_rest = (places >= rest_starts) & (places < rest_starts + rest)
        places = np.where(places < rest_starts, places, places - np.where(in_rest, rest_starts, rest))
        numbers = np.where(in_rest, -1, (places - shifts) // window)
        begins = np.where(in_rest, 0, np.maximum(0, numbers * window + shifts))
        sizes = np.where(in_rest, rest, np.minimum(in_runs, (numbers + 1) * window + shifts) - begins)
        keys = mix(window_keys ^ numbers.astype(np.uint64))
        return in_rest, begins + permute_each((places - begins).astype(np.uint64), sizes.astype(np.uint64), keys)

    def __str__(self) -> str:
        return f"runs of {self.run_samples}, {self.num_lanes} kept lanes, windows of {self.window_samples}"


Order = UniformOrder | RunOrder | KeptOrder


def _by_epoch(order: Order, positions: np.ndarray) -> np.ndarray:
    """`samples_of_epoch` for each epoch that these positions touch."""
    epochs, within = np.divmod(np.asarray(positions, np.int64), order.num_samples)
    samples = np.empty_like(within)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        samples[chosen] = order.samples_of_epoch(int(epoch), within[chosen])
    return samples


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


def part_of_batch(start: int, batch_size: int, rank: int, num_ranks: int, num_lanes: int = 1) -> np.ndarray:
    """Rank r's positions (int64) of the global batch from position `start` on: the r-th of equal parts, to within one.

    The batch is dealt by lanes (position mod num_lanes): a rank takes neighbouring lanes, the same ones in every
    batch whose size divides num_lanes or is a multiple of it.
    """
    lanes = np.arange(num_lanes)
    firsts = (lanes - start) % num_lanes
    ends = np.cumsum(np.maximum(0, -((firsts - batch_size) // num_lanes)))
    wanted = np.arange(batch_size * rank // num_ranks, batch_size * (rank + 1) // num_ranks)
    of = np.searchsorted(ends, wanted, side="right")
    return start + firsts[of] + num_lanes * (wanted - np.concatenate([[0], ends])[of])
