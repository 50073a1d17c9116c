"""Which row of which source stands at a given place of the endless training stream?

A closed formula of (seed, place): nothing is stored or shuffled in memory, so reading can start anywhere at once.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.schema import ConfigError

BLOCK = 1000  # rows over which the shares of a mixture are exact
ROUNDS = 6

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1, _MUL2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hash64(values: np.ndarray) -> np.ndarray:
    """Mixes uint64 values (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = values + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MUL1
    x = (x ^ (x >> np.uint64(27))) * _MUL2
    return x ^ (x >> np.uint64(31))


def make_key(*numbers: int | np.ndarray) -> np.ndarray:
    """Folds non-negative integers (or arrays of them) into one uint64 key each."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = hash64(key ^ hash64(np.atleast_1d(np.asarray(number, np.uint64))))
    return key


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Maps 0..n-1 onto itself, in a shuffled order that `key` picks; `index` and `key` are arrays of one shape.

    A balanced Feistel network over the next even power of two; places at or beyond n walk on until they are below it.
    """
    half = np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    out = index.astype(np.uint64)
    key = np.broadcast_to(key, out.shape)
    walking = np.arange(len(out))
    while len(walking):
        x, k = out[walking], key[walking]
        left, right = x >> half, x & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (hash64(right ^ hash64(k + np.uint64(number))) & mask)
        x = (left << half) | right
        out[walking] = x
        walking = walking[x >= np.uint64(n)]
    return out.astype(np.int64)


def epoch_key(seed: int, epoch: np.ndarray) -> np.ndarray:
    """Returns the uint64 that augmentation of an epoch is keyed by."""
    return make_key(seed, 4, epoch)


class Mixture:
    """The order of rows: place g of the stream -> (source, epoch of that source, row)."""

    def __init__(self, names: list[str], rows: list[int], weights: list[float], seed: int):
        self.rows, self.seed = np.array(rows, np.int64), seed
        self.weighted = any(weights)
        self.ends = np.cumsum(self.rows)
        if self.weighted:
            self.counts = largest_remainder(np.array(weights), BLOCK)
            for name, count in zip(names, self.counts):
                if count == 0:
                    raise ConfigError(
                        f"config.data.sources.{name}.weight: less than one row in {BLOCK}; raise it or leave it out"
                    )
            self.slots = np.cumsum(self.counts)

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (source, epoch, row) of each place of the stream."""
        if not self.weighted:
            total = int(self.ends[-1])
            epoch, index = places // total, places % total
            row = permute(index, total, make_key(self.seed, 1, epoch))
            source = np.searchsorted(self.ends, row, side="right")
            return source, epoch, row - (self.ends - self.rows)[source]
        block = places // BLOCK
        slot = self._slot(places)
        source = self.source_at(places)
        counter = block * self.counts[source] + slot - (self.slots - self.counts)[source]
        epoch, index = counter // self.rows[source], counter % self.rows[source]
        row = np.empty_like(index)
        for number in np.unique(source):
            here = source == number
            key = make_key(self.seed, 3, int(number), epoch[here])
            row[here] = permute(index[here], int(self.rows[number]), key)
        return source, epoch, row

    def source_at(self, places: np.ndarray) -> np.ndarray:
        """Returns the source of each place of a weighted stream."""
        return np.searchsorted(self.slots, self._slot(places), side="right")

    def _slot(self, places: np.ndarray) -> np.ndarray:
        return permute(places % BLOCK, BLOCK, make_key(self.seed, 2, places // BLOCK))


def largest_remainder(weights: np.ndarray, total: int) -> np.ndarray:
    """Splits `total` in proportion to `weights`, in whole numbers.

    >>> largest_remainder(np.array([1.0, 1.0, 1.0]), 10).tolist()
    [4, 3, 3]
    """
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    for number in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[number] += 1
    return counts
