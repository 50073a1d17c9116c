"""How are the rows of one source and split cut, packed and read from the prepared ids?"""

from __future__ import annotations

import numpy as np

from data_pipeline.mix import hash64
from data_pipeline.pack import Rows, pack
from data_pipeline.store import Shard
from data_pipeline.tasks import Chunks

BATCH_DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "segments": np.int32,  # 0 is padding, documents of a row count from 1
    "positions": np.int32,  # from 0 in each segment
    "weights": np.float32,  # of the targets: 0 on padding and on what is not learned
}
# What augmentation needs besides; never part of a batch that leaves the pipeline.
ORIGIN_DTYPES = {"keys": np.uint64, "places": np.int64}


def empty_batch(n_rows: int, seq_len: int, pad_id: int, origins: bool) -> dict[str, np.ndarray]:
    """Returns a batch of padding rows, with the arrays that augmentation needs if `origins`."""
    dtypes = BATCH_DTYPES | (ORIGIN_DTYPES if origins else {})
    batch = {name: np.zeros((n_rows, seq_len), dtype) for name, dtype in dtypes.items()}
    batch["tokens"][:] = pad_id
    batch["targets"][:] = pad_id
    return batch


class RowReader:
    """Rows of one source and split: an index in memory, ids on disk."""

    def __init__(self, shard: Shard, chunks: Chunks, seq_len: int, packing: str, bos_id: int):
        self.shard, self.chunks, self.seq_len, self.bos_id = shard, chunks, seq_len, bos_id
        self.rows: Rows = pack(chunks.length, seq_len, packing)

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self) -> float:
        """Returns the share of places in all rows that hold a token."""
        return float(self.chunks.length.sum()) / max(len(self) * self.seq_len, 1)

    def read(self, rows: np.ndarray, into: np.ndarray, batch: dict[str, np.ndarray], epoch_keys: np.ndarray) -> None:
        """Writes row `rows[i]` to row `into[i]` of `batch`; `epoch_keys[i]` is uint64, for augmentation."""
        first = self.rows.first
        counts = first[rows + 1] - first[rows]
        full = (counts == 1) & (self.chunks.length[self.rows.order[first[rows]]] == self.seq_len)
        if full.any():
            self._read_full(self.rows.order[first[rows[full]]], into[full], batch, epoch_keys[full])
            rows, into, epoch_keys, counts = rows[~full], into[~full], epoch_keys[~full], counts[~full]
            if not len(rows):
                return
        row = np.repeat(np.arange(len(rows)), counts)
        nth = _count_within(counts)
        chunk = self.rows.order[first[rows][row] + nth]
        length = self.chunks.length[chunk].astype(np.int64)
        # where each chunk begins in its row: the lengths before it, less those of the rows before
        before = np.cumsum(length) - length
        row_start = before[np.cumsum(counts) - counts]
        begin = into[row] * self.seq_len + before - row_start[row]

        position = _count_within(length)
        source = np.repeat(self.chunks.start[chunk], length) + position
        goal = np.repeat(begin, length) + position
        flat = {name: array.reshape(-1) for name, array in batch.items()}
        flat["tokens"][goal] = self.shard.ids[source]
        flat["targets"][goal] = self.shard.ids[source + 1]
        flat["segments"][goal] = np.repeat(nth + 1, length)
        flat["positions"][goal] = position
        flat["weights"][goal] = position >= np.repeat(self.chunks.learn_from[chunk], length)
        put = self.chunks.put_bos[chunk]
        flat["tokens"][begin[put]] = self.bos_id
        if "keys" in flat:
            document = self.chunks.document[chunk]
            flat["keys"][goal] = np.repeat(hash64(self.shard.keys[document] ^ epoch_keys[row]), length)
            flat["places"][goal] = source - np.repeat(self.shard.offsets[document], length)

    def _read_full(
        self, chunk: np.ndarray, into: np.ndarray, batch: dict[str, np.ndarray], epoch_keys: np.ndarray
    ) -> None:
        """The same for rows that one chunk fills: plain copies, five times as fast."""
        start, position = self.chunks.start[chunk], np.arange(self.seq_len)
        ids = np.stack([self.shard.ids[at : at + self.seq_len + 1] for at in start.tolist()])
        batch["tokens"][into], batch["targets"][into] = ids[:, :-1], ids[:, 1:]
        batch["segments"][into], batch["positions"][into] = 1, position
        batch["weights"][into] = position >= self.chunks.learn_from[chunk][:, None]
        batch["tokens"][into[self.chunks.put_bos[chunk]], 0] = self.bos_id
        if "keys" in batch:
            document = self.chunks.document[chunk]
            batch["keys"][into] = hash64(self.shard.keys[document] ^ epoch_keys)[:, None]
            batch["places"][into] = (start - self.shard.offsets[document])[:, None] + position


def _count_within(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
