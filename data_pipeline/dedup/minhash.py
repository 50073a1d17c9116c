"""Which documents could be near-duplicates? Signatures whose bands agree where shingle sets are alike.

Fast similarity sketching (Dahlgaard, Knudsen, Thorup 2017): every shingle falls into one of BINS bins and the smallest hash of a
bin is kept; bins still empty are filled by further rounds, so that a bin of two texts agrees with a chance of exactly their
Jaccard similarity J, independently of the others, however short the texts are, at a cost of one hash a shingle for long ones.
A pair is a candidate where all ROWS bins of one of BANDS bands agree: 1 - (1 - J**ROWS)**BANDS, which is 0.99985 at 0.7,
0.98 at 0.6, 0.12 at 0.3 and 0.0005 at 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.dedup.codes import GOLDEN, Codes, distinct, mix, normalise
from data_pipeline.dedup.shingles import hash_pieces

BANDS, ROWS = 48, 5
BINS = BANDS * ROWS
ROUNDS = 16  # after them, each bin still empty takes the smallest of all shingles under a hash of its own
_EMPTY = np.uint64(2**64 - 1)
_LOW = np.uint64(2**32 - 1)
_32 = np.uint64(32)
_FACTORS = mix(np.arange(1, ROUNDS + BINS + 1, dtype=np.uint64) * np.uint64(GOLDEN)) | np.uint64(1)  # for ever


def signatures(batch: Codes) -> np.ndarray:
    """Returns [N, BINS] uint64; rows of texts without a character hold 2**64 - 1."""
    table = np.full((len(batch.starts), BINS), _EMPTY)
    for hashes, owners in hash_pieces(batch):
        _throw(table, hashes, owners.astype(np.uint64) * np.uint64(BINS), 0)
    lacking = (table == _EMPTY).any(1) & (batch.sizes > 0)
    if lacking.any():
        held = [_only(lacking, *piece) for piece in hash_pieces(batch)]
        _fill(table, np.concatenate([h for h, _ in held]), np.concatenate([o for _, o in held]))
    return table


def _only(lacking: np.ndarray, hashes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(owners) and owners[0] == owners[-1]:  # a long text, maybe of few distinct shingles
        hashes = distinct(hashes)
        owners = owners[: len(hashes)]
    chosen = lacking[owners]
    return hashes[chosen], owners[chosen]


def _throw(table: np.ndarray, hashes: np.ndarray, offsets: np.ndarray, round_: int) -> None:
    """Puts scrambled hashes [S] into the bins of the texts whose rows begin at `offsets` [S]."""
    values = hashes * _FACTORS[round_]
    bins = values >> _32
    bins *= np.uint64(BINS)
    bins >>= _32
    bins += offsets
    values &= _LOW
    values |= np.uint64(round_ << 32)  # never smaller than what an earlier round put there
    np.minimum.at(table.reshape(-1), bins.view(np.int64), values)


def _fill(table: np.ndarray, hashes: np.ndarray, owners: np.ndarray) -> None:
    """Fills every bin of the texts in `owners`, which is sorted."""
    offsets = owners.astype(np.uint64) * np.uint64(BINS)
    still = np.zeros(len(table), bool)
    for round_ in range(1, ROUNDS):
        _throw(table, hashes, offsets, round_)
        if round_ % 4 == 3:
            still[:] = (table == _EMPTY).any(1)
            chosen = still[owners]
            hashes, owners, offsets = hashes[chosen], owners[chosen], offsets[chosen]
            if not len(owners):
                return
    rows, first, count = np.unique(owners, return_index=True, return_counts=True)
    which, bins = np.nonzero(table[rows] == _EMPTY)
    many = count[which]  # shingles that compete for each empty bin
    begin = np.cumsum(many) - many
    element = np.arange(many.sum()) - np.repeat(begin - first[which], many)
    values = (hashes[element] * np.repeat(_FACTORS[ROUNDS + bins], many)) >> _32
    table[rows[which], bins] = np.minimum.reduceat(values, begin) | np.uint64(ROUNDS << 32)


def band_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hashes [N, BANDS] uint64, which texts have a signature [N] bool); equal hashes make a candidate pair."""
    batch = normalise(texts)
    table = signatures(batch).reshape(-1, BANDS, ROWS)
    hashes = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64) * np.uint64(GOLDEN), table.shape[:2]).copy()
    for row in range(ROWS):
        hashes ^= table[:, :, row]
        mix(hashes)
    return hashes, batch.sizes > 0
