"""How do the rows of all parts become one documents.parquet, with what later stages decided?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.accounts import Clusters
from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENTS, documents_writer, read_rows
from data_pipeline.prepare.account import BIT
from data_pipeline.prepare.decide import REPEATS, read_fate, read_repeats
from data_pipeline.prepare.encode import read_tokens
from data_pipeline.prepare.read import READ, kept_records, read_where
from data_pipeline.prepare.repeated import RULE as REPEATED
from data_pipeline.prepare.repeated import read_changed
from data_pipeline.prepare.samples import NEAR_BY, Samples, hide, shorten, show_change
from data_pipeline.prepare.stages import Context
from data_pipeline.sealed import read_bytes


def write_documents(context: Context, parts: int, folder: Path) -> None:
    """Writes folder/documents.parquet; memory: one part's numbers."""
    begins = np.cumsum([0, *(len(read_fate(context, number)) for number in range(parts))])
    with documents_writer(folder / DOCUMENTS) as add:
        for number in range(parts):
            fate, tokens, why = read_fate(context, number), read_tokens(context, number), read_repeats(context, number)
            repeats = np.full(len(fate), -1)
            repeats[why[:, 0]] = np.where(why[:, 1] < 0, -1, begins[why[:, 1]] + why[:, 2])
            shorter = np.zeros(len(fate), np.uint32)
            shorter[list(read_changed(context, number))] = BIT[REPEATED]
            reasons = np.full(len(fate), len(REPEATS))
            reasons[why[:, 0]] = why[:, 3]
            done = 0
            for batch in read_rows(context.path(READ, number, "rows")):
                reason = batch.column("reason").to_numpy(zero_copy_only=False)
                kept = np.flatnonzero(reason == "")
                here = slice(done, done + len(kept))
                done += len(kept)
                numbers = np.full((5, batch.num_rows), -1)
                numbers[:, kept] = [np.arange(len(fate))[here] + begins[number], repeats[here], *tokens[here].T]
                splits = batch.column("splits").to_numpy().copy()
                splits[kept] = np.where(fate[here] > 0, fate[here], splits[kept])
                reason = reason.copy()
                reason[kept] = np.array([*REPEATS, ""], object)[reasons[here]]
                added = dict(zip(("number", "repeats", "tokens", "fallback", "unknown"), numbers))
                rules = batch.column("rules").to_numpy().copy()
                rules[kept] |= shorter[here]
                add(batch, {**added, "splits": splits, "reason": reason, "rules": rules})


def read_samples(context: Context, parts: int) -> Iterator[Samples]:
    for number in range(parts):
        yield json.loads(read_bytes(context.path(READ, number, "samples")))


def show_clusters(context: Context, tasks: list[Any], found: Clusters) -> list[dict[str, Any]]:
    """The largest clusters of duplicates, and a few others: the text that is kept, and how another one differs from it."""
    config: DataConfig = context.held["config"]
    begins = np.cumsum([0, *(len(read_fate(context, number)) for number in range(len(tasks)))])

    chosen = list(found.examples())
    texts: dict[int, tuple[str, str]] = {}
    wanted = np.unique([document for root, other, _ in chosen for document in (root, other)]).astype(np.int64)
    parts = np.searchsorted(begins, wanted, side="right") - 1
    for number in np.unique(parts).tolist():
        marks = np.zeros(begins[number + 1] - begins[number], np.uint8)
        marks[wanted[parts == number] - begins[number]] = 1
        where = read_where(context, number)
        for i, record in kept_records(context, number, tasks[number], marks):
            texts[i + int(begins[number])] = where[i], "\n".join(record.parts())
    shown = []
    for root, other, size in chosen:
        (where, text), (there, like) = texts[root], texts[other]
        example = {"size": size, "where": where, "text": shorten(hide(text[:NEAR_BY], config.clean)), "other": there}
        shown.append(example | (show_change(text, like, config.clean) if text != like else {}))
    return shown
