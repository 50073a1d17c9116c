"""How are the rows of one source and split cut, packed and read from the prepared ids?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

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
# Stands in place of the key of a document, or of an epoch, that augmentation leaves as it is.
UNCHANGED = np.uint64(2**64 - 1)


def change_keys(documents: np.ndarray, epochs: np.ndarray | int) -> np.ndarray:
    """Returns the keys that augmentation draws by, of document keys and epoch keys (uint64); 0 for what it leaves as it is."""
    epochs = np.asarray(epochs, np.uint64)
    return np.where((documents != UNCHANGED) & (epochs != UNCHANGED), hash64(documents ^ epochs), np.uint64(0))


class Labelled(NamedTuple):
    """What the rows of texts with a class aim at: each text has one target, at its last place."""

    number: np.ndarray  # int32: the number of the class of each document
    weight: np.ndarray  # float32: how much each document counts


class RowReader:
    """Rows of one source and split: an index in memory, ids on disk."""

    def __init__(
        self, shard: Shard, chunks: Chunks, seq_len: int, packing: str, bos_id: int, pad_id: int,
        lengths: np.ndarray | None = None, labelled: Labelled | None = None,
    ):  # fmt: skip
        """`lengths` is the room of each chunk, where that is more than its length; `labelled`: the task is to classify."""
        self.shard, self.chunks, self.seq_len, self.bos_id, self.pad_id = shard, chunks, seq_len, bos_id, pad_id
        self.labelled = labelled
        self.rows: Rows = pack(chunks.length if lengths is None else lengths, seq_len, packing)
        self.padding = np.full(seq_len, pad_id, shard.ids.dtype)
        self.ones = np.ones(seq_len, np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self) -> float:
        """Returns the share of places in all rows that hold a token."""
        return float(self.chunks.length.sum()) / max(len(self) * self.seq_len, 1)

    def held(self, number: int, epoch_key: np.ndarray) -> list[tuple[int, int, int]]:
        """Returns (document, first token of it, tokens) of each stretch in a row; `epoch_key` as for `read`, of one row."""
        del epoch_key  # the same in each epoch
        chunks, order = self.chunks, self.rows.order[self.rows.first[number] : self.rows.first[number + 1]]
        starts = chunks.start[order] - self.shard.offsets[chunks.document[order]]
        return list(zip(chunks.document[order].tolist(), starts.tolist(), chunks.length[order].tolist()))

    def read(self, rows: np.ndarray, epoch_keys: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns arrays [len(rows), seq_len] of the rows with these numbers; -1 stands for a row of padding.

        `epoch_keys` (uint64, one a row) asks for the arrays that augmentation needs, too.

        The rows are laid end to end as pieces: the chunks of a row, then its padding, often of no length. Each array is a value a
        piece, repeated, or stretches of ids, joined; no index of every token is made, which took most of the time.
        """
        chunks, ids = self.chunks, self.shard.ids
        first = np.where(rows < 0, 0, self.rows.first[rows])
        counts = np.where(rows < 0, 0, self.rows.first[rows + 1] - first)
        row, nth = np.repeat(np.arange(len(rows)), counts + 1), _count_within(counts + 1)
        padding = np.cumsum(counts + 1) - 1  # the last piece of each row
        real = np.ones(len(row), bool)
        real[padding] = False
        chunk = self.rows.order[np.where(real, first[row] + nth, 0)]
        start, length = chunks.start[chunk], np.where(real, chunks.length[chunk], 0)
        length[padding] = self.seq_len - np.diff(np.cumsum(length)[padding], prepend=0)
        begin = np.cumsum(length) - length
        padding, some = padding[length[padding] > 0], length > 0

        def spread(values: np.ndarray, dtype: Any) -> np.ndarray:
            return np.repeat(values.astype(dtype), length)

        stretches = [ids[at : at + n] for at, n in zip((start + 1).tolist(), length.tolist())]
        for piece in padding.tolist():
            stretches[piece] = self.padding[: length[piece]]
        targets = np.concatenate(stretches, dtype=np.int32, casting="same_kind")
        tokens = np.empty_like(targets)
        tokens[1:] = targets[:-1]  # an input is the target before it, but where a piece begins
        heads = np.where(real, np.where(chunks.put_bos[chunk], self.bos_id, ids[start].astype(np.int32)), self.pad_id)
        tokens[begin[some]] = heads[some]
        segments = spread(np.where(real, nth + 1, 0), np.int32)
        positions = np.arange(len(targets), dtype=np.int32)
        positions -= spread(begin, np.int32)
        if len(padding):
            positions[segments == 0] = 0
        learn_from = np.where(real, chunks.learn_from[chunk], self.seq_len)
        weights = (positions >= spread(learn_from, np.int32)).astype(np.float32)
        masked = real & chunks.masked[chunk]
        if masked.any():
            said = cast(np.ndarray, self.shard.learned)
            weights *= np.concatenate([
                said[at : at + n] if is_masked else self.ones[:n]
                for at, n, is_masked in zip((start + 1).tolist(), length.tolist(), masked.tolist())
            ])  # fmt: skip
        if self.labelled:
            ends, document = (begin + length - 1)[real], chunks.document[chunk[real]]
            targets, weights = np.zeros_like(targets), np.zeros_like(weights)
            targets[ends], weights[ends] = self.labelled.number[document], self.labelled.weight[document]
        batch = dict(zip(BATCH_DTYPES, (tokens, targets, segments, positions, weights)))
        if epoch_keys is not None:
            document = chunks.document[chunk]
            keys = change_keys(self.shard.keys[document], epoch_keys[row])
            batch["keys"] = spread(np.where(real, keys, 0), np.uint64)
            batch["places"] = spread(np.where(real, start - self.shard.offsets[document], 0), np.int64)
            batch["places"] += positions
        return {name: array.reshape(-1, self.seq_len) for name, array in batch.items()}


def read_rows(
    readers: Sequence[RowReader], source: np.ndarray, row: np.ndarray, epoch_keys: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns row `row[i]` of `readers[source[i]]` for each i, as `RowReader.read` does."""
    batch: dict[str, np.ndarray] = {}
    numbers = np.unique(source).tolist()
    for number in numbers:
        here = np.flatnonzero(source == number)
        part = readers[number].read(row[here], None if epoch_keys is None else epoch_keys[here])
        if len(numbers) == 1:
            return part
        for name, array in part.items():
            batch.setdefault(name, np.empty((len(row), array.shape[1]), array.dtype))[here] = array
    return batch


def _count_within(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
