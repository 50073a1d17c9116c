"""Where do the chunks of a long text begin in this epoch?

A text of k full chunks and a rest takes the same room in every epoch, so that rows are planned once: the full chunks move by a
number of tokens drawn for (seed, epoch, document), the one that then sticks out at both ends is read as two pieces that do not
see each other, and the rest comes first or last.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.augment.draw import WINDOW
from data_pipeline.mix import hash64

FULL_CHUNKS = 2  # texts with fewer stay as they are: cutting their only one in two would shorten what the model sees


def shift_windows(
    place: np.ndarray, length: np.ndarray, inputs: np.ndarray, keys: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (places, lengths) [chunks, 2]: what chunks of plain texts hold now; a second piece is mostly of length 0.

    `place` is where each chunk began, `inputs` the length of its text, `keys` one of its text and epoch.

    >>> place, length, full = np.array([0, 4, 8]), np.array([4, 4, 1]), np.full(3, 9)
    >>> at, n = shift_windows(place, length, full, np.full(3, 5, np.uint64), 4)
    >>> at.tolist(), n.tolist()
    ([[0, 5], [1, 0], [8, 0]], [[1, 3], [4, 0], [1, 0]])
    """
    full, part = inputs // window, place // window
    rest = inputs - full * window
    draws = hash64(keys ^ hash64(np.array([WINDOW], np.uint64)))
    begin = np.where(draws & np.uint64(1), rest, 0)  # of the full chunks: the rest comes first, or last
    moved = ((draws >> np.uint64(1)) % np.uint64(window)).astype(np.int64)
    first = np.where(part == full, np.where(begin > 0, 0, full * window), begin + moved + (part - 1) * window)
    first = np.where(part == 0, begin, first)
    places = np.stack([first, np.where(part == 0, begin + moved + (full - 1) * window, 0)], axis=1)
    lengths = np.stack([length, np.zeros_like(length)], axis=1)
    lengths[part == 0] = np.stack([moved, window - moved], axis=1)[part == 0]
    still = full < FULL_CHUNKS
    places[still] = np.stack([place, np.zeros_like(place)], axis=1)[still]
    lengths[still] = np.stack([length, np.zeros_like(length)], axis=1)[still]
    return places, lengths
