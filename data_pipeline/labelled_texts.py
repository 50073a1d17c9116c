"""What does a classifier read besides its training rows: the texts of a split as text, and texts that have no label?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipeline.clean import clean_text
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.records import Bad, Record
from data_pipeline.rows import Labelled, RowReader
from data_pipeline.schema import UserError
from data_pipeline.sources import FileSource
from data_pipeline.store import Shard
from data_pipeline.tasks import cut_chunks, put_in_template, take_out_of_template, to_ids, whole_texts
from data_pipeline.tokenizer import Tokenizer


def read_texts(data: Any, split: str, most: int) -> tuple[list[str], np.ndarray]:
    """Returns the texts of a split without the template around them, and the numbers of their classes, int64; an even sample of `most`."""
    texts: list[str] = []
    labels: list[np.ndarray] = []
    total = sum(len(reader.shard.keys) for _, reader in data.readers[split])
    for source, reader in data.readers[split]:
        shard = reader.shard
        chosen = np.arange(len(shard.keys))
        if total > most:
            chosen = np.unique(np.linspace(0, len(chosen) - 1, max(most * len(chosen) // total, 1)).astype(np.int64))
        starts, ends = shard.offsets[chosen] + data.config.add_bos, shard.offsets[chosen + 1] - 1  # the last ends it
        found = (data.tokenizer.decode(shard.ids[a:b].tolist()) for a, b in zip(starts.tolist(), ends.tolist()))
        texts += [take_out_of_template(text, data.config.text_template) for text in found]
        labels.append(data.classes.numbers(data.prepared, source, split)[chosen])
    return texts, np.concatenate(labels).astype(np.int64) if labels else np.zeros(0, np.int64)


def read_file(config: DataConfig, path: str) -> list[str]:
    """Returns the texts of a file in any format that sources have, in its order; raises UserError for a bad row."""
    fields = next(iter(config.named_sources().values()), SourceConfig())
    source = replace(fields, kind="auto", path=path, label_field="", group_field="", split="", max_documents=0)
    texts = []
    for found in FileSource("file", source, "--file", config.max_line_bytes, lambda line: None).read():
        if isinstance(found.record, Bad):
            raise UserError(f"{found.where}: {found.record.message}")
        if found.record.is_whole():
            raise UserError(f"{found.where}: expected a text, found a prompt and its completion, or a conversation")
        texts.append(found.record.text)
    if not texts:
        raise UserError(f"{path}: no texts")
    return texts


def batches_of(
    config: DataConfig, tokenizer: Tokenizer, texts: Sequence[str], rows: int
) -> tuple[np.ndarray, Iterator[dict[str, np.ndarray]]]:
    """Returns which of `texts` each answer will be to, and batches of `rows` rows with a target of class 0 for each text.

    The texts are edited by the rules of training, but none is dropped.
    """
    clean = config.clean
    records = [Record(clean_text(text, clean.rules, clean, set()) or " ") for text in texts]
    all_ids, starts, _ = to_ids(put_in_template(records, config.text_template), tokenizer, config.add_bos, True)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in all_ids])]).astype(np.int64)
    shard = Shard(np.concatenate(all_ids), offsets, np.array(starts, np.int32), np.zeros(len(texts), np.uint64))
    one = whole_texts(config)
    chunks = cut_chunks(offsets, shard.loss_start, config.seq_len, config.add_bos, False, one_chunk=one)
    labelled = Labelled(np.zeros(len(texts), np.int32), np.ones(len(texts), np.float32))
    pad = tokenizer.special.padding()
    reader = RowReader(shard, chunks, config.seq_len, config.packing, tokenizer.special.bos, pad, labelled=labelled)

    def read() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(reader), rows):
            numbers = np.arange(start, start + rows)
            yield reader.read(np.where(numbers < len(reader), numbers, -1))

    return chunks.document[reader.rows.order], read()
