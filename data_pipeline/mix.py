"""Which row of which source stands at a given place of the endless training stream?

A closed formula of (seed, place): nothing is stored or shuffled in memory, so reading can start anywhere at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.schema import ConfigError

BLOCK = (
    1000  # rows over which the shares of a mixture are exact; ten times as many where a share is less than one of them
)
LARGEST_BLOCK = 100_000
FOREVER = 2**62  # rows
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


class Stretch(NamedTuple):
    """Blocks of one size and composition, one after the other."""

    start: int  # place of the first
    block: int  # its number in the stream, which its order is keyed by
    size: int  # rows of a block
    counts: np.ndarray  # of each part in a block
    drawn: np.ndarray  # rows of each part before `start`


class Mixture:
    """The order of rows: place g of the stream -> (part, epoch of that part, row). A part is a source, or a class of one.

    `weights` are the shares of the parts, `later` those from other places on: [(first place, weights), ...]. `limits` are
    rows that each part gives at most; what is left of its share then goes to the others, in proportion. Weights of 0: each
    row of all parts once an epoch.

    Within a block the rows of a part come in any order, or `ordered` by epoch: none is then seen again before all were.

    With weights the stream is a list of stretches of blocks. Each block holds each part as often as its share says, in an
    order of its own, so the rows that a part gave before block n of a stretch are `drawn + n * counts`, and nothing need be
    counted. The last block of a phase may be shorter; one in which a part runs out has counts of its own.
    """

    def __init__(
        self, names: list[str], rows: list[int], weights: list[float], seed: int,
        later: Sequence[tuple[int, list[float]]] = (), limits: Sequence[int] = (),
        ordered: bool = False,
    ):  # fmt: skip
        self.names, self.rows, self.seed = names, np.array(rows, np.int64), seed
        self.weighted, self.ordered = any(weights), ordered
        self.ends = np.cumsum(self.rows)
        self.end = FOREVER  # the first place that no row is left for
        self.stretches: list[Stretch] = []
        if self.weighted:
            self._lay([(0, weights), *later], np.array(limits or [FOREVER] * len(rows), np.int64))
        self.starts = np.array([stretch.start for stretch in self.stretches], np.int64)

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (part, epoch, row) of each place of the stream, all before `end`."""
        if not self.weighted:
            total = int(self.ends[-1])
            epoch, index = places // total, places % total
            row = permute(index, total, make_key(self.seed, 1, epoch))
            part = np.searchsorted(self.ends, row, side="right")
            return part, epoch, row - (self.ends - self.rows)[part]
        part, counter = self._draw(places)
        epoch, index = counter // self.rows[part], counter % self.rows[part]
        row = np.empty_like(index)
        for number in np.unique(part):
            here = part == number
            key = make_key(self.seed, 3, int(number), epoch[here])
            row[here] = permute(index[here], int(self.rows[number]), key)
        return part, epoch, row

    def part_at(self, places: np.ndarray) -> np.ndarray:
        """Returns the part of each place of a weighted stream."""
        return self._draw(places)[0]

    def drawn(self, place: int) -> np.ndarray:
        """Returns how many rows of each part stand before `place`; without weights, as many as an even order has."""
        if not self.weighted:
            return self.rows * (place / int(self.ends[-1]))
        stretch = self.stretches[int(np.searchsorted(self.starts, place, side="right")) - 1]
        block, rest = divmod(place - stretch.start, stretch.size)
        begun = self.part_at(np.arange(place - rest, place))
        return stretch.drawn + block * stretch.counts + np.bincount(begun, minlength=len(self.rows))

    def _draw(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (part, rows of that part before) of each place."""
        number = np.searchsorted(self.starts, places, side="right") - 1
        part, counter = np.empty_like(places), np.empty_like(places)
        for one in np.unique(number):
            here, stretch = number == one, self.stretches[one]
            block, place = np.divmod(places[here] - stretch.start, stretch.size)
            slot = self._slots_by_epoch(stretch, block, place) if self.ordered else self._slots(stretch, block, place)
            slots = np.cumsum(stretch.counts)
            which = np.searchsorted(slots, slot, side="right")
            part[here] = which
            counter[here] = (stretch.drawn + stretch.counts - slots)[which] + block * stretch.counts[which] + slot
        return part, counter

    def _slots(self, stretch: Stretch, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Returns the slot that stands at a place of a block: slots are numbered part by part."""
        return permute(place, stretch.size, make_key(self.seed, 2, stretch.block + block))

    def _slots_by_epoch(self, stretch: Stretch, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The same parts at the same places, but the slots of each part in rising order."""
        out, places = np.empty_like(place), np.arange(stretch.size)
        slots = np.cumsum(stretch.counts)
        for number in np.unique(block):
            here = block == number
            part = np.searchsorted(slots, self._slots(stretch, np.full_like(places, number), places), side="right")
            slot = np.empty_like(places)
            slot[np.argsort(part, kind="stable")] = places
            out[here] = slot[place[here]]
        return out

    def _lay(self, phases: list[tuple[int, list[float]]], limits: np.ndarray) -> None:
        """Lays the stretches of all phases, to the place where no row is left."""
        drawn, block = np.zeros_like(limits), 0
        ends = [start for start, _ in phases[1:]] + [FOREVER]
        for (place, weights), end in zip(phases, ends):
            usual = self._block_size(np.array(weights))
            while place < end:
                weights = np.where(drawn < limits, weights, 0.0)
                if not weights.any():
                    self.end = place
                    return
                counts = largest_remainder(weights, usual)
                some = counts > 0
                blocks = min((end - place) // usual, int(((limits - drawn)[some] // counts[some]).min()))
                if blocks == 0:
                    counts, blocks = _fill_block(weights, min(usual, end - place), limits - drawn), 1
                size = int(counts.sum())
                self.stretches.append(Stretch(place, block, size, counts, drawn))
                place, block, drawn = place + blocks * size, block + blocks, drawn + blocks * counts

    def _block_size(self, weights: np.ndarray) -> int:
        size, some = BLOCK, weights > 0
        while not largest_remainder(weights, size)[some].all():
            size *= 10
            if size > LARGEST_BLOCK:
                share, name = min((weight / weights.sum(), name) for weight, name in zip(weights, self.names) if weight)
                raise ConfigError(
                    f"{name}: a share of {share:.1g} is less than one row in {LARGEST_BLOCK:,}; raise it or leave it out"
                )
        return size


def _fill_block(weights: np.ndarray, size: int, left: np.ndarray) -> np.ndarray:
    """Splits `size` rows by weight where each part has only so many left; fewer where all run out."""
    counts = np.zeros_like(left)
    while counts.sum() < size and weights.any():
        counts = np.minimum(counts + largest_remainder(weights, size - int(counts.sum())), left)
        weights = np.where(counts < left, weights, 0.0)
    return counts


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
