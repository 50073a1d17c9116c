"""Of which parts, a source or a class in it, are the training rows mixed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from data_pipeline.augment.rewrite import Rewriter
from data_pipeline.augment.select import changes
from data_pipeline.choices import read_words
from data_pipeline.config import DataConfig
from data_pipeline.dedup.lines import RepeatedLines
from data_pipeline.document_reader import DocumentReader, Texts
from data_pipeline.records import Named
from data_pipeline.rows import UNCHANGED, RowReader
from data_pipeline.schema import ConfigError, nearest
from data_pipeline.shares import Part
from data_pipeline.store import Prepared, Shard
from data_pipeline.tasks import Chunks, to_ids
from data_pipeline.tokenizer import Tokenizer

SAMPLE, SAMPLE_BYTES = 16, 2**18  # documents of a source that say how many tokens a byte of its text gives, at most


def prepared_parts(
    config: DataConfig, prepared: Prepared, sources: Sequence[Named], readers: Sequence[tuple[int, RowReader]],
    pack: Callable[..., RowReader],
) -> list[tuple[Part, RowReader]]:  # fmt: skip
    """Returns the parts of prepared data, with what reads them. Classes that are told apart do not share a row."""
    parts = []
    for number, reader in readers:
        labels, names = reader.shard.labels, prepared.label_names(number, "train")
        about = {"source": number, "name": sources[number].name, "config": sources[number].config}
        if not config.label_shares or labels is None:
            parts.append((Part(**about, rows=len(reader), documents=len(reader.shard.keys)), reader))
            continue
        label_of = labels[reader.chunks.document]
        for label in sorted(range(len(names)), key=names.__getitem__):
            part = pack(reader.shard, take(reader.chunks, np.flatnonzero(label_of == label)), labelled=reader.labelled)
            documents = int(np.count_nonzero(labels == label))
            if len(part):
                parts.append((Part(**about, rows=len(part), documents=documents, label=names[label]), part))
    return parts


def streamed_parts(
    config: DataConfig,
    prepared: Prepared,
    sources: Sequence[Named],
    rewriter: Rewriter | None,
    lines: RepeatedLines | None,
) -> list[tuple[Part, Texts, float]]:
    """Returns the parts of streamed data, where their texts lie, and tokens a byte of their source; rows are estimates."""
    parts, row_tokens = [], rewriter.limit() if rewriter else config.seq_len  # what is rewritten may grow
    for number, entry in enumerate(prepared.manifest["sources"]):
        if not entry["kept"].get("train"):
            continue
        source: Any = sources[number]
        names = prepared.label_names(number, "train")
        places, keys, sizes, labels = prepared.places(number, "train")
        texts = Texts(source, places, keys, sizes, labels=labels, names=tuple(names))
        ratio = _tokens_a_byte(config, texts, prepared.tokenizer, lines)
        some = [texts]
        if config.label_shares and names:
            some = [texts.of_class(label) for label in sorted(range(len(names)), key=names.__getitem__)]
        for one in some:
            rows = _count_rows(config, one.sizes * ratio, row_tokens)
            parts.append((Part(number, source.name, source.config, rows, len(one.keys), one.label), one, ratio))
    return parts


def take(chunks: Chunks, which: np.ndarray) -> Chunks:
    """Returns some of the chunks; `cut` still counts all."""
    arrays = {field.name: getattr(chunks, field.name)[which] for field in fields(chunks) if field.name != "cut"}
    return replace(chunks, **arrays)


def leave_unchanged(shard: Shard, config: DataConfig, names: Sequence[str]) -> Shard:
    """Returns the shard with keys that keep augmentation from the documents of classes it is not meant for."""
    if not config.augment.labels:
        return shard
    labels = [""] * len(shard.keys) if shard.labels is None else np.array(names)[shard.labels].tolist()
    chosen = changes(config.augment, np.ones(len(labels), np.int64), labels)
    return replace(shard, keys=np.where(chosen, shard.keys, UNCHANGED))


def check_labels(config: DataConfig, prepared: Prepared) -> None:
    """Raises ConfigError where a class that is to be augmented has no document, or there are no classes to tell apart."""
    labels = {name for number in range(len(prepared.sources)) for name in prepared.label_names(number, "train") if name}
    known = sorted(labels)
    problems = [
        f"config.data.augment.labels: no training document of class {name!r}{nearest(name, known)}"
        for name in config.augment.labels
        if name not in labels
    ]
    for name, source in config.named_sources().items():
        problems += [
            f"config.data.sources.{name}.label_words: no training document of class {word!r}{nearest(word, known)}"
            for word in read_words(source.label_words)[0]
            if word not in labels
        ]
    if config.label_shares and not labels:
        problems.append("config.data.label_shares: no training document has a label")
    if problems:
        raise ConfigError(problems)


def _tokens_a_byte(config: DataConfig, texts: Texts, tokenizer: Tokenizer, lines: RepeatedLines | None) -> float:
    """From the first documents that are not long."""
    first = np.flatnonzero(texts.sizes <= np.median(texts.sizes))[:SAMPLE]
    first = first[: max(int(np.searchsorted(np.cumsum(texts.sizes[first]), SAMPLE_BYTES)), 1)]
    some = replace(texts, places=texts.places[first], keys=texts.keys[first], sizes=texts.sizes[first],
                   labels=None if texts.labels is None else texts.labels[first])  # fmt: skip
    records, _, _ = DocumentReader(config, [some], tokenizer, lines).read(np.arange(len(first)))
    ids, _, _ = to_ids(records, tokenizer, config.add_bos, config.split.by == "hash")
    return sum(map(len, ids)) / max(int(some.sizes.sum()), 1)


def _count_rows(config: DataConfig, tokens: np.ndarray, row_tokens: int) -> int:
    if config.packing == "best_fit":
        return max(round(float(tokens.sum()) / row_tokens), 1)
    return int(np.maximum(np.ceil(tokens / row_tokens), 1).sum())
