"""How do pairs (64-bit hash, number) lie on disk so that all pairs of a range of hashes are found without reading the rest?

A file of sorted runs: blocks of at most BLOCK pairs, each sorted by hash. Any stage can then work through the hashes range by range, in
as many parts as its memory asks for, without knowing that number when the file is written.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from data_pipeline import whole_file
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_array

BLOCK = 1 << 19
END = 2**64


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """`whole_file.written_aside` that says in a line what is wrong with the place or the disk."""
    began = False
    try:
        with whole_file.written_aside(path) as file:
            began = True
            yield file
    except OSError as error:
        if not began:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}; name another folder") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{path}: no space left on the disk; free some, or name another folder") from None
        raise


class RunWriter:
    """Writes a file of sorted runs; use within `with`. Which of two equal hashes comes first is not defined."""

    def __init__(self, path: Path):
        self._aside = written_aside(path)
        self._hashes: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._waiting = 0
        self._sizes: list[int] = []

    def __enter__(self) -> RunWriter:
        self._file = self._aside.__enter__()
        return self

    def add(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        """Takes [N] uint64 and [N] integers."""
        for begin in range(0, len(hashes), BLOCK):
            self._hashes.append(hashes[begin : begin + BLOCK])
            self._numbers.append(np.asarray(numbers[begin : begin + BLOCK], np.uint64))
            self._waiting += len(self._hashes[-1])
            if self._waiting >= BLOCK:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            hashes = np.concatenate(self._hashes)
            order = np.argsort(hashes)
            self._file.write(hashes[order].tobytes())
            self._file.write(np.concatenate(self._numbers)[order].tobytes())
            self._sizes.append(self._waiting)
            self._hashes, self._numbers, self._waiting = [], [], 0

    def __exit__(self, *error) -> None:
        if error[0] is not None:
            self._aside.__exit__(*error)
            return
        with ExitStack() as stack:
            stack.push(self._aside)
            self._flush()
            self._file.write(np.array([*self._sizes, len(self._sizes)], np.uint64).tobytes())


def read_range(path: Path, low: int = 0, high: int = END) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hashes, numbers), both [N] uint64, of all pairs with low <= hash < high, in no defined order."""
    held = open_array(path, np.uint64)
    blocks = int(held[-1])
    sizes = held[len(held) - 1 - blocks : len(held) - 1].astype(np.int64).tolist()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    at = 0
    for size in sizes:
        begin = bisect_left(held, low, at, at + size) if low else at
        end = bisect_left(held, high, at, at + size) if high < END else at + size
        if begin < end:
            found.append((held[begin:end].copy(), held[begin + size : end + size].copy()))
        at += 2 * size
    if not found:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    return np.concatenate([h for h, _ in found]), np.concatenate([n for _, n in found])


def part_bounds(part: int, parts: int, end: int = END) -> tuple[int, int]:
    """Returns the range of hashes below `end` that part `part` of `parts` looks at."""
    return part * end // parts, (part + 1) * end // parts


def parts_for(paths: Sequence[Path], memory_bytes: int, copies: int = 4) -> int:
    """Returns into how many parts the pairs of `paths` must be cut so that one part, with what sorting takes, fits the memory."""
    return max(1, -(-copies * sum(path.stat().st_size for path in paths) // memory_bytes))
