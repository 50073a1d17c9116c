"""Which chunks share a row?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Row r holds the chunks `order[first[r]:first[r + 1]]`, one after the other."""

    first: np.ndarray  # int64 [rows + 1]
    order: np.ndarray  # int64 [chunks]

    def __len__(self) -> int:
        return len(self.first) - 1


def one_a_row(lengths: np.ndarray) -> Rows:
    n = len(lengths)
    return Rows(np.arange(n + 1), np.arange(n))


def best_fit(lengths: np.ndarray, seq_len: int) -> Rows:
    """Packs chunks, longest first, each into the fullest row that still has room for it (best-fit decreasing).

    Deterministic. Rows are kept in stacks by free space, and a bit mask finds the tightest one, so a million chunks take
    about a second.
    """
    by_length = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), np.int64)
    full = int(np.count_nonzero(lengths == seq_len))  # these need no search, and in plain text they are most
    row_of[:full] = np.arange(full)
    stacks: list[list[int]] = [[] for _ in range(seq_len + 1)]
    open_rows, rows, place = 0, full, full  # bit f of open_rows: some row has f places free
    for length in lengths[by_length[full:]].tolist():
        fitting = open_rows >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = stacks[free].pop()
            if not stacks[free]:
                open_rows ^= 1 << free
        else:
            free, row = seq_len, rows
            rows += 1
        row_of[place] = row
        place += 1
        left = free - length
        if left:
            if not stacks[left]:
                open_rows |= 1 << left
            stacks[left].append(row)
    order = by_length[np.argsort(row_of, kind="stable")]
    first = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=first[1:])
    return Rows(first, order)


def pack(lengths: np.ndarray, seq_len: int, packing: str) -> Rows:
    """Packs by the value of config.data.packing."""
    return best_fit(lengths, seq_len) if packing == "best_fit" else one_a_row(lengths)
