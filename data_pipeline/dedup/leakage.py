"""Do two splits share near-duplicates? Found without signatures, by counting shared shingles exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.dedup.near import ALIKE
from data_pipeline.dedup.shingles import reaches, shingle_set

CHUNK = 8_000_000  # shingles of the held-out split that are looked at together: about 160 MB


@dataclass(frozen=True, slots=True)
class Leak:
    """Two documents of different splits that are near-duplicates."""

    held_out: str  # where it lies: file:line
    other: str
    jaccard: float


def find_leaks(
    held_out: Iterable[tuple[str, str]],
    others: Callable[[], Iterable[tuple[str, str]]],
    at_least: float = ALIKE,
    chunk: int = CHUNK,
) -> Iterator[Leak]:
    """Yields every pair of a held-out document and another one with a Jaccard similarity of at least `at_least`.

    Both give (where, text); `others` is called again for every `chunk` shingles of the held-out split, so memory is bounded.
    """
    waiting: list[tuple[str, np.ndarray]] = []
    size = 0
    for where, text in held_out:
        content = shingle_set(text)
        if len(content):
            waiting.append((where, content))
            size += len(content)
        if size >= chunk:
            yield from _compare(waiting, others(), at_least)
            waiting, size = [], 0
    if waiting:
        yield from _compare(waiting, others(), at_least)


def _compare(held: list[tuple[str, np.ndarray]], others: Iterable[tuple[str, str]], at_least: float) -> Iterator[Leak]:
    hashes = np.concatenate([content for _, content in held])
    owners = np.repeat(np.arange(len(held)), [len(content) for _, content in held])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    there = np.zeros(1 << 24, bool)
    there[hashes >> 8] = True
    for where, text in others:
        content = shingle_set(text)
        # |a and b| >= at_least |a or b| >= at_least |a|: with fewer of its shingles there, a text has no near-duplicate.
        needed = max(math.ceil(at_least * len(content) - 1e-9), 1)
        maybe = content[there[content >> 8]]
        if len(maybe) < needed:
            continue
        begin, end = np.searchsorted(hashes, maybe), np.searchsorted(hashes, maybe, "right")
        counts = end - begin
        if np.count_nonzero(counts) < needed:
            continue
        # Any `len(content) - needed + 1` of its shingles hold one that it shares: the rarest, of which those that are
        # not there come first.
        tried = len(maybe) - needed + 1
        rarest = np.argsort(counts, kind="stable")[:tried]
        found = np.unique(np.concatenate([owners[begin[i] : end[i]] for i in rarest.tolist()] or [owners[:0]]))
        for owner in found.tolist():
            name, theirs = held[owner]
            likeness = reaches(content, theirs, at_least)
            if likeness:
                yield Leak(name, where, likeness)
