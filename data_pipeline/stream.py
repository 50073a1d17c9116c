"""How are batches made on the fly, and how is the position in that stream saved and found again?

One tf.data graph: document numbers -> read, clean, cut -> shuffle -> tokenise, cut to chunks -> pack -> augment -> batch.
Python runs in it through `numpy_function(stateful=False)`, on functions of their arguments only, so that tf.data can save
the position of every stage.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.augment.check import is_on
from data_pipeline.augment.reader import RewrittenRows, shift_chunks
from data_pipeline.augment.rewrite import Rewriter
from data_pipeline.config import DataConfig
from data_pipeline.dedup.lines import RepeatedLines
from data_pipeline.feed import Batch, Calls, TrainBatches
from data_pipeline.mix import Mixture, epoch_key
from data_pipeline.quiet_tf import import_tf
from data_pipeline.records import Place, Record, Source, pack_record, unpack_record
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, RowReader
from data_pipeline.scan import Cleaner, part_for
from data_pipeline.schema import UserError
from data_pipeline.store import Shard
from data_pipeline.tasks import PLAIN, Chunks, Cut, cut_chunks, to_ids
from data_pipeline.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 16  # read, or tokenised, in one call of Python
WINDOW_TOKENS = 2**20  # packed together, at most
PREFETCH = 2  # batches read ahead


class StreamedBatches(TrainBatches):
    """A stream whose position is the state of its tf.data iterator, exact for the same hosts and configuration."""

    def __init__(
        self, dataset: Any, calls: Calls, fingerprint: str, start_step: int, rows: tuple[int, int], state: bytes | None
    ):
        super().__init__(dataset, calls)
        self.identity = {"data": fingerprint, "rows": list(rows)}
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
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        head = {**self.identity, "step": self.step, "files": {name: len(content) for name, content in files.items()}}
        return json.dumps(head).encode() + b"\n" + zlib.compress(b"".join(files.values()), 1)

    def _restore(self, state: bytes) -> None:
        tf = import_tf()
        line, _, packed = state.partition(b"\n")
        try:
            head, content = json.loads(line), zlib.decompress(packed)
            saved = {"data": head["data"], "rows": head["rows"]}
            files, step = head["files"], head["step"]
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
        with tempfile.TemporaryDirectory() as folder:
            at = 0
            for name, size in files.items():
                (Path(folder) / Path(name).name).write_bytes(content[at : at + size])
                at += size
            tf.train.Checkpoint(iterator=self.holder[0]).read(str(Path(folder) / "stream")).assert_consumed()


class DocumentReader:
    """The documents of some sources as one endless sequence: all of them once an epoch, the sources evenly mixed."""

    def __init__(
        self,
        config: DataConfig,
        parts: list[tuple[Source, np.ndarray, np.ndarray]],
        tokenizer: Tokenizer,
        lines: RepeatedLines | None = None,
    ):
        """`parts`: of each source where its documents lie, and their keys; `lines`: what is taken out of them."""
        self.config, self.cleaner, self.lines = config, Cleaner(config, tokenizer), lines
        self.sources = [source for source, _, _ in parts]
        sizes = [len(keys) for _, _, keys in parts]
        self.source = np.repeat(np.arange(len(parts)), sizes)
        self.places = np.concatenate([places for _, places, _ in parts])
        self.keys = np.concatenate([keys for _, _, keys in parts])
        # Each source is read in its own order, so that packed files are read forwards.
        progress = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        self.order = np.argsort(progress, kind="stable")

    def read(self, numbers: np.ndarray) -> tuple[list[Record], np.ndarray, np.ndarray]:
        """Returns (records, epoch, document key) for places of the endless sequence."""
        index = self.order[numbers % len(self.order)]
        sources = [self.sources[self.source[i]] for i in index.tolist()]
        loaded = [source.load(Place(*self.places[i].tolist())) for i, source in zip(index.tolist(), sources)]
        records = []
        for source, (cleaned, *_), key in zip(sources, self.cleaner.clean_many(loaded), self.keys[index].tolist()):
            if not isinstance(cleaned, Record):
                raise UserError(f"source {source.name}: a document changed since it was indexed ({cleaned}); run again")
            if self.lines and not cleaned.is_whole():
                cleaned = replace(cleaned, text=self.lines.remove([cleaned.text], [key])[0][0])
            records.append(part_for(cleaned, "train", source.config.split, self.config))
        return records, numbers // len(self.order), self.keys[index]


class Streams:
    """Builds the tf.data graph."""

    def __init__(
        self, config: DataConfig, readers: list[DocumentReader], mixture: Mixture, tokenizer: Tokenizer, pad_id: int,
        rewriter: Rewriter | None,
    ):  # fmt: skip
        self.config, self.readers, self.mixture = config, readers, mixture
        self.tokenizer, self.pad_id, self.rewriter = tokenizer, pad_id, rewriter
        self.calls = Calls()
        self.origins = is_on(config.augment)

    def dataset(self, rows: tuple[int, int], augment: Callable[[Any], Any]) -> Any:
        """Returns the batches of one host: `rows` of each global batch."""
        tf = import_tf()
        local, batch_size = rows[1] - rows[0], self.config.batch_size
        hosts, host = batch_size // local, rows[0] // local
        streams = [self._rows(reader, hosts, host) for reader in self.readers]
        stream = streams[0]
        options = tf.data.Options()
        # Reading goes forward through files, so it must not be spread over threads; the order would stay, the seeks not.
        options.experimental_optimization.map_parallelization = False
        if len(streams) > 1:

            def source_of(number: np.ndarray) -> list[np.ndarray]:
                place = number // local * batch_size + rows[0] + number % local
                return [self.mixture.source_at(np.atleast_1d(place))[0]]

            choice = tf.data.Dataset.counter().map(lambda n: self.calls.tensors(source_of, (n,), [np.int64], [[]])[0])
            stream = tf.data.Dataset.choose_from_datasets(streams, choice)
        stream = stream.batch(local, drop_remainder=True)
        if self.origins:
            stream = stream.map(augment)
        return stream.prefetch(PREFETCH).with_options(options)

    def _rows(self, reader: DocumentReader, hosts: int, host: int) -> Any:
        tf = import_tf()
        seq_len = self.config.seq_len

        def read(numbers: np.ndarray) -> list[np.ndarray]:
            records, epochs, keys = reader.read(numbers)
            packed = np.array([pack_record(record) for record in records], object)
            # the epoch is folded into the key, since rows of a window may hold documents of two epochs
            return [packed, keys ^ epoch_key(self.config.seed, epochs)]

        n: list[int | None] = [None]
        numbers = tf.data.Dataset.counter(start=host, step=hosts).batch(DOCUMENTS_AT_ONCE)
        documents = numbers.map(lambda x: self.calls.tensors(read, (x,), [tf.string, tf.uint64], [n] * 2)).unbatch()
        shuffled = documents.shuffle(
            self.config.shuffle_documents, seed=self.config.seed, reshuffle_each_iteration=False
        )
        chunk_types = [np.int32, np.uint8, np.int32, np.int32, np.bool_, np.uint64, np.int64]
        chunk_types += [np.int64] * bool(self.rewriter)
        wide: list[int | None] = [None, seq_len + 1]
        shapes = [wide, wide, *[n] * (len(chunk_types) - 2)]
        chunks = shuffled.batch(DOCUMENTS_AT_ONCE).map(
            lambda *x: self.calls.tensors(self._tokenise, x, chunk_types, shapes)
        )
        dtypes = BATCH_DTYPES | (ORIGIN_DTYPES if self.origins else {})
        window = max(64, WINDOW_TOKENS // seq_len)
        packed = (
            chunks.unbatch()
            .batch(min(window, 1024))
            .map(
                lambda *x: dict(
                    zip(
                        dtypes,
                        self.calls.tensors(self._pack, x, list(dtypes.values()), [[None, seq_len]] * len(dtypes)),
                    )
                )
            )
        )
        return packed.unbatch()

    def _tokenise(self, packed: Any, keys: np.ndarray) -> list[np.ndarray]:
        """Returns the chunks of some documents: ids and learned [n, seq_len + 1], length, learn_from, put_bos, key, place.

        Where chunks are rewritten later, also where the answer begins.
        """
        config = self.config
        records = [unpack_record(content) for content in packed]
        ids, starts, said = to_ids(records, self.tokenizer, config.add_bos, config.split.by == "hash")
        flat = np.concatenate(ids)
        learned = np.concatenate([np.array(some or [False] * len(one), np.uint8) for one, some in zip(ids, said)])
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
        plain_len = self.rewriter.limit() if self.rewriter else None
        chunks = cut_chunks(
            offsets, np.array(starts), config.seq_len, config.add_bos, config.loss_on_prompt, learned, plain_len
        )
        if self.rewriter:
            chunks = shift_chunks(chunks, offsets, keys, self.rewriter)
        column = np.arange(config.seq_len + 1)
        index = np.minimum(chunks.start[:, None] + column, len(flat) - 1)
        padded = np.where(column <= chunks.length[:, None], flat[index], self.pad_id).astype(np.int32)
        learned = np.where(chunks.masked[:, None], learned[index], 1).astype(np.uint8)
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
