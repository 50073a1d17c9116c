"""Which documents hold the same letters, digits and Han as another one, and which of them is kept?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.dedup.runs import RunWriter, part_bounds
from data_pipeline.dedup.signatures import Shards, order_to_keep


def find_exact(shards: Shards, out: Path, part: int = 0, parts: int = 1) -> int:
    """Writes runs (document number -> number of the document that is kept in its place), and returns their count.

    Compares all 128 bits of the keys. Memory: the keys of one part of `parts`.
    """
    hashes, numbers = shards.gather("keys", *part_bounds(part, parts))
    numbers = numbers[repeats(hashes)]
    rows = shards.rows(numbers)
    order = order_to_keep(rows, numbers, rows["key"])
    keys, numbers = rows["key"][order], numbers[order]
    first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    kept = numbers[first][np.cumsum(first) - 1]
    with RunWriter(out) as file:
        file.add(numbers[~first], kept[~first])
    return int(np.count_nonzero(~first))


def repeats(hashes: np.ndarray) -> np.ndarray:
    """Says of each hash [N] whether it is there more than once, [N] bool."""
    order = np.argsort(hashes)
    same = hashes[order[1:]] == hashes[order[:-1]]
    found = np.zeros(len(hashes), bool)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found
