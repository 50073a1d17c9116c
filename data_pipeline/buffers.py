"""How much host memory may what is read ahead hold, what does each buffer hold now, and when must reading stop?

The sizes of all documents are known before a stream begins, so a buffer that cannot fit is refused then, by name. While reading,
the bytes in the buffers are counted, and the memory that is left is looked at: the machine's, and the control group's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.machine import memory_left
from data_pipeline.schema import ConfigError, UserError

DOCUMENTS_AT_ONCE = 16  # read, or tokenised, in one call of Python
WINDOW_TOKENS = 2**20  # packed together, at most
LEAST_ROWS, MOST_ROWS = 64, 1024  # chunks packed together
BATCH_BYTES = 20  # of a token in a batch: five arrays of four bytes
ORIGIN_BYTES = 16  # of a token besides, before augmentation
STORED = 1.1  # bytes in the shuffle buffer for a byte of text: quotes and line ends are escaped
HEAD = 64  # and for a document
# Peaks of memory, measured with documents of 1 MB (tests/data_pipeline/test_buffers.py):
READING = 6  # for a byte of text that is read and cleaned
CUTTING = 12  # for a token that is cut to rows
CHUNK_BYTES = 5  # of a place in a chunk, filled or not
PACKING = 40  # for a token of a window, besides the rows that come out
CUT_BUFFER = "documents read and tokenised"
OVER = 1.25  # of the budget: what the buffers may hold before reading stops, since documents are shuffled by chance
LEFT = 2**28  # bytes that reading leaves to the machine, or a hundredth of its memory if that is more
LOOK_SECONDS = 0.5  # between two looks at the memory that is left


@dataclass(frozen=True)
class Plan:
    """How much is read, and packed, at once. The rows depend on `window`, on nothing else here."""

    window: int  # chunks that are packed together, at most
    at_once: int  # documents


class Stream(NamedTuple):
    """What is shuffled and packed by itself."""

    name: str
    sizes: np.ndarray  # bytes of each of its documents, in the order of reading
    shuffled: int  # documents in its buffer


@dataclass(frozen=True)
class Need:
    """What a buffer may hold, and how to make it less."""

    name: str
    bytes: int
    remedy: str
    counted: bool = False


def plan_stream(
    config: DataConfig, streams: Sequence[Stream], tokens_a_byte: float, rows: int, origins: bool, buffers: Buffers
) -> Plan:
    """Makes the windows and turns of reading fit `config.buffer_bytes`; raises ConfigError where that is not enough.

    `rows` are those of a batch on this host. `buffers` is told what there is to watch.
    """
    budget = config.buffer_bytes
    plan = Plan(min(max(WINDOW_TOKENS // config.seq_len, LEAST_ROWS), MOST_ROWS), DOCUMENTS_AT_ONCE)
    while plan.at_once > 1 and _reading(streams, plan.at_once, tokens_a_byte) > budget // 4:
        plan = Plan(plan.window, plan.at_once // 2)
    while True:
        needs = list(_needs(config, streams, plan, tokens_a_byte, rows, origins))
        total = sum(need.bytes for need in needs)
        if total <= budget or plan.window <= LEAST_ROWS:
            break
        plan = Plan(max(plan.window // 2, LEAST_ROWS), plan.at_once)
    if total > budget:
        parts = "\n    ".join(f"{size(need.bytes)} {need.name}: {need.remedy}" for need in _largest(needs))
        raise ConfigError(
            f"config.data.buffer_bytes={budget:,}: what is read ahead may hold {size(total)}. Raise it, or lower\n    {parts}"
        )
    for need in needs:  # of texts and what is cut the bytes are counted, of the others they are always the same
        buffers.add(need.name, need.remedy, 0 if need.counted else need.bytes)
    return plan


def shuffle_buffer(name: str) -> str:
    return f"documents to shuffle of {name}"


def _needs(
    config: DataConfig, streams: Sequence[Stream], plan: Plan, tokens_a_byte: float, rows: int, origins: bool
) -> Iterator[Need]:
    token = BATCH_BYTES + ORIGIN_BYTES * origins
    packed = (len(streams) * token + PACKING) * plan.window * config.seq_len
    waiting = (
        len(streams) * (plan.window + plan.at_once) * (config.seq_len + 1) * CHUNK_BYTES
    )  # for a window to be full
    cut = _reading(streams, plan.at_once, tokens_a_byte) + waiting
    others = cut + packed + 4 * rows * config.seq_len * token
    for name, sizes, documents in streams:
        fits = _fitting(sizes, documents, (config.buffer_bytes - others) // len(streams))
        hint = f"{fits:,} would fit" if fits else "not one fits"
        yield Need(shuffle_buffer(name), _shuffled(sizes, documents),
                   f"config.data.shuffle_documents={config.shuffle_documents} ({hint})", counted=True)  # fmt: skip
    longest = max(int(sizes.max()) for _, sizes, _ in streams)
    yield Need(CUT_BUFFER, cut,
               f"config.data.clean.max_chars (the longest document has {size(longest)})", counted=True)  # fmt: skip
    yield Need("rows packed together", packed,
               f"the number of sources or classes ({len(streams)}), or config.data.seq_len")  # fmt: skip
    yield Need("batches read ahead", 4 * rows * config.seq_len * token, "config.data.batch_size or seq_len")


def _largest(needs: list[Need]) -> list[Need]:
    return sorted(needs, key=lambda need: -need.bytes)[:4]


def _reading(streams: Sequence[Stream], at_once: int, tokens_a_byte: float) -> int:
    """One stream is read at a time; the turns of the others lie there still, cut."""
    turns = [int(np.partition(sizes, -at_once)[-at_once:].sum()) if len(sizes) > at_once else int(sizes.sum())
             for _, sizes, _ in streams]  # fmt: skip
    return int(max(turns) * (READING + CUTTING * tokens_a_byte) + (sum(turns) - max(turns)) * (1 + 5 * tokens_a_byte))


def _shuffled(sizes: np.ndarray, documents: int) -> int:
    """Bytes that so many documents hold: the largest of all stretches of the stream that are so long."""
    turns, rest = divmod(documents, len(sizes))
    sums = np.cumsum(np.concatenate([[0], sizes, sizes[:rest]]))
    most = int((sums[rest:] - sums[: len(sums) - rest]).max()) if rest else 0
    return int((turns * int(sizes.sum()) + most) * STORED) + HEAD * documents


def _fitting(sizes: np.ndarray, documents: int, budget: int) -> int:
    low, high = 0, documents
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _shuffled(sizes, middle) <= budget else (low, middle - 1)
    return low


def plan_prefetch(config: DataConfig, rows: int, most: int, origins: bool) -> tuple[int, int]:
    """Returns (batches that are read ahead, bytes they hold); at most `most` of them."""
    batch = rows * config.seq_len * (BATCH_BYTES + ORIGIN_BYTES * origins)
    ahead = min(config.buffer_bytes // batch - 2, most)  # besides one that is made and one that is used
    if ahead < 1:
        raise ConfigError(
            f"config.data.buffer_bytes={config.buffer_bytes:,}: three batches of {size(batch)} are more. Raise it, or lower "
            "config.data.batch_size or seq_len"
        )
    return ahead, (ahead + 2) * batch


class Buffers:
    """Counts what the buffers hold, and stops reading before the machine runs out of memory."""

    def __init__(self, budget: int):
        self.budget, self.looked = budget, 0.0
        self.held: dict[str, int] = {}
        self.remedies: dict[str, str] = {}

    def add(self, name: str, remedy: str, held: int = 0) -> None:
        self.held[name], self.remedies[name] = held, remedy

    def change(self, name: str, amount: int) -> None:
        """Notes that a buffer holds more or less by `amount` bytes; looks whether all is well."""
        self.held[name] += amount
        if amount > 0:
            self.check()

    def check(self) -> None:
        """Raises UserError where the buffers hold more than they may, or leave the machine too little."""
        total = sum(self.held.values())
        if total > OVER * self.budget:
            self._stop(f"what is read ahead holds {size(total)}, more than config.data.buffer_bytes={self.budget:,}")
        now = time.monotonic()
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            left, of = memory_left()
            if left < max(LEFT, of // 100) and total > left:
                self._stop(f"{size(left)} of memory are left of {size(of)}; stopped before the machine does")

    def _stop(self, what: str) -> None:
        name = max(self.held, key=lambda name: self.held[name])
        raise UserError(
            f"{what}. The largest buffer of the data: {name}, {size(self.held[name])}. Lower {self.remedies[name]}, or give the "
            "run more memory; it goes on from its last checkpoint"
        )


def size(count: float) -> str:
    """
    >>> size(2_500_000), size(300), size(1.25e9)
    ('2.5 MB', '300 bytes', '1.2 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"
