"""How are batches made on the fly, and how is the position in that stream saved and found again?

One tf.data graph: document numbers -> read, clean, cut -> shuffle -> tokenise, cut to chunks -> pack -> augment -> batch.
Python runs in it through `numpy_function(stateful=False)`, on functions of their arguments only, so that tf.data can save
the position of every stage.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.augment.check import is_on
from data_pipeline.augment.reader import RewrittenRows, shift_chunks
from data_pipeline.augment.rewrite import Rewriter
from data_pipeline.buffers import CUT_BUFFER, Buffers, Plan, Stream, plan_stream, shuffle_buffer
from data_pipeline.config import DataConfig
from data_pipeline.document_reader import DocumentReader
from data_pipeline.feed import Batch, Calls, TrainBatches
from data_pipeline.mix import Mixture
from data_pipeline.quiet_tf import import_tf
from data_pipeline.records import pack_record, unpack_record
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, RowReader
from data_pipeline.schema import UserError
from data_pipeline.store import Shard
from data_pipeline.tasks import PLAIN, Chunks, Cut, cut_chunks, to_ids
from data_pipeline.tokenizer import Tokenizer

PREFETCH = 2  # batches read ahead
ENCODED_BYTES = 2**20  # of text that become ids in one call of the tokenizer
BLOCK = 2**20  # bytes of a saved position, or ids, that are worked on at once


class StreamedBatches(TrainBatches):
    """A stream whose position is the state of its tf.data iterator, exact for the same hosts and configuration."""

    def __init__(
        self,
        streams: Streams,
        dataset: Any,
        fingerprint: str,
        start_step: int,
        rows: tuple[int, int],
        state: bytes | None,
    ):
        super().__init__(dataset, streams.calls, "every source is read as often as its max_epochs allows")
        self.identity = {"data": fingerprint, "rows": list(rows)}
        self.buffers, self.window = streams.buffers, streams.plan.window
        self.step = start_step
        if state is not None:
            self._restore(state)
        elif start_step:
            raise UserError(
                f"streaming data cannot start at step {start_step}: the checkpoint holds no position of the stream. Start a "
                "new run, or set config.data.streaming=False"
            )

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.step += 1
        return batch

    def state(self) -> bytes:
        """The position after the last batch returned, whatever tf.data has read ahead."""
        tf = import_tf()
        with tempfile.TemporaryDirectory() as folder:
            tf.train.Checkpoint(iterator=self.holder[0]).write(str(Path(folder) / "stream"))
            paths = sorted(Path(folder).iterdir())
            head = {**self.identity, "step": self.step, "files": {path.name: path.stat().st_size for path in paths},
                    "window": self.window, "held": self.buffers.held}  # fmt: skip
            packer, parts = zlib.compressobj(1), [json.dumps(head).encode() + b"\n"]
            for path in paths:  # a block at a time: the text of the shuffle buffer is in it
                with open(path, "rb") as file:
                    parts += [packer.compress(block) for block in iter(lambda: file.read(BLOCK), b"")]
        return b"".join([*parts, packer.flush()])

    def _restore(self, state: bytes) -> None:
        tf = import_tf()
        line, _, packed = state.partition(b"\n")
        try:
            head, content = json.loads(line), zlib.decompress(packed)
            saved = {"data": head["data"], "rows": head["rows"]}
            files, step, window = head["files"], head["step"], head.get("window", self.window)
            held = {name: int(count) for name, count in head.get("held", {}).items()}
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise UserError(f"the position of streaming data in the checkpoint is damaged ({error})") from None
        if saved["rows"] != self.identity["rows"]:
            raise UserError(
                f"streaming data goes on only with the hosts that it was saved on: this one read rows {saved['rows']} of a "
                f"batch, now {self.identity['rows']}. Use the same number of hosts, or config.data.streaming=False"
            )
        if saved != self.identity or step != self.step:
            raise UserError(
                f"the checkpoint's data position is of other data or rules, or of step {step} and not {self.step}; set "
                "config.data back to what the run began with"
            )
        if window != self.window:
            raise UserError(
                f"the stream's rows were packed {window} chunks at a time, and with this config.data.buffer_bytes it would be "
                f"{self.window}; set it back to what the run began with"
            )
        self.buffers.held |= {name: count for name, count in held.items() if name in self.buffers.held}
        with tempfile.TemporaryDirectory() as folder:
            at = 0
            for name, size in files.items():
                (Path(folder) / Path(name).name).write_bytes(content[at : at + size])
                at += size
            tf.train.Checkpoint(iterator=self.holder[0]).read(str(Path(folder) / "stream")).assert_consumed()


class Streams:
    """Builds the tf.data graph."""

    def __init__(
        self, config: DataConfig, readers: list[DocumentReader], mixture: Mixture, tokenizer: Tokenizer, pad_id: int,
        rewriter: Rewriter | None, rows: tuple[int, int], tokens_a_byte: float,
    ):  # fmt: skip
        """`rows`: of each global batch, those of this host."""
        self.config, self.readers, self.mixture = config, readers, mixture
        self.tokenizer, self.pad_id, self.rewriter, self.rows = tokenizer, pad_id, rewriter, rows
        self.calls, self.buffers = Calls(), Buffers(config.buffer_bytes)
        self.origins = is_on(config.augment)
        self.hosts, self.host = config.batch_size // (rows[1] - rows[0]), rows[0] // (rows[1] - rows[0])
        streams = [
            Stream(reader.name, reader.sizes[self.host % len(reader.sizes) :: self.hosts], reader.shuffled)
            for reader in readers
        ]
        self.plan: Plan = plan_stream(config, streams, tokens_a_byte, rows[1] - rows[0], self.origins, self.buffers)

    def dataset(self, augment: Callable[[Any], Any]) -> Any:
        """Returns the batches of one host."""
        tf = import_tf()
        rows, batch_size = self.rows, self.config.batch_size
        local = rows[1] - rows[0]
        streams = [self._rows(reader) for reader in self.readers]
        stream = streams[0]
        options = tf.data.Options()
        # Reading goes forward through files, so it must not be spread over threads; the order would stay, the seeks not.
        options.experimental_optimization.map_parallelization = False
        if len(streams) > 1:

            def part_of(number: np.ndarray) -> list[np.ndarray]:
                place = number // local * batch_size + rows[0] + number % local
                return [self.mixture.part_at(np.atleast_1d(place))[0]]

            choice = tf.data.Dataset.counter().map(lambda n: self.calls.tensors(part_of, (n,), [np.int64], [[]])[0])
            # one that has ended is passed over, so that what was its share goes to the others
            stream = tf.data.Dataset.choose_from_datasets(streams, choice, stop_on_empty_dataset=False)
        stream = stream.batch(local, drop_remainder=True)
        if self.origins:
            stream = stream.map(augment)
        return stream.prefetch(PREFETCH).with_options(options)

    def _rows(self, reader: DocumentReader) -> Any:
        tf = import_tf()
        seq_len, at_once, change = self.config.seq_len, self.plan.at_once, self.buffers.change
        texts, cut = shuffle_buffer(reader.name), CUT_BUFFER

        def read(numbers: np.ndarray) -> list[np.ndarray]:
            records, epochs, keys = reader.read(numbers)
            packed = np.array([pack_record(record) for record in records], object)
            change(texts, sum(map(len, packed)))
            return [packed, reader.augmentation_keys(numbers, epochs, keys)]

        def tokenise(packed: Any, keys: np.ndarray) -> list[np.ndarray]:
            change(texts, -sum(map(len, packed)))
            arrays = self._tokenise(packed, keys)
            change(cut, sum(array.nbytes for array in arrays))
            return arrays

        def pack(*arrays: np.ndarray) -> list[np.ndarray]:
            change(cut, -sum(array.nbytes for array in arrays))
            return self._pack(*arrays)

        n: list[int | None] = [None]
        ends = reader.end is not None
        places = (
            tf.data.Dataset.range(self.host, reader.end, self.hosts)
            if ends
            else tf.data.Dataset.counter(self.host, self.hosts)
        )
        numbers = places.batch(at_once)
        documents = numbers.map(lambda x: self.calls.tensors(read, (x,), [tf.string, tf.uint64], [n] * 2)).unbatch()
        shuffled = documents.shuffle(reader.shuffled, seed=self.config.seed, reshuffle_each_iteration=False)
        chunk_types = [np.int32, np.uint8, np.int32, np.int32, np.bool_, np.uint64, np.int64]
        chunk_types += [np.int64] * bool(self.rewriter)
        wide: list[int | None] = [None, seq_len + 1]
        chunk_shapes = [wide, wide, *[n] * (len(chunk_types) - 2)]
        chunks = shuffled.batch(at_once).map(lambda *x: self.calls.tensors(tokenise, x, chunk_types, chunk_shapes))
        dtypes = BATCH_DTYPES | (ORIGIN_DTYPES if self.origins else {})
        types, shapes = list(dtypes.values()), [[None, seq_len]] * len(dtypes)
        windows = chunks.unbatch().batch(self.plan.window)
        return windows.map(lambda *x: dict(zip(dtypes, self.calls.tensors(pack, x, types, shapes)))).unbatch()

    def _tokenise(self, packed: Any, keys: np.ndarray) -> list[np.ndarray]:
        """Returns the chunks of some documents: ids and learned [n, seq_len + 1], length, learn_from, put_bos, key, place.

        Where chunks are rewritten later, also where the answer begins.
        """
        config = self.config
        ids, starts, learned = [], [], []
        for some in _cut_evenly(packed, ENCODED_BYTES):
            records = [unpack_record(content) for content in some]
            numbers, begins, said = to_ids(records, self.tokenizer, config.add_bos, config.split.by == "hash")
            ids += numbers
            learned += [np.array(told or [False] * len(one), np.uint8) for one, told in zip(numbers, said)]
            starts += begins
        flat, said = np.concatenate(ids), np.concatenate(learned)
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
        plain_len = self.rewriter.limit() if self.rewriter else None
        chunks = cut_chunks(
            offsets, np.array(starts), config.seq_len, config.add_bos, config.loss_on_prompt, said, plain_len
        )
        if self.rewriter:
            chunks = shift_chunks(chunks, offsets, keys, self.rewriter)
        column, n = np.arange(config.seq_len + 1), len(chunks.start)
        padded, learned = np.empty((n, len(column)), np.int32), np.ones((n, len(column)), np.uint8)
        step = max(BLOCK // len(column), 1)
        for rows in (slice(at, at + step) for at in range(0, n, step)):
            index = np.minimum(chunks.start[rows, None] + column, len(flat) - 1)
            padded[rows] = np.where(column <= chunks.length[rows, None], flat[index], self.pad_id)
            masked = np.flatnonzero(chunks.masked[rows])
            learned[rows][masked] = said[index[masked]]
        place = chunks.start - offsets[chunks.document]
        out = [padded, learned, chunks.length, chunks.learn_from, chunks.put_bos, keys[chunks.document], place]
        return out + [chunks.answer] * bool(self.rewriter)

    def _pack(
        self, ids: np.ndarray, learned: np.ndarray, length: np.ndarray, learn_from: np.ndarray, put_bos: np.ndarray, keys: np.ndarray,
        place: np.ndarray, answer: np.ndarray | None = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """Packs a window of chunks into rows."""
        n, width = ids.shape
        start = np.arange(n, dtype=np.int64) * width
        shard = Shard(ids.reshape(-1), start - place, np.zeros(n, np.int32), keys, learned.reshape(-1))
        masked = np.ones(n, bool)
        answer = np.full(n, PLAIN) if answer is None else answer  # nothing asks
        chunks = Chunks(np.arange(n), start, length, learn_from, put_bos, masked, answer, Cut())
        config, bos = self.config, self.tokenizer.special.bos
        if self.rewriter:
            reader = RewrittenRows(shard, chunks, config.packing, bos, self.pad_id, self.rewriter, shifted=True)
        else:
            reader = RowReader(shard, chunks, config.seq_len, config.packing, bos, self.pad_id)
        no_epoch = np.zeros(len(reader), np.uint64)  # it is in the keys
        return list(reader.read(np.arange(len(reader)), no_epoch if self.origins else None).values())


def _cut_evenly(contents: Sequence[bytes], most: int) -> Iterator[Sequence[bytes]]:
    """Yields the contents in turns of at most `most` bytes, or of one that has more."""
    first = held = 0
    for number, content in enumerate(contents):
        if held + len(content) > most and number > first:
            yield contents[first:number]
            first, held = number, 0
        held += len(content)
    yield contents[first:]
