"""Which documents are near-duplicates? Candidates from the bands, then the exact Jaccard similarity of their shingle sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dedup.codes import batches, distinct
from data_pipeline.dedup.exact import repeats
from data_pipeline.dedup.runs import RunWriter, part_bounds, read_range, written_aside
from data_pipeline.dedup.shingles import reaches, shingle_sets
from data_pipeline.dedup.signatures import Shards, prefixes, shard_file
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_array, open_to_read

PAIR = np.dtype([("a", "<u8"), ("b", "<u8"), ("jaccard", "<f8")])
SAME, ALIKE = 0.8, 0.7  # from here on a document repeats another one; from here on two documents must share a split
NEIGHBOURS = 16  # in a bucket of more documents, each is compared with so many next ones (by key) and with the first
OPEN_FILES = 64


def find_candidates(shards: Shards, exact: Sequence[Path], out: Path, part: int = 0, parts: int = 1) -> None:
    """Writes runs of candidate pairs, both ways (a -> b and b -> a), from one range of band hashes; a pair may come more than once.

    `exact`: what `find_exact` wrote; the documents it drops are left out.
    """
    hashes, numbers = shards.gather("bands", *part_bounds(part, parts), exact)
    chosen = repeats(hashes)
    hashes, numbers = hashes[chosen], numbers[chosen]
    order = np.lexsort((numbers, hashes))
    hashes, numbers = hashes[order], numbers[order]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    sizes = np.diff(np.append(starts, len(hashes)))
    firsts = np.repeat(starts, sizes)
    large = np.flatnonzero(np.repeat(sizes, sizes) > NEIGHBOURS + 1)
    if len(large):  # which pairs are looked at must not depend on the order of files
        keys = shards.rows(numbers[large])["key"]
        numbers[large] = numbers[large][np.lexsort((prefixes(keys), hashes[large]))]
    with RunWriter(out) as file:
        for distance in range(1, NEIGHBOURS + 1):
            same = hashes[distance:] == hashes[:-distance]
            a, b = numbers[:-distance][same], numbers[distance:][same]
            file.add(a, b)
            file.add(b, a)
        far = np.flatnonzero(np.arange(len(numbers)) - firsts > NEIGHBOURS)
        file.add(numbers[far], numbers[firsts[far]])
        file.add(numbers[firsts[far]], numbers[far])


def write_sets(
    shards: Shards, shard: int, texts: Callable[[np.ndarray], Iterable[str]], candidates: Sequence[Path]
) -> int:
    """Writes the shingle sets of those documents of a shard that are in a candidate pair; returns their count.

    `texts` gives those of some places in the shard (ascending int64), the same as for its signatures.
    """
    begin, end = shards.span(shard)
    found = [distinct(read_range(path, begin, end)[0]) for path in candidates]
    wanted = distinct(np.concatenate(found)).astype(np.int64) if found else np.zeros(0, np.int64)
    ends = np.zeros(len(wanted) + 1, np.uint64)
    with written_aside(shard_file(shards.stems[shard], "sets")) as file:
        at = 0
        for some in batches(texts(wanted - begin)):
            content, sizes = shingle_sets(some)
            file.write(content.astype("<u4").tobytes())
            ends[at + 1 : at + 1 + len(some)] = ends[at] + np.cumsum(sizes).astype(np.uint64)
            at += len(some)
        if at != len(wanted):
            raise UserError(f"{shards.stems[shard]}: fewer documents than when it was read first; did its file change?")
        file.write(np.zeros(int(ends[-1]) % 2, "<u4").tobytes())  # what follows lies at a multiple of 8
        file.write(np.concatenate([wanted.astype(np.uint64), ends, [np.uint64(len(wanted))]]).tobytes())
    return len(wanted)


class Sets:
    """Shingle sets by document number; they stay on the disk. Use within `with`."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self._opened: dict[int, _ShardSets] = {}

    def __enter__(self) -> Sets:
        return self

    def __exit__(self, *error) -> None:
        while self._opened:
            self._opened.popitem()[1].file.close()

    def __getitem__(self, number: int) -> np.ndarray:
        shard = int(np.searchsorted(self.shards.bases, number, "right")) - 1
        if shard not in self._opened:
            if len(self._opened) == OPEN_FILES:
                self._opened.pop(next(iter(self._opened))).file.close()
            self._opened[shard] = _ShardSets(shard_file(self.shards.stems[shard], "sets"))
        return self._opened[shard].load(number)


class _ShardSets:
    def __init__(self, path: Path):
        self.file = open_to_read(path)
        words = open_array(path, np.uint64)
        count = int(words[-1])
        self.numbers = words[-2 - 2 * count : -2 - count]
        self.ends = words[-2 - count : -1]

    def load(self, number: int) -> np.ndarray:
        at = int(np.searchsorted(self.numbers, np.uint64(number)))
        assert self.numbers[at] == number
        begin, end = int(self.ends[at]), int(self.ends[at + 1])
        self.file.seek(4 * begin)
        return np.frombuffer(self.file.read(4 * (end - begin)), "<u4")


def verify(
    shards: Shards,
    candidates: Sequence[Path],
    same: float,
    alike: float,
    out: Path,
    part: int = 0,
    parts: int = 1,
) -> tuple[int, int]:
    """Writes rows of PAIR for candidates of a similarity of at least `alike`; returns (pairs compared, pairs written).

    Looks at the pairs whose smaller number lies in one range of documents. A pair that pairs of at least `same` connect already is
    left out: it changes no cluster.
    """
    low, high = part_bounds(part, parts, shards.total)
    compared = written = 0
    joined = Union()
    with written_aside(out) as file, Sets(shards) as sets:
        for a, others in _pairs(candidates, low, high):
            of_a = sets[a]
            rows: list[tuple[int, int, float]] = []
            for b in others:
                if joined.find(a) == joined.find(b):
                    continue
                compared += 1
                likeness = reaches(of_a, sets[b], alike)
                if likeness >= same:
                    joined.join(a, b)
                if likeness:
                    rows.append((a, b, likeness))
            file.write(np.array(rows, PAIR).tobytes())
            written += len(rows)
    return compared, written


def _pairs(candidates: Sequence[Path], low: int, high: int) -> Iterator[tuple[int, list[int]]]:
    found = [read_range(path, low, high) for path in candidates]
    a, b = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    a, b = a[a < b], b[a < b]
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    new = np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))[: len(a)]
    a, b = a[new], b[new]
    starts = np.flatnonzero(np.append(True, a[1:] != a[:-1])[: len(a)])
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(a)]):
        yield int(a[begin]), b[begin:end].tolist()


class Union:
    """Which numbers are connected so far?"""

    def __init__(self):
        self.above: dict[int, int] = {}

    def find(self, x: int) -> int:
        above = self.above
        while (up := above.get(x, x)) != x:
            above[x] = above.get(up, up)
            x = up
        return x

    def join(self, x: int, y: int) -> None:
        x, y = self.find(x), self.find(y)
        self.above[max(x, y)] = min(x, y)
