"""Which random numbers belong to a key? The same everywhere, since they are hashes and no generator has a state."""

from __future__ import annotations

import numpy as np

from data_pipeline.mix import hash64

# Kinds of augmentation; 1 and 2 are those of `mask`. Another number here draws anew.
TASK, CUTS, KEEPS, WINDOW, CHANGES, PARAPHRASE, SHUFFLE, SYNONYM, SWAP, DELETE, CASE, TYPO, WIDTH, RUN = range(3, 17)
BITS = 2**64 - 1


def fold(key: int, *numbers: int) -> int:
    """Makes one key of a key and some numbers."""
    for number in numbers:
        key = _hash(int(key) ^ _hash(int(number)))
    return key


def _hash(x: int) -> int:
    """`mix.hash64` of one number, which in numpy takes ten times as long."""
    x = (x + 0x9E3779B97F4A7C15) & BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def draw(key: int, kind: int, n: int) -> np.ndarray:
    """Returns `n` floats in [0, 1) for a key and a kind.

    >>> draw(7, SWAP, 3).round(3).tolist()
    [0.39, 0.394, 0.175]
    """
    base = np.uint64(fold(key, kind))
    return (hash64(base + np.arange(n, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def pick(u: float, n: int) -> int:
    """Turns a draw into one of 0 .. n - 1."""
    return min(int(u * n), n - 1)
