"""Are two stretches of a sequence equal, wherever they stand? Hashes of any stretch from one pass of sums."""

from __future__ import annotations

import functools

import numpy as np

MIX = 0x9E3779B97F4A7C15  # odd, with bits that look random
FEW = 1 << 18
LONGEST = (1 << 20) + (1 << 18)  # numbers of a sequence


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `count` powers of an odd number and of its inverse modulo 2**64."""

    def powers(number: int) -> np.ndarray:
        factors = np.full(count, number, np.uint64)
        factors[0] = 1
        return factors.cumprod(dtype=np.uint64)

    return powers(MIX), powers(pow(MIX, -1, 2**64))


class Sums:
    """Sums of numbers times powers: equal stretches have equal hashes wherever they stand."""

    def __init__(self, numbers: np.ndarray):
        power, self.inverse = _powers(FEW if len(numbers) < FEW else LONGEST)  # of many it takes 20 ms
        self.sums = np.zeros(len(numbers) + 1, np.uint64)
        np.cumsum(numbers * power[: len(numbers)], out=self.sums[1:])

    def hash(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return (self.sums[stop] - self.sums[start]) * self.inverse[start]
