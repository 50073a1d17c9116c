"""Under which name is a document dealt to a split? One that all its near-duplicates share, and that later rows do not change.

A node is what is dealt: a text (its key), or a group of texts (`signatures.node_of`). Nodes that are connected by near-duplicates form
a cluster, and its name is

1. the name that its nodes had in an earlier corpus, where there is one (`known`, a file that this module wrote);
2. where they had several, one of those: the first by `rank` (train before validation before test), then the smallest;
3. else the smallest node in it.

So with `known`, adding, removing or reordering rows moves a document only where a new row connects two clusters that were apart and
had different names; such a join never takes a text that was trained on into validation or test. Without `known`,
a document also moves where a new near-duplicate becomes the smallest node of its cluster, or the smallest one is gone.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dedup.clusters import connect, read_pairs
from data_pipeline.dedup.near import ALIKE
from data_pipeline.dedup.runs import END, part_bounds, read_range, written_aside
from data_pipeline.dedup.signatures import Shards, whole
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_array, open_to_read, size_of

_CHUNK = 1 << 16


def name_clusters(
    shards: Shards,
    exact: Sequence[Path],
    pairs: Sequence[Path],
    out: Path,
    known: Path | None = None,
    rank: Callable[[bytes], int] = lambda name: 0,
    at_least: float = ALIKE,
    parts: int = 1,
) -> dict[str, int]:
    """Writes the name of every node of the corpus and of `known`, in the form that `Names` reads; returns counts.

    Memory: about 100 bytes a node that is connected with another one, and the nodes of one part of `parts`.
    """
    earlier = Names(known) if known else None
    nodes, labels = connect(*_edges(shards, exact, pairs, at_least))
    names = nodes[labels]
    counts = {"clusters": len(np.unique(labels)), "nodes": len(nodes), "joins": 0, "known": 0}
    if earlier is not None and len(nodes):
        had = earlier.find(nodes)
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(labels[order]) != 0))
        for members in np.split(order, starts[1:]):
            old = {whole(name) for name in had[members].tolist() if name}
            if old:
                names[members] = min(old, key=lambda name: (rank(name), name))
                counts["joins"] += len(old) > 1
    column = out.with_name(f"{out.name}.column")
    with written_aside(out) as file:
        with written_aside(column) as second:
            for part in range(parts):
                found, its_names, known_before = _range(shards, earlier, nodes, names, *part_bounds(part, parts))
                counts["known"] += known_before
                file.write(found.tobytes())
                second.write(its_names.tobytes())
        with open_to_read(column) as second:
            shutil.copyfileobj(second, file)
    column.unlink()
    return counts


def _edges(
    shards: Shards, exact: Sequence[Path], pairs: Sequence[Path], at_least: float
) -> tuple[np.ndarray, np.ndarray]:
    ends = [tuple(_nodes(shards, side) for side in read_pairs(pairs, at_least))]
    for path in exact:  # one text in two groups
        for low in range(0, shards.total, _CHUNK):
            one, other = (_nodes(shards, side) for side in read_range(path, low, low + _CHUNK))
            differ = one != other
            ends.append((one[differ], other[differ]))
    return np.concatenate([x for x, _ in ends]), np.concatenate([y for _, y in ends])


def _nodes(shards: Shards, numbers: np.ndarray) -> np.ndarray:
    found = np.zeros(len(numbers), "S16")
    for begin in range(0, len(numbers), _CHUNK):
        found[begin : begin + _CHUNK] = shards.rows(numbers[begin : begin + _CHUNK])["node"]
    return found


def _range(
    shards: Shards, earlier: Names | None, nodes: np.ndarray, names: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the nodes of one range of hashes, sorted, their names, and how many nodes of the corpus were known."""
    here = np.unique(shards.rows(shards.gather("nodes", low, high)[1])["node"])
    before, before_names = earlier.range(low, high) if earlier is not None else (here[:0], here[:0])
    found = np.union1d(here, before)
    its_names = found.copy()
    its_names[np.searchsorted(found, before)] = before_names
    first, last = bounds_of(nodes, low, high)
    its_names[np.searchsorted(found, nodes[first:last])] = names[first:last]
    return found, its_names, len(np.intersect1d(here, before))


def bounds_of(nodes: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Returns where in sorted nodes those begin and end whose first 8 bytes, as a number, are in [low, high)."""
    low_bytes, high_bytes = (edge.to_bytes(9, "big")[1:].rstrip(b"\0") for edge in (low, high))  # as numpy gives nodes
    return bisect_left(nodes, low_bytes), bisect_left(nodes, high_bytes) if high < END else len(nodes)


class Names:
    """Looks names up in a file that `name_clusters` wrote: all nodes, sorted, then all names, 16 bytes each. It stays on the disk."""

    def __init__(self, path: Path):
        size = size_of(path)
        if size % 32:
            raise UserError(f"{path}: not a file of cluster names ({size} bytes are no multiple of 32)")
        self.nodes, self.names = (open_array(path, "S16", first, size // 32) for first in (0, size // 32))

    def find(self, nodes: np.ndarray) -> np.ndarray:
        """Returns the names of nodes [N], [N] S16; empty where a node is not in the file."""
        found = np.zeros(len(nodes), "S16")
        if len(self.nodes):
            place = np.minimum(np.searchsorted(self.nodes, nodes), len(self.nodes) - 1)
            there = self.nodes[place] == nodes
            found[there] = self.names[place[there]]
        return found

    def of_shard(self, shards: Shards, shard: int) -> list[bytes]:
        """Returns the name of each document of a shard, 16 bytes each."""
        return [whole(name) for name in self.find(shards.rows(np.arange(*shards.span(shard)))["node"]).tolist()]

    def range(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        begin, end = bounds_of(self.nodes, low, high)
        return np.array(self.nodes[begin:end]), np.array(self.names[begin:end])
