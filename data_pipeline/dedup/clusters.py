"""Which documents repeat each other, through pairs of near-duplicates, and which one of them is kept?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dedup.near import PAIR, SAME
from data_pipeline.dedup.runs import RunWriter, read_range
from data_pipeline.dedup.signatures import Shards, order_to_keep, whole

KEPT, EXACT, NEAR = 0, 1, 2


def connect(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct ends of edges (a, b) [E], sorted, and for each the place of the smallest one it is connected with."""
    nodes, ends = np.unique(np.concatenate([a, b]), return_inverse=True)
    x, y = ends[: len(a)], ends[len(a) :]
    labels = np.arange(len(nodes))
    while len(a):
        before = labels.copy()
        least = np.minimum(labels[x], labels[y])
        for end in (x, y):
            np.minimum.at(labels, before[end], least)
        labels = labels[labels]
        if (labels == before).all():
            break
    return nodes, labels


def read_pairs(paths: Sequence[Path], at_least: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two ends of all verified pairs of at least that Jaccard similarity, [E] uint64 each."""
    found = [rows[rows["jaccard"] >= at_least] for rows in (np.fromfile(path, PAIR) for path in paths)]
    rows = np.concatenate([np.zeros(0, PAIR), *found])
    return rows["a"], rows["b"]


def drop_clusters(shards: Shards, pairs: Sequence[Path], out: Path, at_least: float = SAME) -> dict[str, int]:
    """Writes runs (document number -> number of the one that its cluster keeps, itself for that one); returns counts.

    Memory: about 100 bytes a document that has a near-duplicate; none for the others.
    """
    numbers, labels = connect(*read_pairs(pairs, at_least))
    rows = shards.rows(numbers)
    order = order_to_keep(rows, numbers, labels)
    numbers, labels = numbers[order], labels[order]
    first = np.append(True, labels[1:] != labels[:-1])[: len(labels)]
    kept = numbers[first][np.cumsum(first) - 1]
    with RunWriter(out) as file:
        file.add(numbers, kept)
    return {"clusters": int(first.sum()), "documents": len(numbers), "dropped": int((~first).sum())}


def read_fates(shards: Shards, shard: int, exact: Sequence[Path], near: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each document of a shard (KEPT, EXACT or NEAR [n] uint8, the number of the one it repeats or its own [n] int64).

    The document that an exact duplicate repeats may itself be dropped as a near-duplicate; its own row says so.
    """
    begin, end = shards.span(shard)
    fate = np.zeros(end - begin, np.uint8)
    of = np.arange(begin, end)
    for paths, how in ((exact, EXACT), ([near], NEAR)):
        for path in paths:
            numbers, kept = (part.astype(np.int64) for part in read_range(path, begin, end))
            gone = numbers != kept
            fate[numbers[gone] - begin] = how
            of[numbers - begin] = kept
    return fate, of


def read_clusters(shards: Shards, near: Path) -> Iterator[tuple[bytes, list[int]]]:
    """Yields (smallest key in it, document numbers with the kept one first) of every cluster, by key."""
    numbers, kept = read_range(near)
    order = np.lexsort((numbers, numbers != kept, kept))
    numbers, kept = numbers[order], kept[order]
    starts = np.flatnonzero(np.append(True, kept[1:] != kept[:-1])[: len(kept)])
    keys = shards.rows(numbers)["key"]
    found = [
        (whole(min(keys[begin:end].tolist())), numbers[begin:end].tolist())
        for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)])
    ]
    yield from sorted(found)
