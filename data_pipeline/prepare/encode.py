"""The last stage: how do the kept documents of a part become ids, and the parts one file a source and split?

NUMBER.tokens of each kept document its ids, those that are byte fallback, those that are unknown; -1 where it is not encoded
NUMBER.SPLIT  ids of the documents, one after the other; of each its size, loss start, key, file and line, label; `learned` where there
are conversations
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.documents import split_where
from data_pipeline.mix import hash64
from data_pipeline.prepare.decide import read_fate
from data_pipeline.prepare.read import (
    CUT,
    kept_records,
    read_arrays,
    read_lines,
    tokenizer_of,
)
from data_pipeline.prepare.repeated import read_changed
from data_pipeline.prepare.stages import Context
from data_pipeline.prepare.write import ShardWriter, ids_dtype
from data_pipeline.records import Part, Record, Source, utf8_size
from data_pipeline.scan import document_key, part_for
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_to_read, read_bytes
from data_pipeline.tasks import put_in_template, to_ids
from data_pipeline.tokenizer import STAND_IN, Tokenizer
from data_pipeline.whole_file import written_aside

ENCODE = "encode"
BATCH_CHARS = 1_000_000  # characters that are encoded at once
STRETCH = 10_000  # characters that tokenizer training takes or leaves together


class Document(NamedTuple):
    """A kept document, cleaned; of one cut by position, the part that belongs to `split`."""

    source: int
    split: str
    record: Record
    key: int  # 64 bits that name the document, whatever the order of files: augmentation is keyed by it
    number: int  # among the kept documents of its part


def read_documents(
    context: Context, number: int, task: tuple[int, Part], splits: tuple[str, ...] = SPLITS
) -> Iterator[Document]:
    """The documents of a part that stay in any of `splits`, in their order."""
    config: DataConfig = context.held["config"]
    source: Source = context.held["sources"][task[0]]
    keys, fate = read_arrays(context, number, "key")["key"].tobytes(), read_fate(context, number)
    wanted = fate & sum(1 << SPLITS.index(split) for split in splits)
    changed, cut = read_changed(context, number), (fate & CUT).tolist()
    names = {bits: [s for n, s in enumerate(SPLITS) if bits & 1 << n] for bits in range(1 << len(SPLITS))}
    splits_of = [names[bits] for bits in wanted.tolist()]
    for i, record in kept_records(context, number, task, wanted):
        record = changed.get(i, record)
        key = keys[16 * i : 16 * i + 16]
        for split in splits_of[i]:
            part = part_for(record, split, source.config.split, config) if cut[i] else record
            yield Document(task[0], split, part, document_key(key, split), i)


def train_texts(context: Context, tasks: list[tuple[int, Part]], total: int, limit: int) -> Iterator[str]:
    """Yields the training texts, or where there are more than `limit` characters an even, repeatable sample of stretches."""
    for number, task in enumerate(tasks):
        for document in read_documents(context, number, task, ("train",)):
            text = "".join(document.record.parts())
            if document.record.rendered:  # names of special tokens are no text
                text = STAND_IN.name_pattern.sub("\n", text)
            if total <= limit:
                yield text
                continue
            starts = np.arange(0, len(text), STRETCH)
            drawn = hash64(np.uint64(document.key) ^ hash64(starts.astype(np.uint64))) / 2.0**64 < limit / total
            yield from (text[start : start + STRETCH] for start in starts[drawn].tolist())


def encode_part(context: Context, number: int, task: tuple[int, Part]) -> dict[str, int]:
    """Writes the ids of a part; returns bytes of text by split. Training documents that are streamed are left out."""
    config: DataConfig = context.held["config"]
    tokenizer = tokenizer_of(context, context.folder / "tokenizer")
    waiting: list[Document] = []
    shards: dict[str, _PartOfShard] = defaultdict(_PartOfShard)
    chars = done = 0

    def flush() -> None:
        records = put_in_template([document.record for document in waiting], config.text_template)
        encoded = to_ids(records, tokenizer, config.add_bos, config.split.by == "hash")
        for document, ids, start, learned in zip(waiting, *encoded):
            shards[document.split].add(document, ids, start, learned)
        waiting.clear()

    for document in read_documents(context, number, task, SPLITS[1:] if config.streaming else SPLITS):
        waiting.append(document)
        chars += sum(map(len, document.record.parts()))
        if chars >= BATCH_CHARS:
            done, chars = done + chars, 0
            flush()
            context.tick(done)
    flush()
    lines = read_lines(context, number) if shards else []
    where, labels = [split_where(where) for where, _, _ in lines], [label for _, _, label in lines]
    fallback = tokenizer.fallback()
    counts = np.full((len(read_fate(context, number)), 3), -1)
    for split, shard in shards.items():
        with written_aside(context.path(ENCODE, number, split)) as file:
            file.write(shard.pack(tokenizer, where, labels, f"part {number}, {split}"))
        shard.count(tokenizer, fallback, counts)
    with written_aside(context.path(ENCODE, number, "tokens")) as file:
        file.write(counts.tobytes())
    return {split: shard.bytes for split, shard in shards.items()}


class _PartOfShard:
    """What one part gives to one split."""

    def __init__(self) -> None:
        self.bytes = 0
        self.ids: list[np.ndarray] = []
        self.learned: list[list[bool] | None] = []
        self.loss_start: list[int] = []
        self.keys: list[int] = []
        self.numbers: list[int] = []

    def add(self, document: Document, ids: np.ndarray, start: int, learned: list[bool] | None) -> None:
        self.bytes += sum(map(utf8_size, document.record.parts()))
        self.ids.append(ids)
        self.learned.append(learned)
        self.loss_start.append(start)
        self.keys.append(document.key)
        self.numbers.append(document.number)

    def pack(self, tokenizer: Tokenizer, where: list[tuple[str, int | None]], labels: list[str], name: str) -> bytes:
        """Returns the arrays as they are written; `where` has file and line, `labels` the label of every document of the part."""
        ids, sizes = np.concatenate(self.ids), np.array([len(one) for one in self.ids], np.int64)
        bad = np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size))
        if len(bad):
            document = int(np.searchsorted(np.cumsum(sizes), bad[0], side="right"))
            raise UserError(
                f"{name} document {document}: the tokenizer gave id {ids[bad[0]]}, outside its vocabulary of "
                f"{tokenizer.vocab_size}"
            )
        arrays = {
            "ids": ids.astype(ids_dtype(tokenizer.vocab_size)), "sizes": sizes, "loss_start": np.array(self.loss_start, np.int32),
            "keys": np.array(self.keys, np.uint64), "unknown": np.array((ids == tokenizer.special.unk).sum()),
            **self._origins(where), **self._labels(labels),
        }  # fmt: skip
        if any(said is not None for said in self.learned):
            marks = (
                np.zeros(len(one), np.uint8) if said is None else said for one, said in zip(self.ids, self.learned)
            )
            arrays["learned"] = np.concatenate([np.asarray(some, np.uint8) for some in marks])
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        return content.getvalue()

    def count(self, tokenizer: Tokenizer, fallback: np.ndarray, counts: np.ndarray) -> None:
        """Adds to the `counts` [documents of the part, 3] of those in this split."""
        ids, sizes = np.concatenate(self.ids), np.array([len(one) for one in self.ids])
        found = np.zeros((len(sizes), 3), np.int64)
        found[:, 0] = sizes
        ends = np.cumsum(sizes)
        for column, marked in ((1, fallback[ids]), (2, ids == tokenizer.special.unk)):
            found[:, column] = np.diff(np.searchsorted(np.flatnonzero(marked), ends), prepend=0)
        counts[self.numbers] = np.maximum(counts[self.numbers], 0) + found

    def _origins(self, where: list[tuple[str, int | None]]) -> dict[str, np.ndarray]:
        """Names of files, and of each document which it is from and the line (0: the whole of it)."""
        found = [where[document] for document in self.numbers]
        files = {file: i for i, file in enumerate(dict.fromkeys(file for file, _ in found))}
        places = np.array([(files[file], line or 0) for file, line in found])
        return {"files": np.array(list(files)), "origins": places}

    def _labels(self, labels: list[str]) -> dict[str, np.ndarray]:
        """Names of labels, and of each document which it has."""
        found = [labels[document] for document in self.numbers]
        names = {name: i for i, name in enumerate(dict.fromkeys(found))}
        return {"names": np.array(list(names)), "labels": np.array([names[label] for label in found], np.int32)}


def read_tokens(context: Context, number: int) -> np.ndarray:
    return np.frombuffer(read_bytes(context.path(ENCODE, number, "tokens")), np.int64).reshape(-1, 3)


def join_parts(
    context: Context, source: int, split: str, numbers: list[int], folder: Path, vocab_size: int
) -> dict[str, int]:
    """Puts the parts of a source together, in their order; returns counts."""
    paths = [path for number in numbers if (path := context.path(ENCODE, number, split)).exists()]
    documents, tokens, learned, labelled = 0, 0, False, False
    for path in paths:
        with open_to_read(path) as file, np.load(file) as arrays:
            documents, tokens = documents + len(arrays["sizes"]), tokens + int(arrays["sizes"].sum())
            learned, labelled = learned or "learned" in arrays, labelled or any(arrays["names"].tolist())
    writer = ShardWriter(folder, source, split, vocab_size, documents, tokens, learned, labelled)
    for path in paths:
        with open_to_read(path) as file, np.load(file) as arrays:
            writer.add(**arrays)
    return writer.close()
