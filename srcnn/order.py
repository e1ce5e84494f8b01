"""The order of samples as a pure function of (seed, epoch, position): no stored permutation, no generator state.

A keyed permutation of 0..N-1 is computed for just the positions asked for: a Feistel network over the next even number
of bits, walked until it lands below N (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
"""

from __future__ import annotations

import numpy as np

ORDER_VERSION = 1  # part of the stream's state; another number means that positions meant other samples
NUM_ROUNDS = 6
NUM_SYMMETRIES = 8
_MASK_64 = (1 << 64) - 1


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
    half_bits = np.uint64(max(1, -(-(num_samples - 1).bit_length() // 2)))
    half_mask = np.uint64((1 << int(half_bits)) - 1)
    round_keys = [derive_key(int(key), number) for number in range(NUM_ROUNDS)]

    def feistel(values: np.ndarray) -> np.ndarray:
        left, right = values >> half_bits, values & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & half_mask)
        return (left << half_bits) | right

    samples = feistel(np.asarray(positions, np.uint64))
    while (outside := samples >= np.uint64(num_samples)).any():
        samples[outside] = feistel(samples[outside])
    return samples.astype(np.int64)


def samples_at(seed: int, positions: np.ndarray, num_samples: int) -> np.ndarray:
    """The samples (int64) at these positions of the endless stream: epoch e holds positions e N to (e + 1) N - 1."""
    epochs, within = np.divmod(np.asarray(positions, np.int64), num_samples)
    samples = np.empty_like(within)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        samples[chosen] = permute(within[chosen], num_samples, derive_key(seed, int(epoch), 0))
    return samples


def symmetries_at(seed: int, positions: np.ndarray) -> np.ndarray:
    """The symmetry of the square (0..7, uint8) at these positions; bits: flip columns, flip rows, transpose."""
    keys = np.asarray(positions, np.int64).astype(np.uint64) ^ derive_key(seed, 1)
    return (mix(keys) >> np.uint64(61)).astype(np.uint8)
