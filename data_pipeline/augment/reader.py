"""What do the rows of the train split hold where their chunks are changed? The rows' plan is the same in every epoch."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np

from data_pipeline.augment.draw import fold
from data_pipeline.augment.rewrite import Piece, Rewriter
from data_pipeline.augment.window import shift_windows
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, UNCHANGED, Labelled, RowReader, change_keys
from data_pipeline.store import Shard
from data_pipeline.tasks import PLAIN, Chunks


class Stretches(NamedTuple):
    """Stretches of documents in the order of rows; arrays of one entry each."""

    row: np.ndarray  # which of the rows asked for
    chunk: np.ndarray
    place: np.ndarray  # of the first input, in its document
    length: np.ndarray
    key: np.ndarray  # uint64: of seed, epoch and document; 0: it stays as it is


class RewrittenRows(RowReader):
    """Rows whose chunks are rewritten when they are read for training. `shifted`: the window has moved them already."""

    def __init__(
        self, shard: Shard, chunks: Chunks, packing: str, bos_id: int, pad_id: int, rewriter: Rewriter, shifted: bool = False,
        labelled: Labelled | None = None,
    ):  # fmt: skip
        self.rewriter = rewriter
        self.window = rewriter.limit() if rewriter.config.window_shift and not shifted else 0
        plain = chunks.answer == PLAIN
        full = plain & (chunks.length == self.window)
        room = np.where(full, rewriter.window_room(chunks.length), rewriter.room(chunks.length, plain))
        still = (chunks.answer < PLAIN) | (shard.keys[chunks.document] == UNCHANGED)
        room = np.where(still, chunks.length, room)
        super().__init__(shard, chunks, rewriter.seq_len, packing, bos_id, pad_id, room, labelled)

    def read(self, rows: np.ndarray, epoch_keys: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if epoch_keys is None:
            return super().read(rows)
        dtypes = BATCH_DTYPES | ORIGIN_DTYPES
        batch = {name: np.zeros((len(rows), self.seq_len), dtype) for name, dtype in dtypes.items()}
        batch["tokens"][:], batch["targets"][:] = self.pad_id, 0 if self.labelled else self.pad_id
        stretches = self.stretches(rows, epoch_keys)
        ends, segments = [0] * len(rows), [0] * len(rows)
        rewritten = self.rewriter.rewrite(self.pieces(stretches))
        documents = self.chunks.document[stretches.chunk]
        for piece, row, place, key, document in zip(
            rewritten, stretches.row.tolist(), stretches.place.tolist(), stretches.key, documents.tolist()
        ):
            n = len(piece.ids) - 1
            at, end = ends[row], ends[row] + n
            assert 0 <= n <= self.seq_len - at
            ends[row], segments[row] = end, segments[row] + 1
            batch["tokens"][row, at:end], batch["targets"][row, at:end] = piece.ids[:-1], piece.ids[1:]
            batch["segments"][row, at:end], batch["keys"][row, at:end] = segments[row], key
            batch["weights"][row, at:end] = piece.weights[1:]
            if self.labelled and n:
                batch["targets"][row, at:end], batch["weights"][row, at:end] = 0, 0
                batch["targets"][row, end - 1] = self.labelled.number[document]
                batch["weights"][row, end - 1] = self.labelled.weight[document]
            batch["positions"][row, at:end] = np.arange(n)
            batch["places"][row, at:end] = np.arange(place, place + n)
        return batch

    def held(self, number: int, epoch_key: np.ndarray) -> list[tuple[int, int, int]]:
        found = self.stretches(np.array([number]), epoch_key)
        documents = self.chunks.document[found.chunk]
        return list(zip(documents.tolist(), found.place.tolist(), found.length.tolist()))

    def stretches(self, rows: np.ndarray, epoch_keys: np.ndarray) -> Stretches:
        """Returns what rows hold in an epoch, before it is rewritten."""
        first = np.where(rows < 0, 0, self.rows.first[rows])
        counts = np.where(rows < 0, 0, self.rows.first[rows + 1] - first)
        row = np.repeat(np.arange(len(rows)), counts)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.place(row, self.rows.order[first[row] + nth], epoch_keys[row])

    def place(self, row: np.ndarray, chunk: np.ndarray, epoch_keys: np.ndarray) -> Stretches:
        """Returns where in their documents chunks are in an epoch."""
        chunks, offsets = self.chunks, self.shard.offsets
        document = chunks.document[chunk]
        key = change_keys(self.shard.keys[document], epoch_keys)
        if not self.window:
            return Stretches(row, chunk, chunks.start[chunk] - offsets[document], chunks.length[chunk], key)
        nth, place, length = shift(chunks, chunk, offsets, key, self.window)
        return Stretches(row[nth], chunk[nth], place, length, key[nth])

    def pieces(self, stretches: Stretches) -> list[Piece]:
        """Reads stretches."""
        chunks, out = self.chunks, []
        starts = stretches.place + self.shard.offsets[chunks.document[stretches.chunk]]
        for chunk, start, place, n, key in zip(
            stretches.chunk.tolist(),
            starts.tolist(),
            stretches.place.tolist(),
            stretches.length.tolist(),
            stretches.key.tolist(),
        ):
            ids = self.shard.ids[start : start + n + 1].astype(np.int32)
            learn_from, answer = int(chunks.learn_from[chunk]), int(chunks.answer[chunk])
            weights = (np.arange(-1, n) >= learn_from).astype(np.float32)
            weights[0] = answer == PLAIN or (answer > 1 and learn_from == 0)
            if chunks.masked[chunk]:
                weights *= np.asarray(self.shard.learned)[start : start + n + 1]
            if chunks.put_bos[chunk]:
                ids[0] = self.bos_id
            out.append(Piece(ids, weights, fold(key, place) if key else 0, answer))
        return out


def shift(
    chunks: Chunks, chunk: np.ndarray, offsets: np.ndarray, keys: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moves the window of some chunks; returns of each piece (which of `chunk` it is of, place, length)."""
    document = chunks.document[chunk]
    moves = (chunks.answer[chunk] == PLAIN) & (keys != 0)
    inputs = np.where(moves, offsets[document + 1] - offsets[document] - 1, 0)
    places, lengths = shift_windows(chunks.start[chunk] - offsets[document], chunks.length[chunk], inputs, keys, window)
    some = np.flatnonzero(lengths.reshape(-1))
    return some // 2, places.reshape(-1)[some], lengths.reshape(-1)[some]


def shift_chunks(chunks: Chunks, offsets: np.ndarray, keys: np.ndarray, rewriter: Rewriter) -> Chunks:
    """Moves the window of all chunks of some documents, whose `keys` hold the epoch; each piece becomes a chunk."""
    if not rewriter.config.window_shift:
        return chunks
    every = np.arange(len(chunks.document))
    nth, place, length = shift(chunks, every, offsets, change_keys(keys[chunks.document], 0), rewriter.limit())
    arrays = {f.name: getattr(chunks, f.name)[nth] for f in fields(chunks) if f.name != "cut"}
    start = offsets[arrays["document"]] + place
    return Chunks(**arrays | {"start": start, "length": length.astype(np.int32)}, cut=chunks.cut)
