"""Which documents repeat each other, through pairs of near-duplicates, and which one of them is kept?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dedup.near import PAIR, SAME, Sets
from data_pipeline.dedup.runs import RunWriter, read_range
from data_pipeline.dedup.shingles import reaches
from data_pipeline.dedup.signatures import Shards, order_to_keep, whole
from data_pipeline.sealed import read_bytes

KEPT, EXACT, NEAR = 0, 1, 2
AT_A_TIME = 1 << 15
LEADERS = 64  # in a cluster that keeps more documents, one is compared with the latest of them


def connect(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct ends of edges (a, b) [E], sorted, and for each the place of the smallest one it is connected with."""
    nodes = np.unique(np.concatenate([a, b]))
    small = np.int32 if len(nodes) < 2**31 else np.int64
    ends = [np.searchsorted(nodes, side).astype(small) for side in (a, b)]
    labels = np.arange(len(nodes), dtype=small)
    while len(a):
        before = labels.copy()
        least = np.minimum(labels[ends[0]], labels[ends[1]])
        for end in ends:
            np.minimum.at(labels, before[end], least)
        labels = labels[labels]
        if (labels == before).all():
            break
    return nodes, labels


def read_pairs(paths: Sequence[Path], at_least: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two ends of all verified pairs of at least that Jaccard similarity, [E] uint64 each."""
    ends: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for path in paths:
        rows = np.frombuffer(read_bytes(path), PAIR)
        rows = rows[rows["jaccard"] >= at_least]
        for end, name in zip(ends, "ab"):
            end.append(rows[name].copy())
    a, b = (np.concatenate([np.zeros(0, np.uint64), *end]) for end in ends)
    return a, b


def drop_clusters(shards: Shards, pairs: Sequence[Path], out: Path, at_least: float = SAME) -> dict[str, int]:
    """Writes runs (document number -> number of the one that is kept in its place, itself where it is kept); returns counts.

    In each cluster of connected documents, from the best to keep on, a document is dropped where a kept one is at least that alike, so
    nothing is lost through chains in which first and last differ. Memory: about 50 bytes a document that has a near-duplicate.
    """
    numbers, labels = connect(*read_pairs(pairs, at_least))
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(labels[order]) != 0)[: len(order)])
    counts = {"clusters": len(starts), "documents": len(numbers), "dropped": 0}
    ends = np.append(starts[1:], len(order)).tolist()
    del labels
    with RunWriter(out) as file, Sets(shards) as sets:
        begin = 0
        for end in ends:  # whole clusters, many at a time
            if end - begin >= AT_A_TIME or end == len(order):
                chosen = numbers[order[begin:end]]
                which = np.searchsorted(starts, np.arange(begin, end), "right")
                better = order_to_keep(shards.rows(chosen), chosen, which)
                chosen = chosen[better]
                kept = _keep(sets, chosen, which[better], at_least)
                file.add(chosen, kept)
                counts["dropped"] += int(np.count_nonzero(chosen != kept))
                begin = end
    return counts


def _keep(sets: Sets, numbers: np.ndarray, clusters: np.ndarray, at_least: float) -> np.ndarray:
    """Returns what is kept in place of each document; they are sorted by cluster, and in it from the best to keep on."""
    kept = numbers.copy()
    leaders: list[tuple[int, np.ndarray]] = []
    for place, number in enumerate(numbers.tolist()):
        if place and clusters[place] != clusters[place - 1]:
            leaders = []
        content = sets[number]
        like = (leader for leader, theirs in leaders if reaches(content, theirs, at_least))
        kept[place] = next(like, number)
        if kept[place] == number:
            leaders = [*leaders, (number, content)][-LEADERS:]
    return kept


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
    """Yields (smallest key in it, document numbers with the kept one first) of all that repeat one document, by key."""
    numbers, kept = read_range(near)
    order = np.lexsort((numbers, numbers != kept, kept))
    numbers, kept = numbers[order], kept[order]
    starts = np.flatnonzero(np.append(True, kept[1:] != kept[:-1])[: len(kept)])
    keys = shards.rows(numbers)["key"]
    found = [
        (whole(min(keys[begin:end].tolist())), numbers[begin:end].tolist())
        for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)])
        if end - begin > 1
    ]
    yield from sorted(found)
